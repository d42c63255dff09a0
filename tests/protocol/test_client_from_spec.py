"""A second client, written from the protocol's page alone, against a real daemon.

It shares no code with the daemon or with the client of this project and knows nothing but that
page, so it fails when the page no longer suffices to write a client.
"""

import base64
import fcntl
import itertools
import json
import os
import time
import uuid
from pathlib import Path

import pytest
import zmq

from support import PATIENCE

CODES = {
    "protocol",
    "invalid_key",
    "invalid_value",
    "too_large",
    "not_allowed",
    "save_failed",
    "writes_refused",
    "unavailable",
    "timeout",
    "internal",
}
MEBIBYTE = 1 << 20


class RefusedError(Exception):
    """The daemon answered with an error."""

    def __init__(self, error):
        super().__init__(error["message"])
        self.code = error["code"] if error["code"] in CODES else "internal"
        self.outcome_known = error.get("outcome_known", True)


class SpecClient:
    """One connection, which has said hello."""

    def __init__(self, endpoint, versions=(1,), patience=PATIENCE):
        self.patience = patience
        self.name = str(uuid.uuid4())
        self.ids = itertools.count(1)
        self.parts = {}  # of each id, as long as its last part is missing
        self.answers = {}  # of each id, until they are asked for: (parts, error)
        self.request_bytes = None
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.connect(endpoint)
        try:
            self.hello = self.request("hello", versions=list(versions))
            self.greeted = time.monotonic()
        except BaseException:
            self.close()
            raise
        self.request_bytes = self.hello["limits"]["request_bytes"]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def clock(self):
        """What the daemon's clock shows now, or less."""
        return self.hello["now"] + int((time.monotonic() - self.greeted) * 1000)

    def close(self):
        self.socket.close()
        self.context.term()

    def send(self, op, args=None, **envelope):
        """Send a request without waiting for its reply; returns its id."""
        number = next(self.ids)
        request = {"id": number, "client": self.name, "op": op}
        request["budget_ms"] = int(self.patience * 1000)
        if args:
            request["args"] = args
        text = json.dumps(request | envelope, ensure_ascii=False, allow_nan=False)
        self.send_frame(text.encode())
        return number

    def send_frame(self, frame):
        if self.request_bytes is not None and len(frame) > self.request_bytes:
            raise ValueError(f"{len(frame)} bytes, and the daemon takes {self.request_bytes}")
        self._wait(zmq.POLLOUT, time.monotonic() + self.patience)
        self.socket.send(frame, zmq.NOBLOCK)

    def receive_parts(self, number):
        """The result of the request with this id, in the parts in which it came."""
        deadline = time.monotonic() + self.patience
        while number not in self.answers:
            self._wait(zmq.POLLIN, deadline)
            reply = json.loads(self.socket.recv(zmq.NOBLOCK))
            parts = self.parts.setdefault(reply["id"], [])
            if "error" not in reply:
                parts.append(reply["result"])
            if not reply.get("more"):
                self.answers[reply["id"]] = (self.parts.pop(reply["id"]), reply.get("error"))
            if None in self.answers:
                # Which request the daemon could not read is not known, so whoever waits is told.
                number = None
        parts, error = self.answers.pop(number)
        if error:
            raise RefusedError(error)
        return parts

    def receive(self, number):
        return joined(self.receive_parts(number))

    def request(self, op, **args):
        return self.receive(self.send(op, args))

    def set(self, key, value):
        self.request("set", key=key, value=encoded(value))

    def get(self, key):
        return decoded(self.request("get", key=key)["value"])

    def dump(self):
        return contents(self.request("dump")["items"])

    def _wait(self, event, deadline):
        if self.socket.closed:
            raise ConnectionError("this connection is closed")
        left = max(0, deadline - time.monotonic())
        if not self.socket.poll(left * 1000, event):
            # A late reply must meet nobody.
            self.close()
            raise TimeoutError(f"no answer for {self.patience} seconds")


