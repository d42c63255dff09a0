"""The journal's records: `decode` gives back what was encoded, or None; never an exception."""

from __future__ import annotations

import json
import zlib

import orjson
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from pickledbd import records
from pickledbd.records import Answer, answer_of, decode, encode, form

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
records_texts = st.one_of(
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
places = st.tuples(numbers, numbers)  # of a journal, and in it


@given(contents, places)
def test_what_was_encoded_is_decoded(content, place):
    line = encode([orjson.dumps(content)], *place)
    assert decode(line, *place) == form(line) == content
    assert line.count(b"\n") == 1
    assert b"\0" not in line  # or it could not be told from what the disk never wrote


@given(st.lists(contents), places)
def test_records_follow_one_another(several, place):
    number, start = place
    lines = encode(map(orjson.dumps, several), number, start)
    found = []
    for line in lines.splitlines(keepends=True):
        found.append(decode(line, number, start))
        start += len(line)
    assert found == several


@given(records_texts, places, places)
def test_a_record_is_none_in_another_place_or_journal(text, place, other):
    assume(place != other)
    line = encode([text], *place)
    assert decode(line, *other) is None
    assert form(line) == orjson.loads(text)


@given(contents, st.lists(texts), st.booleans(), st.none() | answers, st.none() | numbers)
def test_effects_tell_just_what_was_done(sets, removed, clear, answer, commit):
    text = records.effects(
        {key: orjson.dumps(value) for key, value in sets.items()},
        removed,
        clear=clear,
        answer=answer,
        commit=commit,
    )
    told = orjson.loads(text)
    assert list(told.get("set", {}).items()) == list(sets.items())
    assert told.get("remove", []) == removed
    assert told.get("clear", False) == clear
    assert told.get("commit") == commit
    assert answer_of(told) == answer


@given(st.lists(answers, max_size=5), numbers)
def test_a_head_tells_all_answers(kept, forgotten):
    text = records.head(7, base="x", previous=(6, 99), answers=kept, forgotten=forgotten)
    told = orjson.loads(text)
    assert [answer_of(each) for each in told["answers"]] == kept
    assert (told["journal"], told["number"], told["base"]) == (records.FORMAT, 7, "x")
    assert (told["previous"], told["forgotten"]) == ([6, 99], forgotten)
    assert told["clock"].keys() == {"boot", "ahead_ns", "now"}


@given(st.binary() | st.binary().map(lambda some: some + b"\n"), places)
def test_any_bytes_are_a_record_or_none(line, place):
    text = line[records.HEADER_BYTES : -1]
    assert decode(line, *place) is None or line == encode([text], *place)


@given(st.binary(), places)
def test_any_text_with_a_good_checksum_is_an_object_or_none(text, place):
    found = decode(encode([text], *place), *place)
    try:
        expected = orjson.loads(text)
    except orjson.JSONDecodeError:
        expected = None
    assert found == (expected if isinstance(expected, dict) else None)


@given(records_texts, places, st.data())
def test_a_record_with_a_changed_byte_is_none(text, place, data):
    line = encode([text], *place)
    changed = data.draw(st.integers(0, len(line) - 1))
    byte = data.draw(st.integers(0, 255))
    assume(line[changed] != byte)
    assert decode(line[:changed] + bytes([byte]) + line[changed + 1 :], *place) is None


@given(records_texts, places, st.data())
def test_a_record_that_was_cut_or_has_more_is_none(text, place, data):
    line = encode([text], *place)
    more = data.draw(st.binary(min_size=1))
    for other in (
        line[: data.draw(st.integers(0, len(line) - 1))],
        line[data.draw(st.integers(1, len(line))) :],
        line + more,
        more + line,
    ):
        assert decode(other, *place) is None
        assert form(other) is None


@pytest.mark.parametrize("text", [b"[]", b"1", b"null", b'"x"', b"", b"{", b"\xff"])
def test_what_is_no_object_is_no_record(text):
    assert decode(encode([text], 1, 0), 1, 0) is None


def test_the_layout_is_that_of_the_page():
    text = b'{"set":{"a":1}}'
    length = b"%08x" % len(text)
    checksum = zlib.crc32(b"a %x %b %b" % (31, length, text))
    assert encode([text], 10, 31) == b"%b %08x %b\n" % (length, checksum, text)
    assert records.effects({"a": b"1"}) == text
    assert json.loads(records.synced(5)) == {"synced": 5}
