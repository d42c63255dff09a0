"""Contents as text: what was written is read back, and anything else is refused, never worse."""

from __future__ import annotations

import contextlib
import io
import json

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pickledbd_client import formats
from pickledbd_client.calls import PART_BYTES, WHOLE_BYTES
from pickledbd_client.formats import READERS, WRITERS
from pickledbd_client.raw import Entry, Part, Request
from pickledbd_protocol import InvalidValue

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=6)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)
ITEMS = st.dictionaries(TEXT, VALUES, max_size=8)
TTLS = st.dictionaries(TEXT, st.integers(1, 2**40), max_size=8)


def entries_of(text, form, *, seekable=True):
    file = io.BytesIO(text)
    if not seekable:
        file.seekable = lambda: False
    return list(READERS[form](file, "it"))


@pytest.mark.parametrize("form", ["json", "jsonl"])
@given(parts=st.lists(st.tuples(ITEMS, TTLS), max_size=4), seekable=st.booleans())
def test_what_is_written_is_read_back(form, parts, seekable):
    seen = set()
    cut = []
    for items, ttls in parts:  # as a dump tells them: no key comes twice
        new = {key: value for key, value in items.items() if key not in seen}
        seen |= new.keys()
        cut.append(Part(new, {key: ttl for key, ttl in ttls.items() if key in new}))
    entries = entries_of(b"".join(WRITERS[form](cut)), form, seekable=seekable)
    told = [(orjson.loads(entry.key), orjson.loads(entry.value)) for entry in entries]
    assert told == [item for part in cut for item in part.items.items()]
    ttls = [part.ttls.get(key) for part in cut for key in part.items]
    assert [entry.ttl_ms for entry in entries] == (ttls if form == "jsonl" else [None] * len(ttls))


@pytest.mark.parametrize("indent", [None, 0, 1])
@given(items=ITEMS)
def test_any_layout_of_an_object_is_read(items, indent):
    text = json.dumps(items, indent=indent).encode()
    read = {orjson.loads(e.key): orjson.loads(e.value) for e in entries_of(text, "json")}
    assert read == items


def test_a_line_without_end_is_not_read_to_its_end(monkeypatch):
    monkeypatch.setattr(formats, "LINE_MAX", 1000)
    good = b'{"key":"a","value":"' + b"x" * 978 + b'"}'
    assert len(entries_of(good, "jsonl")) == 1
    file = io.BytesIO(good[:-2] + b"x" * 2000)
    with pytest.raises(InvalidValue, match="line 1 of it: it is over 1,000 bytes"):
        list(READERS["jsonl"](file, "it"))
    assert file.tell() == 1001


ALMOST = st.lists(
    st.sampled_from(
        [
            *(b'{\n"a":', b"1", b',\n"b":', b"\n}\n", b"{}", b"[", b"]", b"\\", b'"', b"\xff"),
            *(b"\n", b'{"key":"a","value":', b"}\n", b',"ttl":', b"-1", b"1e999", b"9" * 20),
            *(b"[" * 300, b"]" * 300, b'"\\ud800"', b"\0", b"null", b"NaN"),
        ]
    ),
    max_size=8,
).map(b"".join)


@pytest.mark.parametrize("form", ["json", "jsonl"])
@given(text=st.binary(max_size=30) | ALMOST)
def test_whatever_is_read_gives_entries_or_is_refused(form, text):
    entries = []
    with contextlib.suppress(InvalidValue):
        entries = entries_of(text, form)
    for entry in entries:
        orjson.loads(b"{%b:%b}" % (entry.key, entry.value))
        assert entry.ttl_ms is None or entry.ttl_ms > 0


@given(st.lists(st.tuples(st.integers(0, 60_000), st.none() | st.integers(1, 10**12)), max_size=12))
def test_a_request_has_all_entries_in_order_in_parts_of_some_size(sizes):
    request = Request(token=7)
    entries = [
        Entry(b'"%d"' % number, b'"%b"' % (b"x" * size), ttl)
        for number, (size, ttl) in enumerate(sizes)
    ]
    for entry in entries:
        request.add(entry)
    parts = request.parts()
    assert request.count == len(entries)
    assert sum(len(part) + 160 for part in parts) <= request.bytes
    told = [orjson.loads(part) for part in parts]
    assert [key for part in told for key in part["items"]] == [str(n) for n in range(len(sizes))]
    assert {key: ttl for part in told for key, ttl in part.get("ttls", {}).items()} == {
        str(n): ttl for n, (_, ttl) in enumerate(sizes) if ttl
    }
    for number, (part, text) in enumerate(zip(told, parts, strict=True)):
        assert part["token"] == 7
        assert part.get("ttls", {}).keys() <= part["items"].keys()
        limit = PART_BYTES if number else WHOLE_BYTES
        assert len(part["items"]) <= 1 or len(text) <= limit + 300
