"""Whatever stands in a message of several requests: each is answered once, and the daemon lives."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pickledbd_protocol import COMMANDS, GATHERED_MAX

CONTENT = {"a": 1, "b": [None, "x"]}


def request(number, op, args=None):
    return {"id": number, "client": "c", "op": op, "args": args or {}}


@pytest.fixture
def content(db):
    db.db = CONTENT
    yield
    assert db.db == CONTENT
    assert db.ping()


def ask(dealer, body, number=1):
    """The replies to a message, until there are `number`."""
    dealer.send(body if type(body) is bytes else json.dumps(body).encode())
    replies = []
    while sum(not reply.get("more") for reply in replies) < number:
        message = json.loads(dealer.recv())
        some = message if type(message) is list else [message]
        assert all(type(reply) is dict for reply in some), "an array within an array"
        replies += some
    return replies


def pings(number):
    return [request(n, "ping") for n in range(number)]


@pytest.mark.usefixtures("content")
def test_so_many_and_no_more_stand_in_a_message(dealer):
    for number in (1, 2, GATHERED_MAX):
        found = ask(dealer, pings(number), number)
        assert sorted(reply["id"] for reply in found) == list(range(number))
    for number in (0, GATHERED_MAX + 1, 100_000):
        (refused,) = ask(dealer, pings(number))
        assert refused["id"] is None
        assert refused["error"]["code"] == "protocol"
    (reply,) = ask(dealer, request(5, "ping"))
    assert reply == {"id": 5, "result": {}}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
reads = st.sampled_from(sorted(name for name, command in COMMANDS.items() if not command.writes))
elements = st.one_of(
    json_values,
    st.just(pings(2)),
    st.builds(lambda op: request(1, op), reads),
    st.builds(
        lambda op, extra: request(1, op, {"no such": extra}),
        st.sampled_from(sorted(COMMANDS)),
        json_values,
    ),
    st.fixed_dictionaries({}, optional={"id": json_values, "client": json_values, "op": reads}),
)


@settings(
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    max_examples=200,
)
@given(st.lists(elements, min_size=1, max_size=20))
@pytest.mark.usefixtures("content")
def test_of_whatever_stands_in_it_each_is_answered_once(dealer, found_in_it):
    body = json.dumps(found_in_it).encode()
    replies = ask(dealer, body, len(found_in_it))
    assert sum(not reply.get("more") for reply in replies) == len(found_in_it)
    (reply,) = ask(dealer, request(5, "len"))
    assert reply == {"id": 5, "result": {"len": 2}}, "nothing comes after the last"


@pytest.mark.parametrize(
    "body",
    [b"[" * 100, b"[" * 5000, b"[[]]", b"[,]", b'[{"id":1}', b"[]]", b"[" + b"1," * 500 + b"1]"],
    ids=lambda body: body[:12].decode(),
)
@pytest.mark.usefixtures("content")
def test_what_is_no_array_of_requests_is_answered_with_an_error(dealer, body):
    (reply,) = ask(dealer, body)
    assert reply["id"] is None
    assert reply["error"]["code"] == "protocol"
