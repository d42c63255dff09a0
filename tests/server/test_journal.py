"""The journal's files: what failed once is not believed again."""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import pytest

from pickledbd import records
from pickledbd.disk import DiskError
from pickledbd.journal import Journal, journal_path
from pickledbd.retries import Retries


@contextlib.contextmanager
def no_disk(path):
    """Have this process's descriptor of `path` be a pipe's for a while, which cannot be synced."""
    links = {int(fd): f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")}
    (file,) = [fd for fd, link in links.items() if os.path.realpath(link) == str(path)]
    kept = os.dup(file)
    ends = os.pipe()
    os.dup2(ends[1], file)
    yield
    os.dup2(kept, file)
    for each in (kept, *ends):
        os.close(each)


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="asks Linux")
@pytest.mark.parametrize("durable", ["journal", "fsync"])
def test_nothing_is_written_behind_what_could_not_be_synced(location, durable):
    """A thread's sync failed, and the loop has not heard of it when the next write comes."""
    location.write_bytes(b"{}")
    path = journal_path(location, 1)
    with contextlib.closing(Journal(location, durable=durable)) as journal:
        journal.begin(hashlib.sha256(b"{}").hexdigest(), Retries())
        journal.write([records.effects({"lost": b"1"})], sync_now=False)
        with no_disk(path), pytest.raises(DiskError, match=r"fdatasync of my\.db\.journal\.1"):
            journal.sync()
        before = path.read_bytes()
        with pytest.raises(DiskError, match=r"fdatasync of my\.db\.journal\.1"):
            journal.write([records.effects({"a": b"1"})])
        assert path.read_bytes() == before
        assert journal.unsynced
