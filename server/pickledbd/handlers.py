"""What each command on the data does: a function of the store and the arguments.

May live here: handlers, and nothing that touches sockets or files. Each takes the store and
arguments whose shape the command table has checked, and returns the text of its result. If it
raises, what it has changed is undone. What answers with the whole content takes a view of it
instead, and gives its results in parts, with empty ones where there is nothing to send yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from hashlib import blake2b
from math import isfinite
from typing import Any

import orjson

from pickledbd.clock import now_ms
from pickledbd.expiry import Piece, deadline_in, deadlines_in, left_ms
from pickledbd.globs import matcher
from pickledbd.records import entries
from pickledbd.store import Store
from pickledbd_protocol import (
    INT_MAX,
    INT_MIN,
    Conflict,
    InvalidValue,
    TooLarge,
    canonical,
    canonical_items,
    shown,
)

Args = dict[str, Any]

_KINDS = {
    str: "a string",
    bool: "true or false",
    type(None): "null",
    list: "an array",
    dict: "an object",
}

LOOKED_AT_ONCE = 2**12
"""Characters of keys that are compared in one step."""

ANSWER_BYTES = 2**28
"""Bytes of values in one answer that does not come in parts, at most: a short request can name a
large value very often."""

PART_BYTES = 2**18
"""An answer as large as the database is sent in parts of about this size."""


def get(store: Store, args: Args) -> bytes:
    key = args["key"]
    value = store.get(key)
    if value is None:
        return b"{%b}" % store.counters.of(key)
    if store.deadline(key) is not None:  # its end changes no counter
        return b'{"value":%b}' % value
    counter = store.counters.of(key)
    return b'{"value":%b%b%b}' % (value, b"," if counter else b"", counter)


def exists(store: Store, args: Args) -> bytes:
    return b'{"exists":true}' if args["key"] in store else b'{"exists":false}'


def set_(store: Store, args: Args) -> bytes:
    key = args["key"]
    store.set(key, canonical(key, args["value"]), deadline_in(args))
    return b"{}"


def setdefault(store: Store, args: Args) -> bytes:
    key = args["key"]
    value = store.get(key)
    if value is None:
        value = canonical(key, args["value"])
        store.set(key, value)
    return b'{"value":%s}' % value


def remove(store: Store, args: Args) -> bytes:
    return b'{"removed":false}' if store.remove(args["key"]) is None else b'{"removed":true}'


def pop(store: Store, args: Args) -> bytes:
    value = store.remove(args["key"])
    return b"{}" if value is None else b'{"value":%s}' % value


def popitem(store: Store, _args: Args) -> bytes:
    key = store.last_key()
    if key is None:
        return b"{}"
    return b'{"key":%s,"value":%s}' % (orjson.dumps(key), store.remove(key))


def incr(store: Store, args: Args) -> bytes:
    key = args["key"]
    text = store.get(key)
    before = args.get("default", 0) if text is None else orjson.loads(text)
    if type(before) not in (int, float):
        kind = _KINDS.get(type(before), "something else")
        raise InvalidValue(f"cannot increment key {shown(key)}: its value is {kind}, not a number")
    after = before + args.get("by", 1)
    good = isfinite(after) if type(after) is float else INT_MIN <= after <= INT_MAX
    if not good:
        limit = "beyond the floats" if type(after) is float else "over 64 bits"
        raise InvalidValue(f"cannot increment key {shown(key)}: the sum would be {limit}")
    sum_text = canonical(key, after)
    store.set(key, sum_text, None if text is None else store.deadline(key))
    return b'{"value":%b}' % sum_text


def get_versioned(store: Store, args: Args) -> bytes:
    value = store.get(args["key"])
    if value is None:
        return b'{"version":0}'
    return b'{"value":%b,"version":%b}' % (value, orjson.dumps(_version(value)))


def cas(store: Store, args: Args) -> bytes:
    key = args["key"]
    before = store.get(key)
    if _version(before) != args["version"]:
        return b'{"swapped":false}'
    deadline = deadline_in(args)
    if args.get("keep_ttl") and before is not None:
        deadline = store.deadline(key)
    store.set(key, canonical(key, args["value"]), deadline)
    return b'{"swapped":true}'


def if_version(store: Store, args: Args) -> bytes:
    key = args["key"]
    if _version(store.get(key)) != args["version"]:
        raise Conflict(f"key {shown(key)} has been changed meanwhile; nothing was done")
    return b"{}"


def _version(text: bytes | None) -> str | int:
    """What a value has in common only with equal ones; 0 for none."""
    return 0 if text is None else blake2b(text, digest_size=16).hexdigest()


def ttl(store: Store, args: Args) -> bytes:
    key = args["key"]
    if key not in store:
        return b"{}"
    deadline = store.deadline(key)
    return (
        b'{"ttl_ms":null}' if deadline is None else b'{"ttl_ms":%d}' % left_ms(deadline, now_ms())
    )


def expire(store: Store, args: Args) -> bytes:
    key = args["key"]
    if key not in store:
        return b'{"expires":false}'
    store.expire(key, deadline_in(args))
    return b'{"expires":true}'


def persist(store: Store, args: Args) -> bytes:
    key = args["key"]
    if key not in store or store.deadline(key) is None:
        return b'{"persisted":false}'
    store.expire(key, None)
    return b'{"persisted":true}'


def get_many(store: Store, args: Args) -> bytes:
    values = store.get_many(args["keys"])
    there = [value for value in values if value is not None]
    if sum(map(len, there)) > ANSWER_BYTES:
        raise TooLarge(
            f"get_many: the values of these {len(values):,} keys are over {ANSWER_BYTES:,} bytes "
            "together; ask for fewer at once"
        )
    missing = b"[]"
    if len(there) < len(values):
        missing = orjson.dumps([index for index, value in enumerate(values) if value is None])
    return b'{"values":[%b],"missing":%b}' % (b",".join(there), missing)


def set_many(store: Store, args: Args) -> bytes:
    store.set_many(canonical_items(args["items"]), deadlines_in(args, now_ms()))
    return b"{}"


def remove_many(store: Store, args: Args) -> bytes:
    removed = sum(store.remove(key) is not None for key in args["keys"])
    return b'{"removed":%d}' % removed


def len_(store: Store, _args: Args) -> bytes:
    return b'{"len":%d}' % len(store)


def replace(store: Store, args: Args) -> bytes:
    items = canonical_items(args["items"])
    store.clear()
    store.set_many(items, deadlines_in(args, now_ms()))
    return b"{}"


def purge(store: Store, _args: Args) -> bytes:
    store.clear()
    return b"{}"


def batch(store: Store, args: Args) -> bytes:
    results = (carry_out(store, step["op"], step.get("args", {})) for step in args["steps"])
    return b'{"results":[%b]}' % b",".join(results)


def unlock(store: Store, args: Args) -> bytes:
    was_held, undo = store.locks.release(args["name"], (args["holder"], args["ask"]))
    if undo is not None:
        store.did(undo, {"unlock": args["name"]} if was_held else {})
    return b'{"released":true}' if was_held else b'{"released":false}'


def carry_out(store: Store, op: str, args: Args) -> bytes:
    """What a command does and returns, if the lock whose token it names is held. LockLost."""
    token = args.get("token")
    if token is not None:
        store.locks.demand(token)
    return HANDLERS[op](store, args)


HANDLERS: dict[str, Callable[[Store, Args], bytes]] = {
    "get": get,
    "exists": exists,
    "set": set_,
    "setdefault": setdefault,
    "remove": remove,
    "pop": pop,
    "popitem": popitem,
    "incr": incr,
    "get_versioned": get_versioned,
    "cas": cas,
    "if_version": if_version,
    "ttl": ttl,
    "expire": expire,
    "persist": persist,
    "get_many": get_many,
    "set_many": set_many,
    "remove_many": remove_many,
    "len": len_,
    "replace": replace,
    "purge": purge,
    "batch": batch,
    "unlock": unlock,
}


TELLING = {"get", "get_versioned", "get_many", "pop", "setdefault"}
"""Commands whose answers are as large as the values of the keys that they name."""


def told_bytes(store: Store, args: Args) -> int:
    """How large such an answer is, about."""
    values = store.get_many([args["key"]] if "key" in args else args["keys"])
    return sum(len(value) for value in values if value is not None)


def all_(content: Iterable[Piece], args: Args, _sequence: int) -> Iterator[bytes]:
    texts = ((orjson.dumps(list(keys))[1:-1],) for keys, _, _ in _some(content, args))
    return _in_parts(b'{"keys":[%b]}', texts)


def dump(content: Iterable[Piece], args: Args, sequence: int) -> Iterator[bytes]:
    some = _some(content, args)
    members = b'"items":{%b}'
    texts: Iterable[tuple[bytes, ...]]
    if args.get("ttl"):
        members += b',"ttl_ms":{%b}'
        now = now_ms()
        texts = ((entries(keys, values), _ttls(ends, now)) for keys, values, ends in some)
    else:
        texts = ((entries(keys, values),) for keys, values, _ in some)
    last = b'{%b,"seq":%d}' % (members, sequence) if args.get("seq") else None
    return _in_parts(b"{%b}" % members, texts, last)


def _ttls(deadlines: Mapping[str, int], now: int) -> bytes:
    """How long these keys live at `now`, as members of an object; at least as long as is told."""
    return orjson.dumps({key: max(1, left_ms(at, now)) for key, at in deadlines.items()})[1:-1]


def _some(content: Iterable[Piece], args: Args) -> Iterator[Piece]:
    """The keys that are asked for, and their values, after not too long a search at a time."""
    wanted = _wanted(args)
    for keys, values, deadlines in content:
        if wanted is None:
            yield keys, values, deadlines
            continue
        found: dict[str, bytes] = {}
        looked = 0
        # They are no more what they were once the table is changed, between these steps
        for key, value in list(zip(keys, values, strict=True)):
            if wanted(key):
                found[key] = value
            looked += len(key)
            if looked >= LOOKED_AT_ONCE:
                yield _piece(found, deadlines)
                found, looked = {}, 0
        yield _piece(found, deadlines)


def _piece(found: dict[str, bytes], deadlines: Mapping[str, int]) -> Piece:
    """These items, and of `deadlines` theirs."""
    own = {key: deadlines[key] for key in found if key in deadlines} if deadlines else deadlines
    return found.keys(), found.values(), own


def _wanted(args: Args) -> Callable[[str], bool] | None:
    """Whether a key has the prefix and matches the glob, if any is asked for."""
    prefix = args.get("prefix", "")
    matches = matcher(args["glob"]) if "glob" in args else None
    if matches is None:
        return (lambda key: key.startswith(prefix)) if prefix else None
    return lambda key: key.startswith(prefix) and matches(key)


def _in_parts(
    template: bytes, pieces: Iterable[tuple[bytes, ...]], last: bytes | None = None
) -> Iterator[bytes]:
    """Replies of about PART_BYTES. A piece has a text for each place in the template."""
    part: list[tuple[bytes, ...]] = []
    size = 0

    def filled(form: bytes) -> bytes:
        places = form.count(b"%b")
        columns = zip(*part, strict=True) if part else [()] * places
        return form % tuple(b",".join(filter(None, column)) for column in columns)

    for piece in pieces:
        if size >= PART_BYTES:
            yield filled(template)
            part, size = [], 0
        else:
            yield b""
        if piece[0]:
            part.append(piece)
            size += sum(map(len, piece))
    yield filled(last or template)


Reader = Callable[[Iterable[Piece], Args, int], Iterator[bytes]]
"""Of the content of one moment, the arguments, and the sequence of the newest change in it."""

READERS: dict[str, Reader] = {
    "all": all_,
    "dump": dump,
}
