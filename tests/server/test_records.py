"""The journal's records: `decode` gives back what was encoded, or None; never an exception."""

from __future__ import annotations

import json
import zlib

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pickledbd import records
from pickledbd.records import Answer, answer_of, decode

texts = st.text(st.characters(exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
contents = st.dictionaries(texts, values, max_size=5)
numbers = st.integers(0, 2**53)
answers = st.builds(
    lambda client, number, at, budget_ms, result: Answer(
        client, number, at, budget_ms, orjson.dumps(result)
    ),
    texts,
    numbers,
    numbers,
    numbers,
    contents,
)
lines = st.one_of(
    st.builds(
        lambda sets, removed, clear, answer, commit, batch: records.effects(
            {key: orjson.dumps(value) for key, value in sets.items()},
            removed,
            clear=clear,
            answer=answer,
            commit=commit,
            batch=batch,
        ),
        contents,
        st.lists(texts),
        st.booleans(),
        st.none() | answers,
        st.none() | numbers,
        st.none() | numbers,
    ),
    st.builds(records.synced, numbers),
    st.builds(records.based_on, st.text("0123456789abcdef", min_size=64, max_size=64), numbers),
    st.builds(
        lambda number, base, previous, kept, forgotten: records.head(
            number, base=base, previous=previous, answers=kept, forgotten=forgotten
        ),
        numbers,
        st.none() | st.just("ab" * 32),
        st.none() | st.tuples(numbers, numbers),
        st.lists(answers, max_size=3),
        numbers,
    ),
)


@given(contents)
def test_what_was_encoded_is_decoded(content):
    line = records.encode(orjson.dumps(content))
    assert decode(line) == content
    assert line.count(b"\n") == 1
    assert b"\0" not in line  # or it could not be told from what the disk never wrote


@given(contents, st.lists(texts), st.booleans(), st.none() | answers, st.none() | numbers)
def test_effects_tell_just_what_was_done(sets, removed, clear, answer, commit):
    line = records.effects(
        {key: orjson.dumps(value) for key, value in sets.items()},
        removed,
        clear=clear,
        answer=answer,
        commit=commit,
    )
    told = decode(line)
    assert list(told.get("set", {}).items()) == list(sets.items())
    assert told.get("remove", []) == removed
    assert told.get("clear", False) == clear
    assert told.get("commit") == commit
    assert answer_of(told) == answer


@given(st.lists(answers, max_size=5), numbers)
def test_a_head_tells_all_answers(kept, forgotten):
    line = records.head(7, base="x", previous=(6, 99), answers=kept, forgotten=forgotten)
    told = decode(line)
    assert [answer_of(each) for each in told["answers"]] == kept
    assert (told["journal"], told["number"], told["base"]) == (records.FORMAT, 7, "x")
    assert (told["previous"], told["forgotten"]) == ([6, 99], forgotten)
    assert (told["fence"], told["expires"]) == (0, {})


@given(st.binary() | st.binary().map(lambda some: some + b"\n"))
def test_any_bytes_are_a_record_or_none(line):
    assert decode(line) is None or line == records.encode(line[records.HEADER_BYTES : -1])


@given(st.binary())
def test_any_text_with_a_good_checksum_is_an_object_or_none(text):
    line = records.encode(text)
    found = decode(line)
    try:
        expected = orjson.loads(text)
    except orjson.JSONDecodeError:
        expected = None
    assert found == (expected if isinstance(expected, dict) else None)


@given(lines, st.data())
def test_a_record_with_a_changed_byte_is_none(line, data):
    place = data.draw(st.integers(0, len(line) - 1))
    byte = data.draw(st.integers(0, 255))
    assume(line[place] != byte)
    assert decode(line[:place] + bytes([byte]) + line[place + 1 :]) is None


@given(lines, st.data())
def test_a_record_that_was_cut_or_has_more_is_none(line, data):
    assert decode(line[: data.draw(st.integers(0, len(line) - 1))]) is None
    assert decode(line[data.draw(st.integers(1, len(line))) :]) is None
    more = data.draw(st.binary(min_size=1))
    assert decode(line + more) is None
    assert decode(more + line) is None


@pytest.mark.parametrize("text", [b"[]", b"1", b"null", b'"x"', b"", b"{", b"\xff"])
def test_what_is_no_object_is_no_record(text):
    assert decode(records.encode(text)) is None


def test_the_layout_is_that_of_the_page():
    text = b'{"set":{"a":1}}'
    length = b"%08x" % len(text)
    assert records.encode(text) == b"%b %08x %b\n" % (length, zlib.crc32(length + text), text)
    assert records.effects({"a": b"1"}) == records.encode(text)
    assert json.loads(records.synced(5)[records.HEADER_BYTES :]) == {"synced": 5}
