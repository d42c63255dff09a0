"""The data file: what it loads and refuses; that a save replaces it whole or not at all."""

from __future__ import annotations

import errno
import json
import os
import stat

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pickledbd import snapshot
from pickledbd.disk import DiskError
from pickledbd.snapshot import DataFile, Unreadable
from support import save_content, written

contents = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"])),
    st.recursive(
        st.none() | st.integers(-(2**63), 2**64 - 1) | st.text('a\n",{}:'),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab\n,"), inner),
        max_leaves=8,
    ),
)


def save(file, content, chunk=3):
    """Save keys and their values' texts, so many at a time."""
    items = list(content.items())
    parts = [items[start : start + chunk] for start in range(0, len(items), chunk)]
    chunks = (([key for key, _ in part], [text for _, text in part]) for part in parts)
    save_content(file, chunks)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "my.db"


def load(path):
    return {key: json.loads(text) for key, text in items_of(DataFile(path).load()).items()}


def items_of(table):
    return {key: text for part in table.view() for key, text in zip(*part, strict=True)}


@given(contents, st.integers(1, 40), st.integers(1, 5))
def test_what_is_saved_is_loaded_whatever_the_blocks(tmp_path_factory, content, block, chunk):
    path = tmp_path_factory.mktemp("db") / "my.db"
    save(DataFile(path), {key: orjson.dumps(value) for key, value in content.items()}, chunk)
    assert json.loads(path.read_bytes()) == content
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "BLOCK", block)
        assert list(load(path).items()) == list(content.items())


@given(contents, st.sampled_from([None, 0, 1, 2, "\t"]), st.integers(1, 40))
def test_any_layout_of_json_is_loaded(tmp_path_factory, content, indent, block):
    path = tmp_path_factory.mktemp("db") / "my.db"
    path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(snapshot, "BLOCK", block)
        assert list(load(path).items()) == list(content.items())


def test_a_missing_and_an_empty_file_are_empty_databases(path):
    assert len(DataFile(path).load()) == 0
    path.touch()
    assert len(DataFile(path).load()) == 0
    assert path.read_bytes() == b""


UNREADABLE = {
    b"{": "line 1 column 2",
    b"not json": "line 1 column 1",
    b'{"a":1}\n{"b":2}': "line 2 column 1",
    b'{\n"a":1,\n"b":oops\n}\n': "line 3 column 5",
    b'{\n"a":1,\n}\n': "line 2 column 6",
    b"{\n,\n}\n": "line 2 column 1",
    b'{\n"a":1,\n"b":2\n': "line 4 column 1",
    b'{\n"a":1,\n"b":2\n}\n}': "line 5 column 1",
    b'{"a":"\xff"}': "invalid start byte at byte 6",
    b"\xef\xbb\xbf{}": "BOM",
    b"[1, 2]": "a JSON list, not an object",
    b'"text"': "a JSON str, not an object",
    b'{"a":NaN}': "line 1 column 6",
    b'{"a":18446744073709551616}': "integer 18446744073709551616 is over 64 bits",
    b'{\n"a":1,\n"b":-9223372036854775809\n}\n': "is over 64 bits",
    b'{"deep":' + b"[" * 255 + b"]" * 255 + b"}": "key 'deep'",
}


@pytest.mark.parametrize("text", UNREADABLE)
def test_what_does_not_parse_is_refused_with_its_position_and_not_touched(path, text):
    path.write_bytes(text)
    before = written(path)
    with pytest.raises(Unreadable) as caught:
        DataFile(path).load()
    assert UNREADABLE[text] in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_bytes() == text
    assert written(path) == before
    assert os.listdir(path.parent) == ["my.db"]


def test_what_is_no_regular_file_is_refused(path):
    os.mkfifo(path)
    with pytest.raises(Unreadable, match="not a regular file"):
        DataFile(path).load()
    path.unlink()
    path.mkdir()
    with pytest.raises(Unreadable, match="not a regular file"):
        DataFile(path).load()


