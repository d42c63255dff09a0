"""What each command on the data does: a function of the store and the arguments.

May live here: handlers, and nothing that touches sockets or files. Each takes the store and
arguments whose shape the command table has checked, and returns the text of its result: one
piece, or several where the answer is as large as the database. A handler proves everything
before it changes anything, so an error leaves no trace.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import orjson

from pickledbd.store import Store
from pickledbd_protocol import canonical

Args = dict[str, Any]

PART_BYTES = 4 * 2**20
"""An answer as large as the database is sent in parts of about this size."""


def get(store: Store, args: Args) -> bytes:
    value = store.get(args["key"])
    return b"{}" if value is None else b'{"value":%s}' % value


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
    item = store.pop_last()
    return b"{}" if item is None else b'{"key":%s,"value":%s}' % (orjson.dumps(item[0]), item[1])


def get_many(store: Store, args: Args) -> bytes:
    values = ((key, store.get(key)) for key in dict.fromkeys(args["keys"]))
    return b'{"items":{%s}}' % b",".join(
        b"%s:%s" % (orjson.dumps(key), value) for key, value in values if value is not None
    )


def set_many(store: Store, args: Args) -> bytes:
    store.update(_canonical_items(args["items"]))
    return b"{}"


def remove_many(store: Store, args: Args) -> bytes:
    removed = sum(store.remove(key) is not None for key in args["keys"])
    return b'{"removed":%d}' % removed


def len_(store: Store, _args: Args) -> bytes:
    return b'{"len":%d}' % len(store)


def all_(store: Store, _args: Args) -> Iterator[bytes]:
    return _in_parts(b'{"keys":[%s]}', map(orjson.dumps, store.keys()))


def dump(store: Store, _args: Args) -> Iterator[bytes]:
    entries = (b"%s:%s" % (orjson.dumps(key), value) for key, value in store.items())
    return _in_parts(b'{"items":{%s}}', entries)


def replace(store: Store, args: Args) -> bytes:
    store.replace(_canonical_items(args["items"]))
    return b"{}"


def purge(store: Store, _args: Args) -> bytes:
    store.replace({})
    return b"{}"


def _canonical_items(items: dict[str, Any]) -> dict[str, bytes]:
    return {key: canonical(key, value) for key, value in items.items()}


def _in_parts(template: bytes, entries: Iterable[bytes]) -> Iterator[bytes]:
    part: list[bytes] = []
    size = 0
    for entry in entries:
        if size >= PART_BYTES:
            yield template % b",".join(part)
            part, size = [], 0
        part.append(entry)
        size += len(entry)
    yield template % b",".join(part)


HANDLERS: dict[str, Callable[[Store, Args], bytes | Iterator[bytes]]] = {
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
    "all": all_,
    "dump": dump,
    "replace": replace,
    "purge": purge,
}
