"""The table beside an ordered dict, and its views beside copies of it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pickledbd import table
from pickledbd.table import Table

# Few keys, so that they meet each other, and chunks of few keys, so that there are many chunks
keys = st.sampled_from([f"k{n}" for n in range(30)])
values = st.binary(max_size=3)
items = st.dictionaries(keys, values, max_size=20)


def entries(parts):
    """All that a view gives, in its order."""
    return [pair for part in parts for pair in zip(*part, strict=True)]


class Compared(RuleBasedStateMachine):
    """The same steps with a table and a dict; each view with the items there were at its moment."""

    def __init__(self):
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(table, "CHUNK", 3)
        self.patch.setattr(table, "PIECE_BYTES", 9)

    @initialize(content=items)
    def fill(self, content):
        self.table = Table()
        self.table.extend(list(content), list(content.values()))
        self.model = dict(content)
        self.views = []

    def teardown(self):
        self.patch.undo()

    @rule(key=keys, value=values)
    def set(self, key, value):
        assert self.table.set(key, value) == self.model.get(key)
        self.model[key] = value

    @rule(more=items)
    def extend(self, more):
        self.table.extend(list(more), list(more.values()))
        self.model |= more

    @rule(key=keys)
    def remove(self, key):
        assert self.table.remove(key) == self.model.pop(key, None)

    @rule(some=st.lists(keys, unique=True))
    def remove_and_put_back(self, some):
        undo = []
        for key in some:
            if key in self.table:
                place = self.table.place(key)
                undo.append((key, self.table.remove(key), place))
        while undo:
            self.table.put_back(*undo.pop())

    @precondition(lambda self: self.model)
    @rule()
    def take_chunk(self):
        taken = self.table.take_chunk()
        # the first ones in their order, and as many as a chunk has at most
        assert list(self.model.items())[: len(taken)] == list(taken.items())
        assert len(taken) <= 3
        for key in taken:
            del self.model[key]

    @rule()
    def view(self):
        view = self.table.view()
        self.views.append(
            SimpleNamespace(view=view, parts=iter(view), due=list(self.model.items()))
        )

    def some_view(self, data):
        return data.draw(st.sampled_from(self.views))

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def read_on(self, data):
        one = self.some_view(data)
        part = next(one.parts, None)
        if part is None:
            assert one.due == []
            self.views.remove(one)
            return
        found = entries([part])
        assert found == one.due[: len(found)]
        assert sum(len(key) + len(value) for key, value in found[:-1]) < 9
        del one.due[: len(found)]

    @precondition(lambda self: self.views)
    @rule(data=st.data())
    def close(self, data):
        one = self.some_view(data)
        one.view.close()
        one.view.close()
        self.views.remove(one)

    @invariant()
    def they_hold_the_same(self):
        if not hasattr(self, "table"):
            return
        assert len(self.table) == len(self.model)
        assert bool(self.table) == bool(self.model)
        assert self.table.last_key() == next(reversed(self.model), None)
        for key in ("k0", "k7", "k29"):
            assert self.table.get(key) == self.model.get(key)
            assert (key in self.table) == (key in self.model)

    @rule()
    def they_hold_the_same_in_the_same_order(self):
        assert entries(self.table.view()) == list(self.model.items())


TestCompared = Compared.TestCase


def test_a_view_shows_its_moment_whatever_is_done_later():
    content = {f"key {n}": b"%d" % n for n in range(2000)}
    held = Table()
    held.extend(list(content), list(content.values()))
    views = [held.view() for _ in range(2)]
    half = iter(views[0])
    first = entries([next(half)])
    for key in content:
        held.set(key, b"new")
    for key in list(content)[::2]:
        held.remove(key)
    held.extend([f"new {n}" for n in range(500)], [b"new"] * 500)
    while held:
        held.take_chunk()
    for _ in held.free():
        pass
    assert first + entries(half) == list(content.items())
    assert entries(views[1]) == list(content.items())


def test_no_step_of_freeing_or_taking_is_longer_than_a_chunk():
    held = Table()
    for n in range(10_000):
        held.set(str(n), b"")
    assert max(len(held.take_chunk()) for _ in range(10)) <= table.CHUNK
    steps = sum(1 for _ in held.free())
    assert steps >= (10_000 - 10 * table.CHUNK) // table.CHUNK


def test_large_entries_are_given_few_at_a_time():
    held = Table()
    for n in range(50):
        held.set(str(n), bytes(table.PIECE_BYTES // 4))
    sizes = [len(list(part_keys)) for part_keys, _ in held.view()]
    assert sum(sizes) == 50
    assert max(sizes) <= 4


def test_what_is_set_again_and_again_takes_no_further_room():
    held = Table()
    content = {f"key {n}": b"" for n in range(2000)}
    for n in range(20):
        held.extend(list(content), [b"%d" % n] * len(content))
        held.extend([*content, f"new {n}"], [b"%d" % n] * (len(content) + 1))
    expected = dict.fromkeys(content, b"19") | {f"new {n}": b"%d" % n for n in range(20)}
    assert entries(held.view()) == list(expected.items())
    assert sum(1 for _ in held.free()) <= 2000 // table.CHUNK + 2 + table.SHARDS


def test_a_view_of_a_chunk_that_is_empty_shows_nothing_set_later():
    held = Table()
    held.set("a", b"")
    held.remove("a")
    view = held.view()
    held.set("b", b"")
    assert entries(view) == []