def test_a_value_as_deep_as_pickledb_can_save_is_loaded(path):
    text = b'{"deep":' + b"[" * 253 + b"]" * 253 + b"}"
    path.write_bytes(text)
    content = load(path)
    save_content(DataFile(path), DataFile(path).load().view())
    assert load(path) == content


def test_a_save_keeps_the_file_s_mode_and_leaves_nothing_else(path):
    path.write_bytes(b"{}")
    path.chmod(0o640)
    file = DataFile(path)
    file.load()
    save(file, {"a": b"1"})
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert os.listdir(path.parent) == ["my.db"]


def test_a_new_file_has_the_mode_that_the_umask_leaves(path):
    before = os.umask(0o027)
    try:
        save(DataFile(path), {})
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640


STEPS = ["open", "write", "fsync", "rename"]


@pytest.mark.parametrize("step", STEPS)
def test_a_step_that_fails_is_named_and_the_old_file_stays(path, step, monkeypatch):
    file = DataFile(path)
    save(file, {"old": b"1"})

    def fail(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    # The disk is what is made to fail here; strace does the same to a whole daemon elsewhere.
    if step == "rename":
        monkeypatch.setattr(type(path), "rename", fail)
    else:
        monkeypatch.setattr(os, step, fail)
    with pytest.raises(DiskError, match=r"No space left") as caught:
        save(file, {"new": b"2"})
    monkeypatch.undo()
    name = {"open": "creating", "write": "writing", "fsync": "fsync of", "rename": "renaming"}[step]
    assert name in str(caught.value)
    assert json.loads(path.read_bytes()) == {"old": 1}
    assert os.listdir(path.parent) == ["my.db"]
    save(file, {"new": b"2"})
    assert json.loads(path.read_bytes()) == {"new": 2}


def test_short_writes_are_completed(path, monkeypatch):
    write = os.write
    monkeypatch.setattr(os, "write", lambda file, data: write(file, data[:7]))
    content = {str(n): b'"%d"' % n for n in range(100)}
    save(DataFile(path), content)
    monkeypatch.undo()
    assert items_of(DataFile(path).load()) == content


def test_a_file_that_another_program_wrote_meanwhile_is_kept_aside(path):
    file = DataFile(path)
    file.load()
    save(file, {"ours": b"1"})
    assert not file.changed()
    path.with_suffix(".new").write_bytes(b'{"theirs":2}')
    path.with_suffix(".new").rename(path)
    assert file.changed()
    save(file, {"ours": b"3"})
    assert json.loads(path.read_bytes()) == {"ours": 3}
    (aside,) = path.parent.glob("my.db.replaced-*")
    assert aside.read_bytes() == b'{"theirs":2}'


@pytest.mark.parametrize("content", [b'{"theirs":2}', None])
def test_where_there_are_no_hard_links_what_is_kept_is_a_copy(path, content, monkeypatch):
    def no_links(*_args, **_kwargs):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    file = DataFile(path, backups=1)
    save(file, {"ours": b"1"})
    old = content or path.read_bytes()
    if content:
        path.write_bytes(content)
    monkeypatch.setattr(os, "link", no_links)
    save(file, {"ours": b"3"})
    assert json.loads(path.read_bytes()) == {"ours": 3}
    (aside,) = path.parent.glob("my.db.replaced-*" if content else "my.db.backup-*")
    assert aside.read_bytes() == old


def test_leftovers_of_killed_saves_are_swept_and_nothing_else(path):
    keep = ["my.db", "my.db.tmp", "my.db.tmp-0123", "other.db.tmp-01234567", "my.db.tmp-0123456g"]
    for name in [*keep, "my.db.tmp-01234567", "my.db.tmp-abcdef01"]:
        path.with_name(name).touch()
    DataFile(path).sweep()
    assert sorted(os.listdir(path.parent)) == sorted(keep)
