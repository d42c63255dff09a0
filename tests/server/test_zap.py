"""The answers to libzmq's questions: a yes only for a known key, or where none is demanded."""

from __future__ import annotations

import os

import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from zmq.utils import z85

from pickledbd.keys import Authorized
from pickledbd.zap import NO, YES, answer, domain, identity
from pickledbd_client.keygen import make

ENDPOINT = "tcp://127.0.0.1:7431"
KEYS = domain(ENDPOINT, keyed=True, read_only=False)
OPEN = domain("ipc:///a b/s", keyed=False, read_only=True)


@pytest.fixture(scope="module")
def authorized(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keys")
    make("ann", folder)
    return Authorized(folder)


@pytest.fixture(scope="module")
def ann(authorized):
    (text,) = authorized._keys
    return z85.decode(text)


def ask(keys, *, asked=KEYS, mechanism=b"CURVE", credentials=(), version=b"1.0"):
    question = [version, b"7", asked.encode(), b"10.0.0.5", b"", mechanism, *credentials]
    reply, where, why = answer(question, keys)
    assert reply[:2] == [b"1.0", b"7"]
    assert bool(why) == (reply[2] == NO)
    assert where == ("10.0.0.5" if why and version == b"1.0" else "")
    return reply, why


def test_a_known_key_gets_a_name_that_tells_who_and_where(authorized, ann):
    reply, _ = ask(authorized, credentials=[ann])
    assert reply[2] == YES
    public, only_reads, endpoint = identity(reply[4].decode())
    assert (z85.decode(public), only_reads, endpoint) == (ann, False, ENDPOINT)


def test_where_no_key_is_demanded_none_is_needed():
    reply, _ = ask(None, asked=OPEN, mechanism=b"NULL")
    assert reply[2] == YES
    assert identity(reply[4].decode()) == (None, True, "ipc:///a b/s")


@pytest.mark.parametrize(
    ("question", "why"),
    [
        ({"credentials": [os.urandom(32)]}, "not an authorized one"),
        ({"credentials": []}, "no key"),
        ({"credentials": [b"short"]}, "no key"),
        ({"credentials": [bytes(32), bytes(32)]}, "no key"),
        ({"mechanism": b"NULL"}, "shows no key"),
        ({"mechanism": b"PLAIN", "credentials": [b"ann", b"secret"]}, "shows no key"),
        ({"asked": OPEN}, "shows no key"),
        ({"asked": "other", "mechanism": b"NULL"}, "shows no key"),
        ({"version": b"2.0"}, "no question of ZAP 1.0"),
    ],
)
def test_all_else_is_refused(authorized, question, why):
    reply, told = ask(authorized, **question)
    assert reply[2] == NO
    assert why in told


def test_a_known_key_is_of_no_use_where_nobody_asks_for_keys(authorized, ann):
    assert ask(authorized, asked=OPEN, credentials=[ann])[0][2] == NO
    assert ask(None, credentials=[ann])[0][2] == NO


frames = st.binary(max_size=300) | st.sampled_from(
    [b"1.0", b"NULL", b"CURVE", KEYS.encode(), OPEN.encode(), bytes(32)]
)


@given(question=st.lists(frames, max_size=10))
def test_whatever_is_asked_the_answer_is_one_and_never_a_wrong_yes(authorized, ann, question):
    question = [frame if frame != bytes(32) else ann for frame in question]
    reply, _, why = answer(question, authorized)
    assert len(reply) == 6
    assert reply[2] in (YES, NO)
    if reply[2] == YES:
        kind = question[2].partition(b" ")[0]
        assert question[0] == b"1.0"
        if kind.startswith(b"open"):
            assert question[5] == b"NULL"
        else:
            assert (question[5], question[6:]) == (b"CURVE", [ann])
        assert reply[4].endswith(question[2])
    else:
        assert why


def test_libzmq_takes_the_longest_name_there_may_be():
    longest = domain(f"ipc://{'/' + 'x' * 106}", keyed=False, read_only=True)
    assert len(longest) <= 255
    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        router.zap_domain = longest.encode()
