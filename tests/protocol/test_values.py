"""The value rules: everything that may be stored comes back, everything else is refused."""

from __future__ import annotations

import dataclasses
import datetime
import enum
import json
import tracemalloc
import uuid

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pickledbd_protocol import (
    InvalidKey,
    InvalidValue,
    canonical,
    canonical_items,
    check_integers,
    encode_items,
    encode_key,
    encode_value,
    restore,
)
from pickledbd_protocol.values import INT_MAX, INT_MIN, MAX_DEPTH

texts = st.text(st.characters(exclude_categories=["Cs"]))
names = st.one_of(texts, st.sampled_from(["$binary", "$$binary", "$$$binary", "base64", "subType"]))
scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(INT_MIN, INT_MAX),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
    st.binary(),
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=3)
)


@given(values)
def test_what_is_stored_comes_back_the_same_through_client_and_daemon(value):
    kept = canonical("k", orjson.loads(encode_value("k", value)))
    assert json.loads(kept) == orjson.loads(kept)
    assert restore(orjson.loads(kept)) == value


@given(st.dictionaries(names, values, max_size=5))
def test_many_items_are_written_as_each_alone(items):
    together = orjson.loads(encode_items(items))
    assert together == {key: orjson.loads(encode_value(key, items[key])) for key in items}
    assert {key: restore(value) for key, value in together.items()} == items


def test_a_user_s_own_dict_that_looks_like_bytes_survives():
    for value in (
        {"$binary": {"base64": "AP8=", "subType": "00"}},
        {"$binary": b"\x00"},
        {"$$binary": {"$binary": [b"x", {"$binary": 1}]}},
        {"$binary": 1, "b": 2},
        {"$$$binary": None},
    ):
        assert restore(orjson.loads(encode_value("k", value))) == value


def test_a_foreign_dict_of_nearly_that_shape_is_left_as_it_is():
    for inner in (
        5,
        {"base64": "AP8="},
        {"base64": "AP8=", "subType": "01"},
        {"base64": "not base64!", "subType": "00"},
        {"base64": "\u00e9", "subType": "00"},
        {"base64": 1, "subType": "00"},
    ):
        assert restore({"$binary": inner}) == {"$binary": inner}


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Point:
    x: float
    tags: dict


def test_what_orjson_renders_is_rendered():
    moment = datetime.datetime(2026, 1, 2, 3, 4, 5, tzinfo=datetime.UTC)
    identity = uuid.uuid4()
    value = [moment, identity, Colour.RED, Point(1.5, {"a": None, "b": b"\x01"}), (1, 2)]
    assert restore(orjson.loads(encode_value("k", value))) == [
        "2026-01-02T03:04:05+00:00",
        str(identity),
        "red",
        {"x": 1.5, "tags": {"a": None, "b": b"\x01"}},
        [1, 2],
    ]


def nested(depth):
    value = 1
    for _ in range(depth):
        value = [value]
    return value


class Weekday(enum.Enum):
    NAN = float("nan")


circular = []
circular.append(circular)

REFUSED = {
    "NaN": (float("nan"), "NaN"),
    "an infinity": ([1, {"a": -float("inf")}], "infinities"),
    "a NaN beside a None": ([None, float("nan")], "NaN"),
    "a NaN in a dataclass": (Point(float("nan"), {}), "NaN"),
    "a NaN as an enum's value": ([Weekday.NAN], "NaN"),
    "an integer over 64 bits": (2**64, "64 bits"),
    "an integer under 64 bits": (-(2**63) - 1, "64 bits"),
    "2**70 in a list": ([2**70], "64 bits"),
    "a set": ({1}, "a set is not JSON; store a list"),
    "an object": ([object()], "object is not JSON"),
    "a function": (nested, "function is not JSON"),
    "a bytearray": (bytearray(b"x"), "store bytes"),
    "a complex number": ({"a": 1j}, "complex is not JSON"),
    "int keys": ({"a": {1: 2}}, "key that is not a str"),
    "bytes as a key": ({b"a": 1}, "key that is not a str"),
    "depth 5,000": (nested(5000), "nested"),
    "a list in itself": (circular, "nested"),
    "a lone surrogate": ("\ud800", "surrogate"),
    "a lone surrogate in a key": ({"\udfff": 1}, "surrogate"),
    "bytes beside an object": ({"$binary": b"x", "o": object()}, "object is not JSON"),
}


