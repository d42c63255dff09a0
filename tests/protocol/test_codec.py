"""The codec's invariant: whatever the bytes, a Request or a Refused, a Reply or ProtocolError."""

from __future__ import annotations

import json
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pickledbd_protocol import (
    COMMANDS,
    GATHERED_MAX,
    InvalidValue,
    PickleDBError,
    ProtocolError,
    Refused,
    Reply,
    Request,
    decode_replies,
    decode_requests,
    encode_error,
    encode_reply,
    encode_request,
    gather,
    join_parts,
)
from pickledbd_protocol.errors import BY_CODE, RequestTimeout, Unavailable

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
)
wrong_shapes = st.fixed_dictionaries(
    {},
    optional={
        "id": json_values | st.integers(0, 10),
        "client": json_values | st.just("c"),
        "budget_ms": json_values,
        "sent_at": json_values,
        "more": json_values | st.booleans(),
        "op": json_values | st.sampled_from(sorted(COMMANDS)),
        "args": json_values
        | st.fixed_dictionaries(
            {},
            optional=dict.fromkeys(
                ("key", "value", "keys", "items", "versions", "reset"), json_values
            ),
        ),
    },
).map(lambda value: json.dumps(value).encode(errors="replace"))
bodies = st.binary() | json_values.map(lambda v: json.dumps(v).encode()) | wrong_shapes


messages = bodies | st.lists(bodies, max_size=3).map(lambda some: b"[%b]" % b",".join(some))


def decode_request(frames):
    (request,) = decode_requests(frames)
    return request


def decode_reply(body):
    (reply,) = decode_replies(body)
    return reply


@given(st.lists(messages, max_size=10) | messages.map(lambda body: [body]))
def test_any_frames_are_requests_or_are_refused(frames):
    requests = decode_requests(frames)
    assert 1 <= len(requests) <= GATHERED_MAX
    for request in requests:
        if isinstance(request, Refused):
            assert isinstance(request.error, PickleDBError)
            told = decode_reply(encode_error(request.id, request.error))
            assert told.id == request.id
            assert str(told.error) == str(request.error)
        else:
            assert isinstance(request, Request)
            command = request.command
            assert command.args.keys() <= request.args.keys()
            assert request.args.keys() <= command.args.keys() | command.optional.keys()
            assert request.size == len(frames[0])
            assert (command.parts and len(requests) == 1) or not request.more


@given(messages)
def test_any_bytes_are_replies_or_a_protocol_error(body):
    try:
        replies = decode_replies(body)
    except ProtocolError:
        return
    assert all(isinstance(reply, Reply) for reply in replies)


def test_several_requests_in_a_message_are_read_as_each_would_be_alone():
    alone = [
        encode_request("get", 7, "me", 1500, b'{"key":"k"}'),
        encode_request("get", 8, "me", 1500, b'{"kee":"k"}'),
        encode_request("set", 9, "you", 1500, b'{"key":"k","value":{"n":[12345678901234567890]}}'),
    ]
    got, refused, put = decode_requests([gather(alone)])
    for request, body in ((got, alone[0]), (put, alone[2])):
        expected = decode_request([body])
        expected.size = len(gather(alone))
        assert request == expected
    assert (refused.id, str(refused.error)) == (8, str(decode_request([alone[1]]).error))
    replies = [encode_reply(7, b'{"value":1}'), encode_error(8, refused.error)]
    assert [reply.id for reply in decode_replies(gather(replies))] == [7, 8]
    assert gather(alone[:1]) == alone[0]


def test_an_integer_over_64_bits_refuses_the_writes_of_its_message():
    bodies = [
        encode_request("get", 1, "me", 0, b'{"key":"k"}'),
        encode_request("set", 2, "me", 0, b'{"key":"k","value":18446744073709551616}'),
        encode_request("set", 3, "me", 0, b'{"key":"k","value":1}'),
    ]
    got, *refused = decode_requests([gather(bodies)])
    assert (got.id, got.command.name) == (1, "get")
    assert [(r.id, type(r.error)) for r in refused] == [(2, InvalidValue), (3, InvalidValue)]