def joined(parts):
    whole = parts[0]
    for part in parts[1:]:
        for name, content in part.items():
            if isinstance(content, list):
                whole[name].extend(content)
            elif isinstance(content, dict):
                whole[name].update(content)
    return whole


def is_mark(name):
    return name.startswith("$") and name.lstrip("$") == "binary"


def encoded(value):
    if isinstance(value, bytes):
        return {"$binary": {"base64": base64.b64encode(value).decode(), "subType": "00"}}
    if isinstance(value, list):
        return [encoded(item) for item in value]
    if isinstance(value, dict):
        escape = "$" if len(value) == 1 and is_mark(next(iter(value))) else ""
        return {escape + name: encoded(content) for name, content in value.items()}
    return value


def decoded(value):
    if isinstance(value, list):
        return [decoded(item) for item in value]
    if not isinstance(value, dict):
        return value
    escape = ""
    if len(value) == 1 and is_mark(next(iter(value))):
        if "$binary" in value:
            data = bytes_of(value["$binary"])
            if data is not None:
                return data
        else:
            escape = "$"
    return {name.removeprefix(escape): decoded(content) for name, content in value.items()}


def bytes_of(content):
    """The bytes that the content of a `$binary` stands for; None if it stands for none."""
    if not isinstance(content, dict) or content.keys() != {"base64", "subType"}:
        return None
    if content["subType"] != "00" or not isinstance(content["base64"], str):
        return None
    try:
        return base64.b64decode(content["base64"], validate=True)
    except ValueError:
        return None


def contents(items):
    """Keys and their values; a key is never unescaped, whatever it looks like."""
    return {key: decoded(value) for key, value in items.items()}


def owner_of(location):
    """What the owner of a data file says of itself; None if nobody owns it."""
    name = Path(location).resolve()
    lock = name.with_name(name.name + ".lock")
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            with lock.open("rb") as file:
                try:
                    fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                    held = False
                except BlockingIOError:
                    held = True
                if not os.path.samestat(os.fstat(file.fileno()), lock.stat()):
                    continue
                text = file.read()
        except FileNotFoundError:
            return None
        if not held:
            return None
        try:
            return json.loads(text)
        except ValueError:
            return {}
    raise TimeoutError(f"{lock} is replaced all the time")


@pytest.fixture
def connect(daemon):
    """Makes connections to the daemon, and closes them before the daemon is compared."""
    clients = []

    def connect(**options):
        client = SpecClient(daemon.endpoint, **options)
        clients.append(client)
        return client

    yield connect
    for client in clients:
        client.close()


@pytest.fixture
def client(connect):
    return connect()


def code_of(client, op, **args):
    with pytest.raises(RefusedError) as refused:
        client.request(op, **args)
    return refused.value.code


def lists(depth, *innermost):
    value = list(innermost)
    for _ in range(depth - 1):
        value = [value]
    return value


def objects(depth):
    value = {}
    for _ in range(depth - 1):
        value = {"a": value}
    return value


EVERY_KIND = {
    "null": None,
    "true": True,
    "false": False,
    "zero": 0,
    "least integer": -(2**63),
    "greatest integer": 2**64 - 1,
    "whole double": 1.0,
    "double": 0.1,
    "least double": 5e-324,
    "greatest double": -1.7976931348623157e308,
    "empty string": "",
    "controls": '\x00\x01\n\r\t"\\/\x7f\x85\u2028\u2029',
    "unicode": "naïve Ω 日本語 \U0001f600 e\u0301 \ufeff\uffff\U0010ffff",
    "empty array": [],
    "empty object": {},
    "array": [1, [2.5, None], {"b": 1, "a": [True]}, ""],
    "object": {"": 0, "z": {"y": []}, "a": "ä"},
    "200 arrays": lists(200),
    "200 objects": objects(200),
    "no bytes": b"",
    "bytes": bytes(range(256)),
    # Bytes are two objects on the wire.
    "deepest bytes": lists(198, b"\x00\xff"),
}


