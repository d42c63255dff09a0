"""What each command on the data does: a function of the store and the arguments.

May live here: handlers, and nothing that touches sockets or files. Each takes the store and
arguments whose shape the command table has checked, and returns the text of its result. If it
raises, what it has changed is undone. What answers with the whole content takes a view of it
instead, and gives its results in parts, with empty ones where there is nothing to send yet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson

from pickledbd.records import entries
from pickledbd.store import Store
from pickledbd.table import View
from pickledbd_protocol import canonical, canonical_items

Args = dict[str, Any]

PART_BYTES = 2**18
"""An answer as large as the database is sent in parts of about this size."""


def get(store: Store, args: Args) -> bytes:
    key = args["key"]
    value = store.get(key)
    counter = store.counters.of(key)
    if value is None:
        return b"{%b}" % counter
    return b'{"value":%b%b%b}' % (value, b"," if counter else b"", counter)


def exists(store: Store, args: Args) -> bytes:
    return b'{"exists":true}' if args["key"] in store else b'{"exists":false}'


def set_(store: Store, args: Args) -> bytes:
    key = args["key"]
    store.set(key, canonical(key, args["value"]))
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


def get_many(store: Store, args: Args) -> bytes:
    values = store.get_many(args["keys"])
    there = [value for value in values if value is not None]
    missing = b"[]"
    if len(there) < len(values):
        missing = orjson.dumps([index for index, value in enumerate(values) if value is None])
    return b'{"values":[%b],"missing":%b}' % (b",".join(there), missing)


def set_many(store: Store, args: Args) -> bytes:
    store.set_many(canonical_items(args["items"]))
    return b"{}"


def remove_many(store: Store, args: Args) -> bytes:
    removed = sum(store.remove(key) is not None for key in args["keys"])
    return b'{"removed":%d}' % removed


def len_(store: Store, _args: Args) -> bytes:
    return b'{"len":%d}' % len(store)


def replace(store: Store, args: Args) -> bytes:
    items = canonical_items(args["items"])
    store.clear()
    store.set_many(items)
    return b"{}"


def purge(store: Store, _args: Args) -> bytes:
    store.clear()
    return b"{}"


def batch(store: Store, args: Args) -> bytes:
    results = (HANDLERS[step["op"]](store, step.get("args", {})) for step in args["steps"])
    return b'{"results":[%b]}' % b",".join(results)


HANDLERS: dict[str, Callable[[Store, Args], bytes]] = {
    "get": get,
    "exists": exists,
    "set": set_,
    "setdefault": setdefault,
    "remove": remove,
    "pop": pop,
    "popitem": popitem,
    "get_many": get_many,
    "set_many": set_many,
    "remove_many": remove_many,
    "len": len_,
    "replace": replace,
    "purge": purge,
    "batch": batch,
}


def all_(view: View) -> Iterator[bytes]:
    return _in_parts(b'{"keys":[%b]}', (orjson.dumps(list(keys))[1:-1] for keys, _ in view))


def dump(view: View) -> Iterator[bytes]:
    return _in_parts(b'{"items":{%b}}', (entries(keys, values) for keys, values in view))


def _in_parts(template: bytes, texts: Iterable[bytes]) -> Iterator[bytes]:
    part: list[bytes] = []
    size = 0
    for text in texts:
        if size >= PART_BYTES:
            yield template % b",".join(part)
            part, size = [], 0
        elif part:
            yield b""
        if text:
            part.append(text)
            size += len(text)
    yield template % b",".join(part)


READERS: dict[str, Callable[[View], Iterator[bytes]]] = {"all": all_, "dump": dump}
