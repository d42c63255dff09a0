"""pickleDB itself, to compare with: had with pip once, and kept in the checkout's .cache/.

Later runs need no network. Tests that run side by side wait for the one that fetches, and what
is fetched appears under its name whole or not at all.
"""

from __future__ import annotations

import contextlib
import fcntl
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
from pathlib import Path

import pytest

from support import PATIENCE, wait_until

CACHE = Path(__file__).parents[1] / ".cache" / "pickledb"


def pickledb_install(version):
    """A directory for PYTHONPATH, holding pickleDB `version` and what it needs."""

    def install(directory):
        _pip("install", "--target", directory, f"pickledb=={version}")

    # orjson, which it needs, is compiled for one Python on one kind of machine.
    python = f"{sys.implementation.cache_tag}-{sysconfig.get_platform()}"
    return _cached(f"{version}-{python}", install)


def pickledb_sdist():
    """A directory with pickleDB 1.6's own tests, which only its source distribution has."""

    def unpack(directory):
        with tempfile.TemporaryDirectory() as downloads:
            from_source = ("--no-deps", "--no-binary", "pickledb")
            _pip("download", *from_source, "--dest", downloads, "pickledb==1.6")
            (archive,) = Path(downloads).iterdir()
            name = "pickledb-1.6/test_pickledb.py"
            with tarfile.open(archive) as tar, tar.extractfile(name) as tests:
                (directory / "test_pickledb.py").write_bytes(tests.read())

    return _cached("1.6-tests", unpack)


def _cached(name, make):
    """The directory `name` of the cache, filled by `make(directory)` if there is none yet."""
    final = CACHE / name
    if not final.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with (CACHE / f"{name}.lock").open("w") as lock:
            wait_until(lambda: _try_lock(lock), f"another test to fetch {name}", 2 * PATIENCE)
            if not final.exists():
                unfinished = CACHE / f"{name}.unfinished"
                shutil.rmtree(unfinished, ignore_errors=True)  # of a run that was killed
                unfinished.mkdir()
                make(unfinished)
                unfinished.rename(final)
    return final


def _try_lock(file):
    with contextlib.suppress(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _pip(*arguments):
    """Run pip; a test that cannot have what it compares with has failed, and says why."""
    options = ("--quiet", "--no-input", "--disable-pip-version-check", "--timeout", "15")
    command = [sys.executable, "-m", "pip", *map(str, arguments), *options]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True, timeout=PATIENCE)
    except subprocess.CalledProcessError as error:
        problem = error.stderr.strip() or f"it exited with {error.returncode}"
    except subprocess.TimeoutExpired:
        problem = f"it took more than {PATIENCE} s"
    else:
        return
    pytest.fail(
        f"this test needs {arguments[-1]}, which {CACHE} does not have yet and pip could not "
        f"fetch: {problem}",
        pytrace=False,
    )
