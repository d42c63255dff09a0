"""Files damaged at random: a start finds a prefix of the truth, or refuses with one clear line."""

from __future__ import annotations

import contextlib
import json
import tempfile
from pathlib import Path

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from pickledbd import records
from pickledbd.journal import find_journals, journal_path
from pickledbd.records import Answer
from pickledbd.recovery import recover, scan
from pickledbd.snapshot import DataFile, Unreadable
from pickledbd_protocol import canonical
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
        head = records.head(number, base=base, previous=previous, answers=[], forgotten=0)
        text = records.encode([head], number, 0)
        for n in range(12):
            key, value = f"key{n % 7}", b'"%b"' % (b"%d" % (n * number) * 30)
            gone = f"saved{n}" if n % 3 == 0 else None
            answer = Answer("client", 100 * number + n, 1, 1, b"{}")
            effects = records.effects({key: value}, [gone] if gone else [], answer=answer)
            text += records.encode([effects], number, len(text))
            if gone:
                content.pop(gone, None)
            content[key] = value
            truths.append(tuple(content.items()))
            if n == 6:
                text += records.encode([records.synced(len(text))], number, len(text))
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


HARMS = [flip, cut, remove, insert, nuls, duplicate_record, swap_records]
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
        scans = [scan(number, journal) for number, journal in find_journals(path).items()]
        if not any(each.effects or each.damaged for each in scans):
            # Such journals a clean stop leaves too, or a start that was killed; then the file is
            # anybody's to edit, and is taken as it is: nothing tells damage from that
            with contextlib.suppress(json.JSONDecodeError, UnicodeDecodeError):
                items = json.loads(path.read_bytes()).items()
                truths.append(tuple((key, canonical(key, value)) for key, value in items))
        assert found_after(path) in [None, *truths]


@settings(max_examples=300)
@given(
    st.sampled_from(["my.db.journal.1", "my.db.journal.2"]),
    st.sampled_from([duplicate_record, swap_records]),
    st.integers(0, 10**6),
    st.integers(1, 700),
)
def test_records_twice_or_in_another_order_are_refused_where_they_count(name, harm, at, size):
    with tempfile.TemporaryDirectory() as directory:
        path, truths = laid_out(Path(directory))
        harmed = path.with_name(name)
        whole = harmed.read_bytes()
        data = bytearray(whole)
        harm(data, at, size, b"")
        assume(data != whole)
        harmed.write_bytes(data)
        # Behind the length that the second journal tells of the first, nothing counts
        is_behind = name.endswith(".1") and data.startswith(whole)
        assert found_after(path) == (truths[-1] if is_behind else None)


@given(st.binary(max_size=200))
def test_a_journal_of_any_bytes_is_refused_or_holds_nothing(junk):
    with tempfile.TemporaryDirectory() as directory:
        path, truths = laid_out(Path(directory))
        journal_path(path, 2).unlink()
        journal_path(path, 1).write_bytes(junk)
        assert found_after(path) in (None, truths[0])