def test_hello_agrees_on_a_version_and_names_the_daemon_and_its_file(daemon, connect):
    client = connect(versions=[1, 2, 99])
    assert client.hello["version"] == 1
    assert client.hello["pid"] == client.request("info")["pid"]
    assert Path(client.hello["location"]) == daemon.location.resolve()
    assert client.hello["limits"]["request_bytes"] == 256 * MEBIBYTE
    assert {"repeats", "parts"} <= set(client.hello["features"])
    assert client.hello["durability"] == "journal"
    assert code_of(client, "hello", versions=[2, 3]) == "protocol"
    with pytest.raises(RefusedError):
        connect(versions=[2, 3])


def test_every_command_does_what_its_line_of_the_table_says(daemon, client):
    request = client.request
    assert request("ping") == {}
    assert request("popitem") == {}
    assert request("set", key="a", value=None).keys() == {"slot", "count"}
    assert request("get", key="a")["value"] is None
    assert "value" not in request("get", key="b")
    assert request("setdefault", key="a", value=1) == {"value": None}
    assert request("setdefault", key="b", value=[1]) == {"value": [1]}
    assert request("exists", key="b") == {"exists": True}
    assert request("exists", key="c") == {"exists": False}
    assert request("set_many", items={"c": 3, "d": 4, "a": 0}) == {}
    assert request("get_many", keys=["d", "nobody", "a"]) == {"values": [4, 0], "missing": [1]}
    assert request("get_many", keys=[]) == {"values": [], "missing": []}
    assert request("all") == {"keys": ["a", "b", "c", "d"]}
    assert request("len") == {"len": 4}
    assert request("remove", key="b") == {"removed": True}
    assert request("remove", key="b") == {"removed": False}
    assert request("pop", key="a") == {"value": 0}
    assert request("pop", key="a") == {}
    assert request("popitem") == {"key": "d", "value": 4}
    assert request("remove_many", keys=["c", "d", "nobody"]) == {"removed": 1}
    assert request("replace", items={"y": 1, "x": 2}) == {}
    assert request("dump") == {"items": {"y": 1, "x": 2}}
    assert request("save") == {"saved": True}
    assert request("save") == {"saved": False}
    told = request("info")
    assert (told["protocol"], told["keys"], told["dirty"]) == (1, 2, 0)
    assert daemon.endpoint in told["endpoints"]
    assert told["last_save_error"] is None
    assert told["last_save_time"] > 0
    assert request("purge") == {}
    assert request("info")["dirty"] > 0
    assert request("dump") == {"items": {}}


def test_values_of_every_kind_come_back_as_they_were_at_once_and_from_the_file(daemon, client):
    for key, value in EVERY_KIND.items():
        client.set(key, value)
        assert repr(client.get(key)) == repr(value)
    # repr tells what == does not: 1 from 1.0 and from True, and the order of members.
    assert repr(client.dump()) == repr(EVERY_KIND)
    client.request("save")
    assert repr(contents(json.loads(daemon.location.read_bytes()))) == repr(EVERY_KIND)


@pytest.mark.parametrize("value", [2**64, -(2**63) - 1, 10**100, [{"a": 2**64}]])
def test_an_integer_beyond_64_bits_is_refused_and_changes_nothing(client, value):
    client.request("set_many", items={"k": 1})
    assert code_of(client, "set", key="k", value=value) == "invalid_value"
    assert code_of(client, "set_many", items={"k": 2, "l": value}) == "invalid_value"
    assert code_of(client, "replace", items={"k": 3, "l": value}) == "invalid_value"
    assert code_of(client, "setdefault", key="l", value=value) == "invalid_value"
    assert client.dump() == {"k": 1}


