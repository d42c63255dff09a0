"""What is kept takes no more than its room."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc

import pytest

from cached import asks, keeps


def test_without_room_each_read_asks(daemon, other):
    other.set("a", 1)
    with contextlib.closing(daemon.client(cache_bytes=0)) as db:
        assert db.get("a") == db["a"] == 1
        assert asks(daemon, db)
        assert db.get("missing") is None
        assert asks(daemon, db, "missing")


@pytest.mark.parametrize("wrong", [-1, 1.5, "1", True, None, 2.0])
def test_room_is_a_number_of_bytes(daemon, wrong):
    with pytest.raises(ValueError, match="cache_bytes"):
        daemon.client(cache_bytes=wrong)


def kept_bytes(db, keys):
    """How much more memory there is in use once `keys` have been read."""
    gc.collect()
    tracemalloc.start()
    try:
        for key in keys:
            db.get(key)
            db.get(key)  # what is read again is kept in another form
        gc.collect()
        return tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()


KINDS = {
    "small": lambda n: n,
    "a long str": lambda _: "x" * 2000,
    "not ascii": lambda _: "\N{PILE OF POO}" * 300,
    "bytes": lambda _: b"x" * 500,
    "a flat dict": lambda n: {f"member {n} {m}": n * 10**9 + m for m in range(20)},
    "a flat list": lambda n: [n * 10**9 + m for m in range(50)],
    "a nested list": lambda n: [[n, m] for m in range(30)],
    "nested, with bytes": lambda n: [[n, b"x" * 100]],
    "missing": None,
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_kept_takes_no_more_than_its_room(daemon, other, kind):
    bounds_are_held(daemon, other, kind, 3000, 2**17)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["small", "a flat dict", "missing"])
def test_what_is_kept_of_many_takes_no_more_than_its_room(daemon, other, kind):
    bounds_are_held(daemon, other, kind, 200_000, 2**21)


def bounds_are_held(daemon, other, kind, count, room):
    keys = [f"key {n}" for n in range(count)]
    if KINDS[kind]:
        for start in range(0, count, 5000):
            other.update({keys[n]: KINDS[kind](n) for n in range(start, min(count, start + 5000))})
    with contextlib.closing(daemon.client(cache_bytes=room)) as db:
        db.get("warm")
        taken = kept_bytes(db, iter(f"key {n}" for n in range(count)))
        # what the memory of a request and of tracemalloc's own makes a little more
        assert taken < room * 1.25 + 100_000
        assert keeps(daemon, db, keys[-1])
        assert asks(daemon, db, keys[0])


def test_values_that_grow_take_no_more_than_the_room(daemon, other):
    """The keys are always the same, and each is replaced by more."""
    room = 2**20
    keys = [f"key {n}" for n in range(100)]
    with contextlib.closing(daemon.client(cache_bytes=room)) as db:
        for size in (1, 100, 10_000, 200_000):
            other.update(dict.fromkeys(keys, "x" * size))
            assert kept_bytes(db, keys) < room * 1.25 + 100_000


@pytest.mark.parametrize("length", [3000, 100_000])
def test_a_value_that_takes_more_as_objects_than_as_text_leaves_the_room_as_it_is(
    daemon, other, length
):
    """Whether or not its text has room, a list of its items has not."""
    room, value = 2**17, [7] * length
    keys = [f"key {n}" for n in range(2000)]
    other.update(dict.fromkeys(keys, "x" * 500) | {"a": value})
    with contextlib.closing(daemon.client(cache_bytes=room)) as db:
        for _ in range(100):
            assert db.get("a") == value
        assert kept_bytes(db, keys) < room * 1.25 + 100_000


def test_what_is_read_often_stays_whatever_else_is_read(daemon, other):
    count = 10_000
    other.update({f"cold {n}": n for n in range(count)} | {"hot": [1]})
    with contextlib.closing(daemon.client(cache_bytes=2**18)) as db:
        requests = 0
        for n in range(count):
            assert db.get(f"cold {n}") == n
            before = db._link.mark()
            assert db.get("hot") == [1]
            requests += db._link.mark() != before
        assert requests == 1
        assert keeps(daemon, db, "hot")
        assert asks(daemon, db, "cold 0")


def test_a_value_larger_than_the_room_is_read_each_time_and_drives_nothing_out(daemon, other):
    large = "x" * 3 * 2**20
    other.update({"a": 1, "large": large})
    with contextlib.closing(daemon.client(cache_bytes=2**21)) as db:
        assert db.get("a") == 1
        assert db.get("large") == db.get("large") == large
        assert asks(daemon, db, "large")
        assert keeps(daemon, db, "a")
        other.set("large", "small by now")
        assert db.get("large") == "small by now"
        assert keeps(daemon, db, "large")