@pytest.mark.parametrize("what", REFUSED)
def test_refused_naming_the_key_and_the_reason(what):
    value, reason = REFUSED[what]
    for encode in (
        lambda: encode_value("the key", value),
        lambda: encode_items({"good": 1, "the key": value, "other": None}),
    ):
        with pytest.raises(InvalidValue, match="'the key'") as caught:
            encode()
        assert reason in str(caught.value)


def test_a_key_with_a_lone_surrogate_is_refused():
    with pytest.raises(InvalidKey, match=r"'a\\ud800' .* lone surrogate"):
        encode_key("a\ud800")
    with pytest.raises(InvalidKey, match="lone surrogate"):
        encode_items({"fine": 1, "a\ud800": 1})


def test_a_long_key_is_shortened_in_messages():
    with pytest.raises(InvalidValue) as caught:
        encode_value("k" * 100_000, {1})
    assert len(str(caught.value)) < 300
    assert "100000 characters" in str(caught.value)


def test_depth_is_counted_in_the_json_and_ends_at_the_limit():
    assert orjson.loads(canonical("k", nested(MAX_DEPTH))) == nested(MAX_DEPTH)
    for value in (nested(MAX_DEPTH + 1), {"a": nested(MAX_DEPTH)}, nested(250), nested(1000)):
        with pytest.raises(InvalidValue, match=r"'k'.*200 levels"):
            canonical("k", value)
    # many brackets are no depth
    assert canonical("k", [[]] * 1000) == orjson.dumps([[]] * 1000)


def test_kept_bytes_own_no_oversized_buffer():
    """orjson's own bytes object keeps the whole buffer it was written into, about 4 KB."""
    tracemalloc.start()
    kept = [canonical("k", {"a": number}) for number in range(1000)]
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < len(kept) * 200


@given(st.integers(-(2**200), 2**200), st.booleans())
def test_integers_in_json_text_are_refused_exactly_outside_64_bits(number, inside):
    text = b'{"a":[%d],"b":"x"}' % number
    if INT_MIN <= number <= INT_MAX:
        check_integers(text)
        assert orjson.loads(text)["a"] == [number]
    else:
        with pytest.raises(InvalidValue, match="over 64 bits"):
            check_integers(text)
    # digits in strings and fractions are no integers
    check_integers(b'{"a":"%d","b":0.%d}' % (number, abs(number)))
    check_integers(b"[1.5,%d]" % (number % 1000 if inside else 0))


def test_an_integer_of_ten_thousand_digits_is_refused_shortly():
    with pytest.raises(InvalidValue) as caught:
        check_integers(b"[1%s]" % (b"0" * 10_000))
    assert len(str(caught.value)) < 100


BETWEEN = 8_317_264_559_017_423_916  # what _dump_each puts between values
with_separators = st.recursive(
    st.sampled_from([BETWEEN, -BETWEEN, BETWEEN // 10, f",{BETWEEN},", 1, "a", None, True])
    | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["a", f",{BETWEEN},"]), inner, max_size=3)
    ),
)


@given(st.dictionaries(st.text(max_size=2), with_separators, max_size=6))
def test_many_values_have_the_texts_that_each_of_them_has(items):
    assert canonical_items(items) == {key: canonical(key, value) for key, value in items.items()}


def test_of_many_values_the_one_that_is_nested_too_deeply_is_named():
    deep = nested(MAX_DEPTH)
    assert orjson.loads(canonical_items({"a": 1, "b": deep})["b"]) == deep
    with pytest.raises(InvalidValue, match="'b'"):
        canonical_items({"a": "x" * 500, "b": [deep]})