@pytest.mark.parametrize("nested", [lists, objects])
def test_values_nest_200_deep_and_no_deeper_wherever_they_stand(client, nested):
    client.set("k", nested(200))
    client.request("set_many", items={"l": nested(200)})
    assert code_of(client, "set", key="k", value=nested(201)) == "invalid_value"
    assert code_of(client, "set_many", items={"m": 1, "n": nested(201)}) == "invalid_value"
    assert client.dump() == {"k": nested(200), "l": nested(200)}


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "\ud800", {"\udfff": 1}, {"k": 1j}])
def test_the_client_itself_refuses_what_json_does_not_have(client, value):
    with pytest.raises((ValueError, TypeError)):
        client.set("k", value)
    assert client.request("all") == {"keys": []}


@pytest.mark.parametrize(
    "text", [r'"\ud800"', r'["\udc00\ud800"]', r'{"\ud800":1}', "NaN", "1e400"]
)
def test_a_value_that_is_not_json_is_refused_by_the_daemon_too(client, text):
    client.set("k", 1)
    head = f'{{"id":1000,"client":"{client.name}","op":"set","args":{{"key":"k","value":'
    client.send_frame((head + text + "}}").encode())
    with pytest.raises(RefusedError):
        client.receive(1000)
    assert client.dump() == {"k": 1}


def test_the_last_of_an_objects_members_with_the_same_name_counts(daemon, client):
    twice = '{"a":1,"b":{"c":1,"c":[2]},"a":{"d":3,"d":4}}'
    items = f'{{"k":0,"l":{twice},"k":"last"}}'
    frame = f'{{"id":1000,"client":"{client.name}","op":"set_many","args":{{"items":{items}}}}}'
    client.send_frame(frame.encode())
    assert client.receive(1000) == {}
    assert client.dump() == {"k": "last", "l": {"a": {"d": 4}, "b": {"c": [2]}}}
    client.request("save")
    assert json.loads(daemon.location.read_bytes()) == client.dump()


def test_every_string_is_a_key_and_none_is_escaped(daemon, client):
    keys = ["", " ", "\x00", "\n", '"\\', "ä", "a\u0308", "\U0001f600", "x" * 65_536]
    keys += ["$binary", "$$binary", "__proto__", "null", "0"]
    for number, key in enumerate(keys):
        client.set(key, number)
        assert client.get(key) == number
    assert client.request("all") == {"keys": keys}
    # One item, and so an object of one member, but not a value.
    for key in ("$binary", "$$binary"):
        client.request("replace", items={key: encoded(b"\xff")})
        assert client.request("all") == {"keys": [key]}
        assert client.dump() == {key: b"\xff"}
    client.request("save")
    assert contents(json.loads(daemon.location.read_bytes())) == {"$$binary": b"\xff"}


def test_bytes_and_objects_that_look_like_them_survive_a_save_at_every_depth(daemon, client):
    look_alike = {"$binary": {"base64": "AP8=", "subType": "00"}}
    values = {
        "bytes": b"\x00\xff",
        "look-alike": look_alike,
        "one": {"$binary": 1},
        "two": {"$$binary": 1},
        "five": {"$$$$$binary": b"in it"},
        "two members": {"$binary": 1, "b": 2},
        "other names": [{"binary": 1}, {"$binary$": 1}, {"$Binary": 1}, {"$": 1}, {"$ binary": 1}],
        "deep": [{"a": [b"\x01", look_alike, {"$$binary": {"$binary": [b"", {"$binary": {}}]}}]}],
    }
    for key, value in values.items():
        client.set(key, value)
    assert repr(client.dump()) == repr(values)
    keys = ["bytes", "one", "two", "two members"]
    raw = dict(zip(keys, client.request("get_many", keys=keys)["values"], strict=True))
    assert raw == {
        "bytes": look_alike,
        "one": {"$$binary": 1},
        "two": {"$$$binary": 1},
        "two members": {"$binary": 1, "b": 2},
    }
    assert client.request("save") == {"saved": True}
    stored = json.loads(daemon.location.read_bytes())
    assert stored["bytes"] == look_alike
    assert repr(contents(stored)) == repr(values)


