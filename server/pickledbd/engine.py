"""The owner's mind: requests in, replies out, and when to save. No sockets.

The loop hands in what arrived and, when it has handed in all of it, ends the turn; a `save` is
parked until then, so that any number of them share one. Everything runs in the loop's thread.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from pickledbd.handlers import HANDLERS
from pickledbd.ownership import AlreadyOwnedError, Ownership
from pickledbd.snapshot import DataFile, Unreadable
from pickledbd.store import Store
from pickledbd_protocol import (
    PROTOCOL_VERSION,
    PickleDBError,
    ProtocolError,
    Refused,
    Request,
    SaveFailed,
    __version__,
    decode_request,
    encode_error,
    encode_reply,
)

log = logging.getLogger(__name__)

Peer = bytes


@dataclass
class Status:
    """What the daemon tells about itself; the loop and the engine each keep their own part."""

    location: str
    request_bytes: int
    endpoints: list[str] = field(default_factory=list)
    clients: int = 0
    started: float = field(default_factory=time.monotonic)
    longest_slice_ms: float = 0.0
    last_save_time: float | None = None
    last_save_duration_ms: float | None = None
    last_save_error: str | None = None


class Engine:
    """Applies requests to the store and saves it to its file."""

    def __init__(self, store: Store, file: DataFile, owner: Ownership, status: Status) -> None:
        self._store = store
        self._file = file
        self._owner = owner
        self._status = status
        self._saved_changes = 0
        self._saves: list[tuple[Peer, int]] = []

    @property
    def dirty(self) -> int:
        """How many changes the file does not hold."""
        return self._store.changes - self._saved_changes

    @property
    def unsaved(self) -> bool:
        """Whether the disk may hold something else than the store."""
        return self.dirty > 0 or self._status.last_save_error is not None

    def receive(self, peer: Peer, frames: Sequence[bytes]) -> Iterable[bytes]:
        """Apply one message and return its reply's messages: none yet if it has to wait."""
        request = decode_request(frames)
        if isinstance(request, Refused):
            return [encode_error(request.id, request.error)]
        try:
            return self._apply(peer, request)
        except PickleDBError as error:
            return [encode_error(request.id, error)]
        except Exception:
            # Whatever it was, it was one request's; the others must go on.
            log.exception("a %s of client %s failed", request.command.name, request.client)
            fault = PickleDBError(f"{request.command.name} failed in the daemon; see its log")
            return [encode_error(request.id, fault)]

    def _apply(self, peer: Peer, request: Request) -> Iterable[bytes]:
        name = request.command.name
        handler = HANDLERS.get(name)
        if handler:
            result = handler(self._store, request.args)
            if isinstance(result, bytes):
                return [encode_reply(request.id, result)]
            return _parts(request.id, result)
        if name == "save":
            self._saves.append((peer, request.id))
            return []
        about: dict[str, Any] = {}
        if name == "hello":
            about = self._hello(request.args["versions"])
        elif name == "info":
            about = self._info()
        return [encode_reply(request.id, orjson.dumps(about))]

    def finish_turn(self) -> list[tuple[Peer, bytes]]:
        """End a turn: one save for all that asked, and their replies."""
        if not self._saves:
            return []
        waiting, self._saves = self._saves, []
        try:
            saved = self.unsaved or not self._file.exists() or self._file.changed()
            if saved:
                self.save()
        except SaveFailed as error:
            return [(peer, encode_error(request_id, error)) for peer, request_id in waiting]
        result = b'{"saved":true}' if saved else b'{"saved":false}'
        return [(peer, encode_reply(request_id, result)) for peer, request_id in waiting]

    def save(self) -> None:
        """Write the store to its file. SaveFailed if it is not on disk.

        A failure is logged once, however often it is met again.
        """
        status = self._status
        started = time.monotonic()
        changes = self._store.changes
        try:
            self._keep_owning()
            self._file.save(self._store.items())
        except SaveFailed as error:
            if status.last_save_error != str(error):
                log.error("%s", error)
            status.last_save_error = str(error)
            raise
        self._saved_changes = changes
        status.last_save_error = None
        status.last_save_time = time.time()
        status.last_save_duration_ms = round((time.monotonic() - started) * 1e3, 3)

    def _keep_owning(self) -> None:
        """Have the lock, anew if somebody removed its file; SaveFailed if it is another's now."""
        try:
            self._owner.restore()
        except AlreadyOwnedError as taken:
            why = f"it was removed, and pid {taken.owner.get('pid')} holds it now"
        except OSError as error:
            why = str(error.strerror)
        else:
            return
        raise SaveFailed(f"cannot save {self._file.path}: its lock file {self._owner.path}: {why}")

    def refresh(self) -> None:
        """Take over what another program did to the file, if nothing of ours is unsaved.

        Only for a moment when no client is connected: to each of them the content would change
        by itself.
        """
        if self.unsaved or not self._file.changed():
            return
        try:
            self._store.replace(self._file.load())
        except Unreadable as error:
            log.error("%s; what it held before is served", error)
        else:
            self._saved_changes = self._store.changes
            log.warning("%s was changed by another program; loaded again", self._file.path)

    def _hello(self, versions: list[int]) -> dict[str, Any]:
        if PROTOCOL_VERSION not in versions:
            raise ProtocolError(
                f"this daemon ({__version__}) speaks protocol version {PROTOCOL_VERSION}, "
                f"the client {versions}: use the same pickledbd release on both sides"
            )
        return {
            "version": PROTOCOL_VERSION,
            "server": __version__,
            "pid": os.getpid(),
            "location": self._status.location,
            "limits": {"request_bytes": self._status.request_bytes},
            "features": [],
        }

    def _info(self) -> dict[str, Any]:
        status = self._status
        return {
            "pid": os.getpid(),
            "version": __version__,
            "protocol": PROTOCOL_VERSION,
            "location": status.location,
            "endpoints": status.endpoints,
            "keys": len(self._store),
            "clients": status.clients,
            "durability": "save",
            "dirty": self.dirty,
            "uptime": round(time.monotonic() - status.started, 3),
            "last_save_time": status.last_save_time,
            "last_save_duration_ms": status.last_save_duration_ms,
            "last_save_error": status.last_save_error,
            "longest_slice_ms": round(status.longest_slice_ms, 3),
        }


def _parts(request_id: int, results: Iterator[bytes]) -> Iterator[bytes]:
    """The messages of an answer in parts: all but the last are marked."""
    part = next(results)
    for following in results:
        yield encode_reply(request_id, part, more=True)
        part = following
    yield encode_reply(request_id, part)