def test_a_message_holds_no_more_requests_than_it_may():
    body = encode_request("ping", 1, "me", 0, b"{}")
    assert all(isinstance(r, Request) for r in decode_requests([gather([body] * GATHERED_MAX)]))
    for message in (gather([body] * (GATHERED_MAX + 1)), b"[]"):
        assert "1 to 128" in str(decode_request([message]).error)
    part = encode_request("set_many", 1, "me", 0, b'{"items":{}}', more=True)
    assert [type(r) for r in decode_requests([gather([body, part])])] == [Request, Refused]


def test_a_request_is_read_as_it_was_written():
    body = encode_request("set", 7, "me", 1500, b'{"key":"k","value":[1]}')
    assert decode_request([body]) == Request(
        7, "me", 1500, COMMANDS["set"], {"key": "k", "value": [1]}, size=len(body)
    )
    body = encode_request("replace", 8, "me", 0, b'{"items":{}}', sent_at=20, more=True)
    assert decode_request([body]) == Request(
        8, "me", 0, COMMANDS["replace"], {"items": {}}, 20, more=True, size=len(body)
    )


def test_only_batches_come_in_parts():
    for op, command in COMMANDS.items():
        args = {"items": {}} if "items" in command.args else {}
        args |= {"key": "k", "value": 1} if "value" in command.args else {}
        args |= {"key": "k"} if "key" in command.args else {}
        args |= {"keys": []} if "keys" in command.args else {}
        args |= {"versions": [1]} if "versions" in command.args else {}
        body = encode_request(op, 1, "me", 0, json.dumps(args).encode(), more=True)
        assert isinstance(decode_request([body]), Request) == (op in ("set_many", "replace"))


def test_a_reply_is_read_as_it_was_written():
    reply = decode_reply(encode_reply(7, b'{"value":1}', more=True))
    assert (reply.id, reply.result, reply.error, reply.more) == (7, {"value": 1}, None, True)
    reply = decode_reply(encode_error(None, InvalidValue("why")))
    assert (reply.id, type(reply.error), str(reply.error)) == (None, InvalidValue, "why")
    assert reply.error.outcome_known


def test_an_error_tells_whether_the_outcome_is_known():
    reply = decode_reply(encode_error(7, Unavailable("why", outcome_known=False)))
    assert (type(reply.error), reply.error.outcome_known) == (Unavailable, False)
    assert decode_reply(encode_error(7, Unavailable("why"))).error.outcome_known


def test_an_unknown_error_code_is_still_an_error():
    reply = decode_reply(b'{"id":1,"error":{"code":"new","message":"m"}}')
    assert type(reply.error) is PickleDBError


def test_parts_are_put_together():
    parts = [
        decode_reply(encode_reply(1, b'{"keys":["a"],"items":{"a":1}}', more=True)),
        decode_reply(encode_reply(1, b'{"keys":["b"],"items":{"b":{"$binary":1}}}')),
    ]
    whole = join_parts(parts)
    assert whole.result == {"keys": ["a", "b"], "items": {"a": 1, "b": {"$binary": 1}}}
    assert whole.binary


def test_parts_that_do_not_fit_are_a_protocol_error():
    parts = [
        decode_reply(encode_reply(1, b'{"keys":["a"]}', more=True)),
        decode_reply(encode_reply(1, b'{"keys":5}')),
    ]
    with pytest.raises(ProtocolError, match="'keys'"):
        join_parts(parts)


BUILT_IN = {
    "unavailable": ConnectionError,
    "timeout": TimeoutError,
    "invalid_key": ValueError,
    "invalid_value": ValueError,
    "too_large": ValueError,
    "save_failed": OSError,
    "writes_refused": OSError,
    "not_allowed": PermissionError,
}


def test_every_error_is_also_the_built_in_that_programs_catch():
    for code, built_in in BUILT_IN.items():
        assert issubclass(BY_CODE[code], (PickleDBError, built_in))
        assert issubclass(BY_CODE[code], built_in)
    assert issubclass(BY_CODE["invalid_value"], TypeError)


def test_every_error_can_be_pickled_with_what_it_knows():
    for cls in BY_CODE.values():
        copy = pickle.loads(pickle.dumps(cls("why")))
        assert (type(copy), str(copy)) == (cls, "why")
    for cls in (Unavailable, RequestTimeout):
        assert cls("m").outcome_known
        copy = pickle.loads(pickle.dumps(cls("m", outcome_known=False)))
        assert not copy.outcome_known
