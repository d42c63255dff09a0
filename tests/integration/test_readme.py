"""What the README shows runs as it stands there."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pickledbd_client import AsyncPickleDB, PickleDB, Resync
from support import PATIENCE, wait_until

README = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
BY_HAND = README.split("by hand | here |")[1].split("\n\n")[0].splitlines()[2:]


def block(words):
    (found,) = [each for each in BLOCKS if words in each]
    return found


@pytest.fixture
def shown(db, location, monkeypatch):
    """Runs an example, beside this database."""
    monkeypatch.chdir(location.parent)
    names = {"db": db, "PickleDB": PickleDB, "AsyncPickleDB": AsyncPickleDB, "Resync": Resync}

    def run(example, **more):
        names.update(more)
        exec(example, names)
        return names

    return run


def test_no_example_is_forgotten():
    assert len(BLOCKS) == 7
    assert len(BY_HAND) > 5


def test_the_first_example(shown, location, capsys):
    location.with_name("my_database.db").symlink_to(location)
    names = shown(block("instead of: from pickledb"))
    assert capsys.readouterr().out == "Hello, world!\n"
    assert location.exists()
    names["db"].close()


def test_a_job_is_for_one(shown, db):
    db.set("job 7", "x")
    assert shown(block('db.pop("job 7"'))["job"] == "x"
    assert shown(block('db.pop("job 7"'))["job"] is None


def test_a_batch(shown, db, capsys):
    db.set("reserved:42", 1)
    shown(block('batch.remove("reserved:42")'))
    assert capsys.readouterr().out == "[True, True]\n"
    assert db.db == {"stock:42": 6}


def test_together(shown, db):
    db.set("stock:42", 6)
    db.set("tasks", ["Write code"])
    shown(block('db.incr("hits")'))
    tasks = ["Write code", "Celebrate"]
    assert db.db == {"stock:42": 5, "tasks": tasks, "hits": 1, "sold:42": 1}


def test_a_lock(shown, db):
    shown(block("nightly report"), build_report=lambda: {"sold": 1})
    assert db.db == {"report": {"sold": 1}}


def test_watching(shown, db):
    db.update({"user:1": "Ann", "user:3": "Cem", "job": 1})
    names = shown("")
    follower = threading.Thread(target=shown, args=(block("isinstance(change, Resync)"),))
    follower.start()
    wait_until(lambda: db.info()["waiting"], "the watch to begin")
    assert names["users"] == {"user:1": "Ann", "user:3": "Cem"}
    db.set("user:2", "Bob")
    db.set("user:1", "Anna")
    db.remove("user:2")
    wait_until(lambda: names["users"] == {"user:1": "Anna", "user:3": "Cem"}, "the changes")
    db.close()
    follower.join(PATIENCE)
    assert not follower.is_alive()


def test_asyncio(shown, db, location):
    location.with_name("my_database.db").symlink_to(location)
    main = shown(block("async with AsyncPickleDB"), asyncio=asyncio)["main"]

    async def for_a_while():
        running = asyncio.create_task(main())
        while not (await asyncio.to_thread(db.info))["waiting"]:
            assert not running.done(), await running
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running

    asyncio.run(asyncio.wait_for(for_a_while(), PATIENCE))
    assert db.get("a") == 1


@pytest.mark.parametrize("row", BY_HAND)
def test_what_stands_in_place_of_what_was_done_by_hand(shown, db, row):
    db.update({"user": {"age": 1}, "session": {"status": "active"}, "user:1": 1, "apple": 2})
    here = re.split(r" \| ", row)[-1].replace("\\|", "|").replace("...", "{}")
    examples = re.findall(r"`([^`]*\([^`]*)`", here)
    assert examples
    for example in examples:
        if not example.startswith(("with", "for")):  # these have examples of their own
            shown(example, k="session", value={"status": "active"})


def test_data_is_moved_in_and_out(db, daemon, tmp_path):
    section = README.split("### Moving data in and out")[1].split("\n### Upgrade")[0]
    commands = re.findall(r"^```sh\n(.*?)^```", section, re.MULTILINE | re.DOTALL)
    assert len(commands) == 3
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "old.db").write_text('{"a": 1, "user:1": {"name": "Ann"}}')
    db.set("session", 1, ttl=3600)
    ended = subprocess.run(
        [
            "bash",
            "-euo",
            "pipefail",
            "-c",
            f'pickledbctl() {{ "{sys.executable}" -m pickledbd_client.ctl "$@"; }}\n'
            + "\n".join(commands),
        ],
        cwd=folder,
        env={**os.environ, "PICKLEDBD_URL": daemon.endpoint},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
    assert db.db == {"session": 1, "a": 1, "user:1": {"name": "Ann"}}
    assert 3500 < db.ttl("session") <= 3600
    assert json.loads((folder / "out.json").read_bytes()) == db.db
    assert (folder / "users.jsonl").read_text() == '{"key":"user:1","value":{"name":"Ann"}}\n'
