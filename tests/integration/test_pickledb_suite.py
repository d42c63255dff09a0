"""pickleDB 1.6's own tests pass with this client in pickleDB's place."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
from xml.etree import ElementTree as ET

from reference import pickledb_sdist
from support import PATIENCE, wait_until

SYNC = [
    "test_sync_set_get_save_and_reload",
    "test_sync_get_default_and_missing_key",
    "test_sync_remove_and_all",
    "test_sync_purge_clears_database",
    "test_sync_context_manager_saves_on_success",
    "test_sync_context_manager_does_not_save_on_exception",
    "test_load_on_missing_file_returns_empty_db",
    "test_load_on_empty_file_returns_empty_db",
    "test_save_uses_temp_file_and_is_atomic",
]

SHIM = """\
from pathlib import Path

from pickledbd_client import PickleDB

Path("imported").touch()  # so that it is known whose PickleDB was tested


class PickleDBSQLite:
    pass  # the tests import the name; those that use it are not run
"""


def test_the_sync_tests_of_pickledb_1_6_are_the_nine_run_here():
    tree = ast.parse((pickledb_sdist() / "test_pickledb.py").read_text(encoding="utf-8"))
    functions = [node.name for node in tree.body if isinstance(node, ast.FunctionDef)]
    tests = [name for name in functions if name.startswith("test_")]
    assert [name for name in tests if not name.startswith("test_sqlite")] == SYNC


def test_the_sync_tests_of_pickledb_1_6_pass_with_this_client_as_pickledb(tmp_path):
    suite = tmp_path / "suite"
    suite.mkdir()
    shutil.copy(pickledb_sdist() / "test_pickledb.py", suite)
    (suite / "pickledb.py").write_text(SHIM)
    (suite / "pytest.ini").write_text("[pytest]\n")  # none of this project's settings
    report = tmp_path / "report.xml"
    files = tmp_path / "files"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment["PICKLEDBD_IDLE_EXIT"] = "1"

    run = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-p", "no:cacheprovider"),
            *(f"--basetemp={files}", f"--junitxml={report}"),
            *(f"test_pickledb.py::{name}" for name in SYNC),
        ],
        cwd=suite,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    cases = ET.parse(report).findall(".//testcase")
    assert [case.get("name") for case in cases] == SYNC
    # A test that failed or was skipped has an element that says so.
    assert [child.tag for case in cases for child in case] == []
    assert (suite / "imported").exists()
    # Nobody is connected any more, so the daemon of each test ends on its own.
    wait_until(lambda: not list(files.glob("*/*.lock")), "the daemons of the suite to end")
