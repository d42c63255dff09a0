"""Repeats: answered as the first was, carried out for the first time, or refused; never twice."""

from __future__ import annotations

import errno
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pickledbd import retries
from pickledbd.clock import now_ms
from pickledbd.journal import Journal
from pickledbd.records import Answer
from pickledbd.retries import Retries
from pickledbd.snapshot import Writing
from pickledbd_protocol import COMMANDS, ProtocolError, Request, Unavailable


def write(number, client="c", age=None):
    """`age`: how many ms ago it was sent before, if it was."""
    sent_at = None if age is None else now_ms() - age
    return Request(number, client, 1000, COMMANDS["pop"], {"key": "k"}, sent_at)


def answer(number, client="c", result=b"{}", at=None, budget_ms=1000):
    return Answer(client, number, now_ms() if at is None else at, budget_ms, result)


def outcome(known, request):
    """What a write meets: an answer, None if it is to be carried out, or the error's class."""
    try:
        return known.answered(request)
    except (ProtocolError, Unavailable) as error:
        return type(error)


def test_a_repeat_is_answered_as_the_first_and_a_new_write_is_carried_out():
    known = Retries()
    assert outcome(known, write(5)) is None
    assert outcome(known, write(5, age=10)) is None  # the first did not arrive
    known.remember(answer(5, result=b'{"value":1}'))
    assert outcome(known, write(5, age=10)) == b'{"value":1}'
    assert outcome(known, write(5, "another", age=10)) is None
    assert outcome(known, write(6)) is None
    assert outcome(known, write(6, age=10)) is None


def test_numbers_that_do_not_grow_are_refused():
    known = Retries()
    known.remember(answer(5))
    assert outcome(known, write(5)) is ProtocolError
    assert outcome(known, write(4)) is ProtocolError
    assert outcome(known, write(4, age=10)) is Unavailable  # its answer made room for that to 5


def test_the_error_says_that_nobody_knows_the_outcome():
    known = Retries()
    known.remember(answer(5))
    with pytest.raises(Unavailable) as caught:
        known.answered(write(4, age=10))
    assert not caught.value.outcome_known


def of_long_ago():
    """What a daemon knows that has run for a while."""
    known = Retries()
    known._since = 0
    return known


def test_of_what_was_given_up_nobody_says_that_it_was_not_applied(monkeypatch):
    monkeypatch.setattr(retries, "ANSWERS_MAX", 3)
    known = of_long_ago()
    start = now_ms()
    for number in range(5):
        known.remember(
            answer(1, f"client {number}", at=start - 5000 + number * 1000, budget_ms=1500)
        )
    assert [each.client for each in known.awaited()] == ["client 4"]
    # those of 0 and 1 are gone, the latter's write was 4 s ago
    assert outcome(known, write(1, "client 0", age=6000)) is Unavailable
    assert outcome(known, write(1, "client 1", age=4500)) is Unavailable
    assert outcome(known, write(1, "never seen", age=4500)) is Unavailable
    assert outcome(known, write(1, "never seen", age=2000)) is None  # sent later than both
    assert outcome(known, write(1, "never seen")) is None  # not a repeat
    for number in (2, 3, 4):
        assert outcome(known, write(1, f"client {number}", age=9000)) == b"{}"


def test_large_answers_make_room_but_that_their_writes_were_applied_is_known(monkeypatch):
    monkeypatch.setattr(retries, "BYTES_MAX", 1000)
    known = Retries()
    for number in range(10):
        known.remember(answer(1, f"small {number}"))
    for number in range(5):
        known.remember(answer(1, f"large {number}", result=b'"%b"' % (b"x" * 400)))
    for number in range(3):
        assert outcome(known, write(1, f"large {number}", age=10)) is Unavailable
        assert outcome(known, write(2, f"large {number}")) is None
        assert outcome(known, write(2, "never seen", age=10)) is None  # only their own clients pay
    for number in (3, 4):
        assert len(outcome(known, write(1, f"large {number}", age=10))) == 402
    for number in range(10):
        assert outcome(known, write(1, f"small {number}", age=10)) == b"{}"


