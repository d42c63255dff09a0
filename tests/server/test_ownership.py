"""Ownership: one holder, whose lock file tells who it is, whatever is done to that file."""

from __future__ import annotations

import fcntl
import json
import os

import pytest

from pickledbd.ownership import AlreadyOwnedError, Ownership


@pytest.fixture
def target(tmp_path):
    return tmp_path / "my.db"


def test_a_second_owner_is_refused_and_told_who_is_the_first(target):
    first = Ownership(target)
    first.announce({"pid": 7, "state": "serving"})
    with pytest.raises(AlreadyOwnedError) as caught:
        Ownership(target)
    assert caught.value.owner == {"pid": 7, "state": "serving"}
    first.release()
    assert not first.path.exists()
    Ownership(target).release()


def test_announcing_something_shorter_leaves_nothing_of_the_longer(target):
    owner = Ownership(target)
    owner.announce({"endpoints": ["x" * 1000]})
    owner.announce({"pid": 1})
    assert json.loads(owner.path.read_bytes()) == {"pid": 1}
    owner.release()


def test_a_lock_taken_by_another_is_taken_over(target):
    path = target.with_name("my.db.lock")
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    fcntl.flock(file, fcntl.LOCK_EX)
    owner = Ownership(target, os.dup(file))
    os.close(file)
    with pytest.raises(AlreadyOwnedError):
        Ownership(target)
    owner.release()


def test_a_lock_file_that_was_removed_is_put_back(target):
    owner = Ownership(target)
    owner.announce({"pid": 1})
    owner.path.unlink()
    assert not owner.held()
    owner.restore()
    assert owner.held()
    assert json.loads(owner.path.read_bytes()) == {"pid": 1}
    with pytest.raises(AlreadyOwnedError):
        Ownership(target)
    owner.release()


def test_a_lock_file_that_was_replaced_and_locked_is_not_removed_at_the_end(target):
    first = Ownership(target)
    first.path.unlink()
    second = Ownership(target)
    assert not first.held()
    with pytest.raises(AlreadyOwnedError):
        first.restore()
    first.release()
    assert second.held()
    second.release()


def test_a_lock_file_with_rubbish_in_it_tells_nothing(target):
    first = Ownership(target)
    for rubbish in (b"\xff", b"[1]", b""):
        first.path.write_bytes(rubbish)
        with pytest.raises(AlreadyOwnedError) as caught:
            Ownership(target)
        assert caught.value.owner == {}
    first.release()
