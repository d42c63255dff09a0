"""AsyncPickleDB beside PickleDB: the same names, the same calls, the same answers."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from looped import async_client, told
from pickledbd_client import AsyncPickleDB, PickleDB
from support import Daemon

SPELLED = {
    "__setitem__": "set",
    "__delitem__": "remove",  # which tells whether it was there, and raises nothing
    "__contains__": "exists",
    "__len__": "len",
    "__iter__": "__aiter__",
    "__enter__": "__aenter__",
    "__exit__": "__aexit__",
}
"""What cannot be awaited, and how else it is written."""

ADDED = {"exists", "len", "replace", "location"}
"""Public names of AsyncPickleDB alone; PickleDB has its location as a plain attribute."""


def public(cls):
    return {name for name in dir(cls) if not name.startswith("_")}


def test_every_public_name_is_there_or_has_another_spelling():
    assert public(AsyncPickleDB) == public(PickleDB) | ADDED
    special = {
        name
        for name, found in vars(PickleDB).items()
        if name.startswith("__") and inspect.isfunction(found)
    }
    for name in special:
        assert inspect.isfunction(vars(AsyncPickleDB)[SPELLED.get(name, name)]), name
    assert SPELLED.keys() <= special


def test_parameters_are_the_same_and_what_waits_is_a_coroutine():
    same = {name for name in public(PickleDB) if inspect.isfunction(getattr(PickleDB, name))}
    for name in same | {"__init__", "__getitem__"}:
        theirs, ours = getattr(PickleDB, name), getattr(AsyncPickleDB, name)
        assert (
            list(inspect.signature(theirs).parameters.values())[1:]
            == list(inspect.signature(ours).parameters.values())[1:]
        ), name
        if name in ("keys", "items", "values"):
            assert inspect.isasyncgenfunction(ours)
        else:
            assert inspect.iscoroutinefunction(ours) is (
                name not in ("__init__", "batch", "lock", "watch")
            ), name


# The same calls

DEEP = json.loads("[" * 201 + "]" * 201)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=5)
keys = st.sampled_from(["", "a", "b", "$binary", "\n", 1, None, 2.5]) | texts
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | texts | st.binary(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=5,
)
wrong_keys = st.just("\ud800")
wrong_values = st.sampled_from([{1}, 2**64, {1: 2}, DEEP, "\ud800"])
any_keys = st.one_of(keys, keys, keys, wrong_keys)
any_values = st.one_of(values, values, values, wrong_values)
items = st.dictionaries(any_keys, any_values, max_size=3) | st.dictionaries(keys, values)
some_keys = st.lists(any_keys, max_size=3)
in_batches = st.one_of(
    st.tuples(st.just("set"), any_keys, any_values),
    st.tuples(st.just("__setitem__"), keys, values),
    st.tuples(st.just("remove"), keys),
    st.tuples(st.just("__delitem__"), keys),
    st.tuples(st.just("set_many"), items),
    st.tuples(st.just("update"), items),
    st.tuples(st.just("remove_many"), st.lists(keys, max_size=3)),
    st.tuples(st.just("purge")),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), any_keys, any_values),
        st.tuples(st.sampled_from(["get", "__getitem__", "remove", "pop", "exists"]), any_keys),
        st.tuples(st.sampled_from(["get", "pop", "setdefault"]), any_keys, any_values),
        st.tuples(st.sampled_from(["set_many", "update", "replace"]), items),
        st.tuples(st.sampled_from(["set_many", "replace"]), st.sampled_from([None, [("a", 1)]])),
        st.tuples(st.sampled_from(["get_many", "remove_many"]), some_keys),
        st.tuples(st.sampled_from(["popitem", "clear", "purge", "len", "ping", "load"])),
        st.tuples(st.sampled_from(["all", "iter", "keys", "items", "values", "db"])),
        st.tuples(st.just("batch"), st.lists(in_batches, max_size=4)),
    ),
    max_size=15,
)


def by_sync(db, name, *args):  # noqa: PLR0911 - a table of spellings
    match name:
        case "exists":
            return args[0] in db
        case "len":
            return len(db)
        case "load":
            return db.load() is db
        case "iter" | "keys" | "items" | "values":
            return list(iter(db) if name == "iter" else getattr(db, name)())
        case "db":
            return list(db.db.items())
        case "replace":
            db.db = args[0]
            return True
        case "batch":
            with db.batch() as batch:
                for step, *given_to_it in args[0]:
                    getattr(batch, step)(*given_to_it)
            return batch.results
    return getattr(db, name)(*args)


async def by_async(db, name, *args):
    match name:
        case "load":
            return await db.load() is db
        case "iter":
            return [key async for key in db]
        case "keys" | "items" | "values":
            return [each async for each in getattr(db, name)()]
        case "db":
            return list((await db.db).items())
        case "batch":
            async with db.batch() as batch:
                for step, *given_to_it in args[0]:
                    getattr(batch, step)(*given_to_it)
            return batch.results
    return await getattr(db, name)(*args)


@pytest.fixture
def twins(tmp_path):
    """A daemon for PickleDB, another for AsyncPickleDB, and the event loop of the latter."""
    with asyncio.Runner() as runner:
        daemons = [Daemon(tmp_path / name) for name in ("one.db", "two.db")]
        with contextlib.closing(daemons[0].client()) as ours:
            yield ours, async_client(daemons[1]), runner
        for daemon in daemons:
            daemon.check_and_stop()


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=150,
)
@given(steps)
def test_it_answers_as_pickledb_does(twins, steps):
    ours, theirs, runner = twins

    async def all_steps():
        await theirs.purge()
        found = []
        for step in steps:
            try:
                found.append(await by_async(theirs, *step))
            except Exception as error:  # noqa: BLE001 - whatever it is, both raise the same
                found.append(told(error))
        return found, list((await theirs.db).items())

    found, content = runner.run(all_steps())
    ours.purge()
    for step, answer in zip(steps, found, strict=True):
        try:
            expected = by_sync(ours, *step)
        except Exception as error:  # noqa: BLE001 - as above
            expected = told(error)
        assert answer == expected, step
    assert content == list(ours.db.items())