def test_what_is_old_is_given_up():
    known = of_long_ago()
    known.remember(answer(1, "old", at=now_ms() - retries.KEEP_MS - 1))
    known.remember(answer(1, "young"))
    known.expire()
    assert outcome(known, write(1, "young", age=10)) == b"{}"
    assert outcome(known, write(1, "old", age=retries.KEEP_MS + 500)) is Unavailable
    assert outcome(known, write(1, "old", age=10)) is None


def test_what_the_clock_did_before_this_start_makes_nothing_old():
    """It was set, or the machine slept while the daemon before this one ran."""
    known = Retries()
    known.restore([answer(1, "c", at=now_ms() - 2 * retries.KEEP_MS)], now_ms() - 10**9)
    known.expire()
    assert [each.client for each in known.awaited()] == ["c"]
    assert outcome(known, write(1, age=3 * retries.KEEP_MS)) == b"{}"
    known.forget("c")
    assert known.needed  # others may still ask for what the one before had forgotten
    known._since = 0
    assert not known.needed


def test_who_says_that_it_was_first_sent_in_future_is_not_believed():
    assert outcome(Retries(), write(1, age=-10_000)) is Unavailable


def test_a_write_that_is_undone_leaves_the_answer_before():
    known = Retries()
    known.remember(answer(1, result=b"before"))
    before = known.forget("c")
    known.remember(answer(2))
    known.forget("c")
    known.remember(before)
    assert outcome(known, write(1, age=10)) == b"before"
    assert outcome(known, write(2)) is None


@given(
    st.lists(
        st.tuples(st.sampled_from("abcdef"), st.integers(1, 9), st.integers(0, 600), st.booleans()),
        max_size=40,
    )
)
def test_the_memory_is_bounded_and_nothing_is_carried_out_twice(steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retries, "ANSWERS_MAX", 3)
        patch.setattr(retries, "BYTES_MAX", 1000)
        known, done = Retries(), set()
        for client, number, size, lost in steps:
            if any(c == client and n > number for c, n in done):
                continue  # no client repeats a write after a later one
            again = lost or (client, number) in done  # and no client forgets that it repeats one
            found = outcome(known, write(number, client, age=60_000 if again else None))
            if found is None:
                assert (client, number) not in done
                done.add((client, number))
                known.remember(answer(number, client, result=b"%b" % (b"x" * size)))
            elif isinstance(found, bytes):
                assert (client, number) in done
            else:
                assert found is Unavailable
            kept = known.awaited()
            assert len(kept) <= 3
            assert sum(len(each.result) for each in kept if len(each.result) > 100) <= 1000


# With an engine


def test_a_repeat_is_answered_once_more_also_after_a_restart_and_after_saves(wire):
    wired = wire()
    client = wired.client
    wired.ask("set_many", items={"a": 1, "b": 2})
    (first,) = wired.send("pop", {"key": "a"}, id=50, budget_ms=60_000)
    assert first["result"] == {"value": 1}
    wired.send("set", {"key": "other", "value": 1}, client="another")
    for step in range(5):
        (again,) = wired.send(
            "pop", {"key": "a"}, id=50, client=client, sent_at=now_ms(), budget_ms=60_000
        )
        assert again == first
        if step == 1:
            wired = wire()  # killed
        if step == 3:
            wired.send("set", {"key": "new", "value": 1}, client="another")
            assert wired.ask("save") == {"saved": True}
            wired = wire()  # killed after a save
    assert wired.ask("get", key="b") == {"value": 2}


