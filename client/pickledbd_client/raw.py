"""A PickleDB whose content also goes out and in as JSON text: what pickledbctl works with.

May live here: whole contents on their way, in parts, so that nobody has to hold them as Python
objects. What the text of a file looks like: formats.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass
from typing import Any, Self

from pickledbd_client.calls import ALL, PART_BYTES, WHOLE_BYTES, Call, Some
from pickledbd_client.database import PickleDB

BYTES_A_SECOND = 2**20
"""How slowly a daemon may take in a large request, at worst."""

_PART_MORE = 320  # bytes that a message is larger than its entries, at most
_TTL_BYTES = 16  # and an entry that expires than its key twice and its value


@dataclass(frozen=True, slots=True)
class Entry:
    """A key and its value as JSON text, bytes as `$binary`."""

    key: bytes
    value: bytes
    ttl_ms: int | None = None
    """Milliseconds until it is gone; None if it lives on."""


@dataclass(frozen=True, slots=True)
class Part:
    """Some items, decoded, but with bytes as `$binary` and the like as they are on the wire."""

    items: dict[str, Any]
    ttls: dict[str, int]
    """Milliseconds until these are gone."""


class Request:
    """Entries that are to be set by one request, be it in parts."""

    def __init__(self, token: int | None = None) -> None:
        self.count = 0
        """How many entries there are."""
        self.bytes = _PART_MORE
        """About the size of it all, and not less."""
        self._tail = b"" if token is None else b',"token":%d' % token
        self._parts: list[bytes] = []
        self._texts: list[bytes] = []
        self._ttls: dict[bytes, int] = {}
        self._size = 0

    def add(self, entry: Entry) -> None:
        """Have a further entry, which counts where there is one of its key already."""
        text = b"%b:%b" % (entry.key, entry.value)
        size = len(text) + 1
        if entry.ttl_ms is not None:
            size += len(entry.key) + _TTL_BYTES
        if self._size and self._size + size > (PART_BYTES if self._parts else WHOLE_BYTES):
            self._close()
        if entry.ttl_ms is not None:
            self._ttls[entry.key] = entry.ttl_ms
        elif self._ttls:
            self._ttls.pop(entry.key, None)
        self._texts.append(text)
        self._size += size
        self.bytes += size
        self.count += 1

    def parts(self) -> list[bytes]:
        """The arguments of each message."""
        if self._texts or not self._parts:
            self._close()
        return self._parts

    def _close(self) -> None:
        each = [b"%b:%d" % ttl for ttl in self._ttls.items()]
        ttls = b',"ttls":{%b}' % b",".join(each) if each else b""
        self._parts.append(b'{"items":{%b}%b%b}' % (b",".join(self._texts), ttls, self._tail))
        self._texts, self._ttls, self._size = [], {}, 0
        self.bytes += _PART_MORE


class RawPickleDB(PickleDB):
    """A PickleDB, and its content as text."""

    @property
    def request_bytes(self) -> int:
        """What the daemon takes in one request, be it in parts."""
        limit: int = self._route.daemon["limits"]["request_bytes"]
        return limit

    @property
    def keeps_ttls(self) -> bool:
        """Whether the daemon tells when the keys of a dump expire, and takes that back."""
        return "ttls" in self._route.daemon["features"]

    def sibling(self, timeout: float) -> Self:
        """The same database with another timeout. No daemon is started for it."""
        options = self._route.options | {"timeout": timeout, "autostart": False}
        return type(self)(self._route.target, **options)

    def listed(self, some: Some = ALL) -> Generator[list[str]]:
        """Those keys, of one moment, in order. Unavailable if the daemon goes away meanwhile."""
        for reply in self._link.parts(Call("all", some.args(), lambda _reply: None)):
            yield reply.result.get("keys", [])

    def dumped(self, some: Some = ALL, *, ttls: bool = True) -> Iterator[Part]:
        """Those items, of one moment, in order. Unavailable if the daemon goes away meanwhile."""
        args = some.args(ttl=True) if ttls and self.keeps_ttls else some.args()
        for reply in self._link.parts(Call("dump", args, lambda _reply: None)):
            yield Part(reply.result.get("items", {}), reply.result.get("ttl_ms", {}))

    def put(self, request: Request, *, replace: bool = False) -> None:
        """Set these entries, all or none; `replace`: and have nothing else. Raises as `set_many`.

        A large request may take longer than the timeout.
        """
        *before, last = request.parts()
        timeout = self._route.options["timeout"]
        patience = None if timeout is None else timeout + request.bytes / BYTES_A_SECOND
        self._link.request(
            Call(
                "replace" if replace else "set_many",
                last,
                lambda _reply: None,
                before,
                patience=patience,
            )
        )