@pytest.mark.parametrize(
    "content",
    [
        1,
        {"base64": "AP8="},
        {"base64": "AP8", "subType": "00"},
        {"base64": "_-8=", "subType": "00"},
        {"base64": "AP8=", "subType": "05"},
        {"base64": "AP8=", "subType": "00", "more": 1},
    ],
)
def test_what_only_looks_like_bytes_is_left_as_it_is(client, content):
    client.request("set", key="k", value={"$binary": content})
    assert client.get("k") == {"$binary": content}


def test_keys_keep_the_order_of_their_insertion_also_in_the_file(daemon, client):
    client.request("set_many", items={"c": 1, "a": 2, "b": 3})
    client.set("d", 4)
    client.set("c", {"z": 1, "y": [2, "\n\u2028"]})
    assert client.request("all") == {"keys": ["c", "a", "b", "d"]}
    client.request("remove", key="a")
    client.set("a", 5)
    assert client.request("all") == {"keys": ["c", "b", "d", "a"]}
    assert list(client.dump()) == ["c", "b", "d", "a"]
    assert client.request("popitem") == {"key": "a", "value": 5}
    client.request("save")
    head, *entries, tail, end = daemon.location.read_bytes().split(b"\n")
    assert (head, tail, end) == (b"{", b"}", b"")
    assert [entry.endswith(b",") for entry in entries] == [True, True, False]
    assert [json.loads(b"{" + entry.removesuffix(b",") + b"}") for entry in entries] == [
        {"c": {"z": 1, "y": [2, "\n\u2028"]}},
        {"b": 3},
        {"d": 4},
    ]
    client.request("purge")
    client.request("save")
    assert daemon.location.read_bytes() == b"{}\n"