def test_a_repeat_in_the_same_turn_is_answered_by_the_first(wired):
    wired.ask("set_many", items={"a": 1, "b": 2})
    wired.receive("popitem", id=50)
    wired.receive("popitem", id=50, sent_at=now_ms(), peer=b"by another connection")
    told = [reply["result"] for _, reply in wired.turn()]
    assert told == [{"key": "b", "value": 2}] * 2
    assert wired.ask("all") == {"keys": ["a"]}


def test_a_write_that_was_refused_is_carried_out_when_it_is_repeated(wire, monkeypatch):
    wired = wire()
    wired.send("set", {"key": "a", "value": 1}, id=50)

    def fail(*_args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", fail)
    (refused,) = wired.send("pop", {"key": "a"}, id=51)
    assert refused["error"]["code"] == "writes_refused"
    # the answer to the write before is still known
    (again,) = wired.send("set", {"key": "a", "value": 1}, id=50, sent_at=now_ms())
    assert again["result"] == {}
    monkeypatch.undo()
    wired.send("save", id=52)
    (told,) = wired.send("pop", {"key": "a"}, id=51, sent_at=now_ms())
    assert told["result"] == {"value": 1}
    wired_again = wire()
    (told,) = wired_again.send("pop", {"key": "a"}, id=51, client=wired.client, sent_at=now_ms())
    assert told["result"] == {"value": 1}


def test_what_waits_behind_a_batch_is_not_done_after_its_repeat_was_forgotten(wired, monkeypatch):
    monkeypatch.setattr(retries, "ANSWERS_MAX", 3)
    wired.ask("set", key="a", value=1)
    wired.receive("set_many", {"items": {f"{n}": n for n in range(5000)}}, client="c")
    first = {"client": "c", "id": 50}
    wired.receive("pop", {"key": "a"}, **first)
    wired.replies += wired.engine.finish_turn()
    wired.receive("pop", {"key": "a"}, **first, sent_at=now_ms(), peer=b"by another connection")
    wired.replies += wired.engine.finish_turn()
    for number in range(4):
        wired.receive("set", {"key": "a", "value": 2}, peer=b"o", client=f"{number}")
        wired.replies += wired.engine.finish_turn()
    told = {peer: reply for peer, reply in wired.turn() if reply["id"] == 50}
    assert told[b"by another connection"]["result"] == {"value": 1}
    assert told[b"p"]["error"]["code"] == "unavailable"
    assert wired.ask("get", key="a")["value"] == 2


def test_what_changed_nothing_is_just_done_again(wired):
    (first,) = wired.send("pop", {"key": "a"}, id=50)
    assert first["result"] == {}
    wired.send("set", {"key": "a", "value": 1}, client="another")
    (again,) = wired.send("pop", {"key": "a"}, id=50, sent_at=now_ms())
    assert again["result"] == {"value": 1}


@pytest.mark.parametrize("published", [True, False])
def test_a_save_keeps_no_answer_to_a_write_that_it_does_not_hold(wire, monkeypatch, published):
    wired = wire("--durability", "save")
    client = wired.client
    wired.ask("set", key="a", value=1)
    wired.ask("save")  # so that there is a journal before
    wired.ask("set", key="a", value=2)
    late = {"key": "late", "value": 1}
    if not published:  # killed just before it
        monkeypatch.setattr(Writing, "publish", lambda _self: None)
        monkeypatch.setattr(Journal, "drop", lambda _self, _unneeded: None)
    wired.receive("save")
    wired.replies += wired.engine.finish_turn()
    while wired.engine._saver._viewed is None:
        wired.tasks.run(0)  # until what it holds is settled
    number = wired.receive("set", late, budget_ms=60_000)
    wired.turn()
    again = wire("--durability", "save")  # killed
    assert again.ask("get", key="late") == {}
    repeat = {"client": client, "id": number, "sent_at": now_ms(), "budget_ms": 60_000}
    (reply,) = again.send("set", late, **repeat)
    assert reply["result"] == {}
    assert again.ask("get", key="late") == {"value": 1}
