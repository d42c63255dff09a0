"""The store beside a dict: its log, its way back, and batches that go in while writes come."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pickledbd import table
from pickledbd.store import Store
from pickledbd.table import Table

# Few keys, so that they meet each other, and chunks of few keys, so that there are many chunks
keys = st.sampled_from([f"k{n}" for n in range(15)])
values = st.sampled_from([b"1", b"2", b'"a"', b"[]"])
contents = st.dictionaries(keys, values, max_size=15)
changes = st.lists(
    st.one_of(
        st.tuples(st.just("set"), keys, values),
        st.tuples(st.just("remove"), keys),
        st.tuples(st.just("clear")),
    ),
    max_size=15,
)
on_keys = st.lists(
    st.one_of(st.tuples(st.just("set"), keys, values), st.tuples(st.just("remove"), keys)),
    max_size=6,
)


@pytest.fixture(autouse=True, scope="module")
def _small_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "CHUNK", 3)
        yield


def table_of(content):
    made = Table()
    made.extend(list(content), list(content.values()))
    return made


def items(store):
    return [pair for part in store.view() for pair in zip(*part, strict=True)]


def apply(store, model, change):
    name, *args = change
    before = model.get(args[0]) if args else None
    if name == "set":
        store.set(*args)
        model[args[0]] = args[1]
    elif name == "remove":
        assert store.remove(*args) == before
        model.pop(args[0], None)
    else:
        store.clear()
        model.clear()


@given(contents, changes, changes)
def test_what_is_rolled_back_leaves_no_trace(content, kept, undone):
    store, model = Store(table_of(content)), dict(content)
    for change in kept:
        apply(store, model, change)
    start = store.logged()
    view = store.view()
    after = dict(model)
    for change in undone:
        apply(store, after, change)
        assert list(after.items()) == items(store)
    store.roll_back(start)
    assert items(store) == list(model.items())  # and in the same order
    assert store.logged() == start
    assert (len(store), store.last_key()) == (len(model), next(reversed(model), None))
    assert [pair for part in view for pair in zip(*part, strict=True)] == list(model.items())
    store.roll_back()
    assert items(store) == list(content.items())


@given(contents, changes, changes)
def test_what_is_committed_is_not_rolled_back(content, kept, undone):
    store, model = Store(table_of(content)), dict(content)
    for change in kept:
        apply(store, model, change)
    store.commit()
    assert store.logged() == 0
    after = dict(model)
    for change in undone:
        apply(store, after, change)
    store.roll_back()
    assert items(store) == list(model.items())
    for _ in store.free():
        pass
    assert items(store) == list(model.items())


@given(contents, changes, changes)
def test_the_effect_of_changes_applied_elsewhere_comes_to_the_same(content, first, second):
    store, model = Store(table_of(content)), dict(content)
    for change in first:
        apply(store, model, change)
    start, copy = store.logged(), dict(model)
    for change in second:
        apply(store, model, change)
    effect = store.effect(start)
    if effect.clear:
        copy.clear()
    for key in effect.removed:
        copy.pop(key, None)
    copy |= effect.sets
    assert list(copy.items()) == items(store)


@given(contents, contents, st.booleans(), st.lists(on_keys, max_size=8))
def test_a_batch_that_goes_in_while_writes_come_counts_at_once(content, batch, clear, turns):
    store = Store(table_of(content))
    changes = store.changes
    store.adopt(table_of(batch), clear=clear)
    model = dict(batch) if clear else content | batch
    assert store.changes - changes == len(batch) + (len(content) if clear else 0)
    folding = store.fold()
    for number, turn in enumerate(turns):
        before = dict(model)
        for change in turn:
            apply(store, model, change)
        if number % 3 == 2:  # a turn that the journal did not take
            store.roll_back()
            model = before
        else:
            store.commit()
        for key in [f"k{n}" for n in range(15)]:
            assert store.get(key) == model.get(key)
            assert (key in store) == (key in model)
        next(folding, None)
    for _ in folding:
        pass
    assert not store.folding
    assert items(store) == list(model.items())
    assert (len(store), store.last_key()) == (len(model), next(reversed(model), None))


@given(contents, changes)
def test_changes_are_counted(content, steps):
    store, model = Store(table_of(content)), dict(content)
    count = 0
    for change in steps:
        count += len(model) if change[0] == "clear" else change[0] == "set" or change[1] in model
        apply(store, model, change)
    assert store.changes == count
