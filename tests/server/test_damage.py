"""Files damaged at random: a start finds a prefix of the truth, or refuses with one clear line."""

from __future__ import annotations

import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from pickledbd import records
from pickledbd.journal import journal_path
from pickledbd.records import Answer
from pickledbd.recovery import recover
from pickledbd.snapshot import DataFile, Unreadable
from support import save_content

SAVED = {f"saved{n}": b'"%b"' % (b"s" * 40) for n in range(20)}


def laid_out(directory):
    """A data file and two journals behind it; the contents that a prefix of them may have."""
    path = directory / "my.db"
    file = DataFile(path)
    save_content(file, [(SAVED.keys(), SAVED.values())])
    file.load()
    content = dict(SAVED)
    truths = [tuple(content.items())]
    previous = None
    for number in (1, 2):
        base = file.digest if number == 1 else None
        text = records.head(number, base=base, previous=previous, answers=[], forgotten=0)
        for n in range(12):
            key, value = f"key{n % 7}", b'"%b"' % (b"%d" % (n * number) * 30)
            gone = f"saved{n}" if n % 3 == 0 else None
            answer = Answer("client", 100 * number + n, 1, 1, b"{}")
            text += records.effects({key: value}, [gone] if gone else [], answer=answer)
            if gone:
                content.pop(gone, None)
            content[key] = value
            truths.append(tuple(content.items()))
            if n == 6:
                text += records.synced(len(text))
        journal_path(path, number).write_bytes(text)
        previous = (number, len(text))
    return path, truths


def flip(data, at, size, _other):
    data[at] ^= 1 << size % 8


def cut(data, at, _size, _other):
    del data[at:]


def remove(data, at, size, _other):
    del data[at : at + size]


def insert(data, at, _size, other):
    data[at:at] = other


def nuls(data, at, size, _other):
    data[at : at + size] = bytes(len(data[at : at + size]))


def duplicate_record(data, at, _size, _other):
    lines = bytes(data).splitlines(keepends=True)
    index = at % len(lines)
    data[:] = b"".join([*lines[: index + 1], *lines[index:]])


def swap_records(data, at, size, _other):
    lines = bytes(data).splitlines(keepends=True)
    one, two = at % len(lines), size % len(lines)
    lines[one], lines[two] = lines[two], lines[one]
    data[:] = b"".join(lines)


HARMS = [flip, cut, remove, insert, nuls]
harms = st.tuples(
    st.sampled_from(HARMS), st.integers(0, 10**6), st.integers(1, 700), st.binary(max_size=40)
)
files = st.sampled_from(["my.db", "my.db.journal.1", "my.db.journal.2"])


def found_after(path):
    try:
        found = recover(DataFile(path))
    except Unreadable as error:
        refusal = str(error)
    else:
        refusal = ""
    if refusal:
        assert str(path.parent) in refusal
        assert "\n" not in refusal
        return None
    return tuple(
        (key, value)
        for keys, values in found.table.view()
        for key, value in zip(keys, values, strict=True)
    )


@settings(max_examples=600)
@given(st.lists(st.tuples(files, harms), min_size=1, max_size=3))
def test_whatever_is_damaged_a_prefix_of_the_truth_is_found_or_it_is_refused(damage):
    with tempfile.TemporaryDirectory() as directory:
        path, truths = laid_out(Path(directory))
        for name, (harm, at, size, other) in damage:
            harmed = path.with_name(name)
            data = bytearray(harmed.read_bytes())
            if data:
                harm(data, at % len(data), size, other)
                harmed.write_bytes(data)
        assert found_after(path) in [None, *truths]


@settings(max_examples=300)
@given(
    st.sampled_from(["my.db.journal.1", "my.db.journal.2"]),
    st.sampled_from([duplicate_record, swap_records]),
    st.integers(0, 10**6),
    st.integers(1, 700),
)
def test_records_twice_or_in_another_order_are_never_another_exception(name, harm, at, size):
    with tempfile.TemporaryDirectory() as directory:
        path, _ = laid_out(Path(directory))
        harmed = path.with_name(name)
        data = bytearray(harmed.read_bytes())
        harm(data, at, size, b"")
        harmed.write_bytes(data)
        found_after(path)


@given(st.binary(max_size=200))
def test_a_journal_of_any_bytes_is_refused_or_holds_nothing(junk):
    with tempfile.TemporaryDirectory() as directory:
        path, truths = laid_out(Path(directory))
        journal_path(path, 2).unlink()
        journal_path(path, 1).write_bytes(junk)
        assert found_after(path) in (None, truths[0])


@given(st.binary(max_size=200))
def test_any_line_is_what_was_encoded_or_nothing(junk):
    record = records.decode(junk)
    assert record is None or records.encode(junk[records.HEADER_BYTES : -1]) == junk