def test_a_large_answer_comes_in_parts_that_show_one_moment(client):
    keys = [f"{number:02}".ljust(65_536, "k") for number in range(24)]
    for number, key in enumerate(keys):
        client.set(key, {"number": number, "text": "ä" * (MEBIBYTE // 8)})
    asked = [client.send("dump"), client.send("all"), client.send("purge"), client.send("len")]
    assert client.receive(asked[3]) == {"len": 0}
    dumped, listed = client.receive_parts(asked[0]), client.receive_parts(asked[1])
    assert len(dumped) > 1
    assert len(listed) > 1
    assert joined(listed) == {"keys": keys}
    items = joined(dumped)["items"]
    assert list(items) == keys
    assert [item["number"] for item in items.values()] == list(range(24))
    assert client.receive(asked[2]) == {}


def test_replies_are_matched_by_id_while_saves_are_in_flight(daemon, client):
    many = {f"key {number}": ["x" * 1000, number] for number in range(5000)}
    asked = {
        "set_many": client.send("set_many", {"items": many}),
        "save": client.send("save"),
        "set": client.send("set", {"key": "later", "value": 1}),
        "get": client.send("get", {"key": "key 7"}),
        "pop": client.send("pop", {"key": "nobody"}),
        "save again": client.send("save"),
        "len": client.send("len"),
        "refused": client.send("set", {"key": "later", "value": 2**64}),
        "dump": client.send("dump"),
    }
    with pytest.raises(RefusedError) as refused:
        client.receive(asked["refused"])
    assert refused.value.code == "invalid_value"
    assert client.receive(asked["save"]) == {"saved": True}
    assert many.items() <= json.loads(daemon.location.read_bytes()).items()
    client.receive(asked["save again"])
    assert json.loads(daemon.location.read_bytes()) == many | {"later": 1}
    assert client.receive(asked["dump"]) == {"items": many | {"later": 1}}
    assert client.receive(asked["len"]) == {"len": 5001}
    assert client.receive(asked["pop"]) == {}
    assert client.receive(asked["get"])["value"] == ["x" * 1000, 7]
    assert client.receive(asked["set"]).keys() == {"slot", "count"}
    assert client.receive(asked["set_many"]) == {}
    assert client.answers == client.parts == {}


def test_a_large_batch_in_parts_counts_as_one_request(client):
    client.request("set_many", items={"old": 0, "n0": "before"})
    items = {f"n{number}": number for number in range(3000)}
    number = client.send("set_many", {"items": {"n0": "not yet", "twice": 1}}, more=True)
    for start in range(0, 3000, 500):
        part = dict(list(items.items())[start : start + 500])
        assert client.request("len") == {"len": 2}
        client.send("set_many", {"items": part}, id=number, more=start < 2500)
    assert client.receive(number) == {}
    assert client.dump() == {"old": 0, "n0": 0, "twice": 1} | items
    assert client.request("all")["keys"][:4] == ["old", "n0", "twice", "n1"]
    number = client.send("replace", {"items": {"x": 1}}, more=True)
    client.send("replace", {"items": {"y": [2**64]}}, id=number, more=True)
    client.send("replace", {"items": {"z": 3}}, id=number)
    with pytest.raises(RefusedError):
        client.receive(number)
    assert client.request("len") == {"len": 3002}


def test_a_write_sent_again_is_answered_from_the_first(connect):
    client = connect()
    client.set("k", "first")
    before = client.clock()
    number = client.send("pop", {"key": "k"})
    assert client.receive(number) == {"value": "first"}
    connect().set("k", "by another")
    other = connect()
    other.name = client.name  # the same client, by a new connection
    other.send("pop", {"key": "k"}, id=number, sent_at=before)
    assert other.receive(number) == {"value": "first"}
    assert other.get("k") == "by another"
    # without sent_at it is a mistake, and so is a number that was used before
    for used in (number, number - 1):
        other.send("pop", {"key": "k"}, id=used)
        with pytest.raises(RefusedError) as refused:
            other.receive(used)
        assert refused.value.code == "protocol"
    # what did not arrive the first time is done now, and a read is just read
    other.send("pop", {"key": "k"}, id=number + 50, sent_at=before)
    assert other.receive(number + 50) == {"value": "by another"}
    # and what came before the last that was answered nobody can tell
    other.send("pop", {"key": "k"}, id=number, sent_at=before)
    with pytest.raises(RefusedError) as refused:
        other.receive(number)
    assert refused.value.code == "unavailable"
    assert refused.value.outcome_known is False


def test_unknown_members_of_a_request_are_ignored_but_arguments_must_fit(client):
    more = {"trace": {"span": [1]}, "priority": None, "more": False}
    assert client.receive(client.send("set", {"key": "k", "value": 1}, **more)).keys() == {
        "slot",
        "count",
    }
    for wrong in ({"more": True}, {"more": 1}, {"sent_at": -1}, {"sent_at": "5"}):
        number = client.send("set", {"key": "k", "value": 2}, **wrong)
        with pytest.raises(RefusedError) as refused:
            client.receive(number)
        assert refused.value.code == "protocol"
    for op, args in [
        ("set", {"key": "k", "value": 2, "colour": "red"}),
        ("set", {"key": "k"}),
        ("set", {"key": 1, "value": 2}),
        ("set_many", {"items": [["k", 2]]}),
        ("get_many", {"keys": "k"}),
        ("remove_many", {"keys": ["k", None]}),
        ("replace", {"items": {}, "purge": True}),
        ("purge", {"really": True}),
        ("pop", {}),
        ("info", {"reset": 1}),
        ("hello", {"versions": 1}),
        ("no such command", {}),
    ]:
        assert code_of(client, op, **args) == "protocol", op
    assert client.dump() == {"k": 1}


@pytest.mark.parametrize(
    ("frame", "number"),
    [
        (b"", None),
        (b"not json", None),
        (b'"\xff"', None),
        (b'"not an object"', None),
        (b'{"client":"c","op":"ping"}', None),
        (b'{"id":-1,"client":"c","op":"ping"}', None),
        (b'{"id":"7","client":"c","op":"ping"}', None),
        (b'{"id":9007199254740992,"client":"c","op":"ping"}', None),
        (b'{"id":9007199254740991,"op":"ping"}', 9007199254740991),
        (b'{"id":0,"client":"","op":"ping"}', 0),
        (b'{"id":0,"client":"%s","op":"ping"}' % (b"c" * 65), 0),
        (b'{"id":0,"client":"c"}', 0),
        (b'{"id":0,"client":"c","op":"ping","budget_ms":-1}', 0),
        (b'{"id":0,"client":"c","op":"ping","args":[]}', 0),
    ],
)
def test_what_is_no_request_is_refused_as_such_and_the_connection_goes_on(client, frame, number):
    client.send_frame(frame)
    with pytest.raises(RefusedError) as refused:
        client.receive(number)
    assert refused.value.code == "protocol"
    assert client.request("ping") == {}


def test_a_request_larger_than_the_limit_is_not_even_sent(client):
    with pytest.raises(ValueError, match="268435457 bytes"):
        client.send_frame(bytes(client.request_bytes + 1))
    assert client.request("ping") == {}


def test_two_clients_see_one_history(connect):
    one, other = connect(), connect()
    one.set("k", b"\x01")
    assert other.get("k") == b"\x01"
    # The daemon may serve a connection a moment before it counts it.
    deadline = time.monotonic() + PATIENCE
    while other.request("info")["clients"] != 2:
        assert time.monotonic() < deadline

    both = (one, other)
    asked = [c.send("setdefault", {"key": "first", "value": c.name}) for c in both]
    told = [c.receive(number)["value"] for c, number in zip(both, asked, strict=True)]
    assert told[0] == told[1]
    assert told[0] in {one.name, other.name}

    keys = [f"key {number}" for number in range(100)]
    one.request("replace", items=dict.fromkeys(keys, 0))
    asked = [(c, c.send("popitem")) for _ in keys for c in both]
    taken = [c.receive(number) for c, number in asked]
    assert sorted(item["key"] for item in taken if item) == sorted(keys)
    assert one.dump() == other.dump() == {}


def test_the_owner_of_a_file_is_found_through_its_lock_file(daemon, tmp_path):
    link = tmp_path / "folder" / "link.db"
    link.parent.mkdir()
    link.symlink_to(daemon.location)
    assert owner_of(link) == owner_of(daemon.location)
    owner = owner_of(link)
    assert owner["state"] == "serving"
    assert daemon.endpoint in owner["endpoints"]
    with SpecClient(owner["endpoints"][0]) as client:
        assert client.hello["pid"] == owner["pid"]
        client.set("k", b"saved at the end")
    daemon.stop()
    assert owner_of(link) is None
    assert contents(json.loads(daemon.location.read_bytes())) == {"k": b"saved at the end"}


def test_a_lock_file_that_nobody_holds_tells_nothing(tmp_path):
    location = tmp_path / "my.db"
    assert owner_of(location) is None
    lock = tmp_path / "my.db.lock"
    lock.write_text('{"state": "serving", "endpoints": ["ipc:///left/over.sock"]}')
    assert owner_of(location) is None
    with lock.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        assert owner_of(location) == {}
        held.write('{"state": "loading", "bytes": 7}')
        held.flush()
        assert owner_of(location) == {"state": "loading", "bytes": 7}
    assert owner_of(location) is None


def test_a_request_to_a_daemon_that_has_ended_times_out_and_the_connection_is_closed(daemon):
    with SpecClient(daemon.endpoint) as client:
        client.set("k", 1)
        daemon.stop()
        client.patience = 0.2
        with pytest.raises(TimeoutError):
            client.request("get", key="k")
        with pytest.raises(ConnectionError):
            client.request("get", key="k")
    assert json.loads(daemon.location.read_bytes()) == {"k": 1}
