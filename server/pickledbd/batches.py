"""Batches that come in several messages, or are too large to be applied in one turn.

May live here: gathering their items as a table, in short steps. Only when the last has come, and
all are proved, does the engine carry them out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from functools import cached_property
from itertools import islice
from typing import Any

from pickledbd.clock import now_ms
from pickledbd.expiry import NEVER, deadline_of, deadlines_in, living, stamped
from pickledbd.limits import Limits
from pickledbd.table import CHUNK, Table
from pickledbd.ties import Ties
from pickledbd.wheel import Wheel
from pickledbd_protocol import (
    PickleDBError,
    Request,
    RequestTimeout,
    TooLarge,
    Unavailable,
    canonical_items,
)

LARGE = 2000
"""Items of a batch that a turn does not apply by itself; half as many, if they expire."""

EXPIRE_MS = 60_000
"""How long after its last part an unfinished batch is kept at least."""

EXPIRE_MS_MAX = 10 * 60_000
"""How long it is kept at most, however long its client would wait."""

LATE_MAX = 10_000
"""Batches that were dropped, and of which parts may come yet."""


OPEN_MAX = 16
"""Unfinished batches of one connection, at most."""

ALL_OPEN, ALL_OPEN_MAX = 2, 1000
"""What the unfinished batches of all are together at most, in requests of the largest size; and
how many they are."""


class Batch:
    """The items of one request."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self.number = time.time_ns()
        """Tells its records in the journal from those of others, also of daemons before."""
        self.is_large = False
        self.expires = 0.0
        self.bytes = 0
        self.count = 0
        """Items of all messages so far."""
        self.wheel: Wheel[str] = Wheel()
        """Those of them that expire, if they are to be the whole content."""
        self._is_all = False
        self._single: dict[str, Any] = {}
        self._deadlines: Mapping[str, int] = NEVER
        self._begun: int | None = None  # when the first message came
        self._error: PickleDBError | None = None

    @cached_property
    def table(self) -> Table:
        """Its items as they are to be stored; made when needed, which is not for a small one."""
        return Table()

    def add(self, request: Request) -> None:
        """Have the items of a further message."""
        items = request.args["items"]
        self.count += len(items)
        if self._error is None:
            self.bytes += request.size
        self._is_all = request.command.name == "replace"
        if self._begun is None:
            self._begun = now_ms()
        deadlines = deadlines_in(request.args, self._begun)
        if request.more or self.is_large:
            self.is_large = True
            if self._error is None:
                for _ in self._encode(items, deadlines):
                    pass
        else:
            self.is_large = len(items) > (LARGE // 2 if deadlines else LARGE)
            self._single, self._deadlines = items, deadlines

    def refuse(self, error: PickleDBError) -> None:
        """Have no items, and `error` for all of it, which is told when the last part has come."""
        self.__dict__.pop("table", None)
        self.wheel = Wheel()
        self._single = {}
        self.bytes = 0
        self._error = self._error or error
        self.is_large = True

    def prepare(self) -> Iterator[None]:
        """Prove and encode what is left, a little at each step. InvalidValue names the key."""
        yield from self._encode(self._single, self._deadlines)
        if self._error is not None:
            raise self._error

    def _encode(self, items: dict[str, Any], deadlines: Mapping[str, int]) -> Iterator[None]:
        pairs = iter(items.items())
        try:
            while part := dict(islice(pairs, CHUNK)):
                texts = canonical_items(part)
                self._limits.check_items(part, list(texts.values()))
                if deadlines:
                    texts = {key: stamped(t, deadlines.get(key)) for key, t in texts.items()}
                if self._is_all and (deadlines or self.wheel.used):
                    self._turn_wheel(texts)
                self.table.extend(list(texts), list(texts.values()))
                yield
        except PickleDBError as error:
            self._error = error

    def _turn_wheel(self, values: Mapping[str, bytes]) -> None:
        """Have those in the wheel that expire, before these values are in the table."""
        for key, value in values.items():
            before, at = self.table.get(key), deadline_of(value)
            if before is not None and not before[0]:
                self.wheel.discard(key, deadline_of(before) or 0)
            if at is not None:
                self.wheel.add(key, at)

    def parts(self) -> Iterator[tuple[dict[str, bytes], Mapping[str, int]]]:
        """Its items and their deadlines, some at a time."""
        for keys, texts, deadlines in living(self.table.view(), 0):
            yield dict(zip(keys, texts, strict=True)), deadlines


class Batches:
    """The batches whose last message has not come yet."""

    def __init__(self, request_bytes: int, limits: Limits) -> None:
        self.offending: dict[bytes, str] = {}
        """Peers on whom to hang up, and why: more of them would not be borne."""
        self._request_bytes = request_bytes
        self._limits = limits
        self._open: dict[tuple[bytes, int], Batch] = {}
        self._open_of: Ties[tuple[bytes, int], bytes] = Ties()
        self.bytes = 0
        """Of those that are unfinished."""
        self._late: dict[tuple[bytes, int], None] = {}

    def gather(self, peer: bytes, request: Request) -> Batch | None:
        """The batch that this message ends, or None if further ones have to come.

        It is refused if its messages are larger together than a request may be.
        """
        batch = self._take(peer, request.id)
        batch.add(request)
        if batch.bytes > self._request_bytes:
            batch.refuse(
                TooLarge(
                    f"a {request.command.name} of over {self._request_bytes:,} bytes is more than "
                    "this daemon accepts; send less at once, or start it with a larger "
                    "--max-request"
                )
            )
        elif request.more and (
            len(self._open) >= ALL_OPEN_MAX
            or self.bytes + batch.bytes > ALL_OPEN * self._request_bytes
        ):
            batch.refuse(
                Unavailable(
                    f"a {request.command.name} in parts was dropped, nothing was changed: "
                    f"unfinished ones of all clients are over {ALL_OPEN_MAX:,}, or "
                    f"{ALL_OPEN * self._request_bytes:,} bytes, together; try again later, or "
                    "start the daemon with a larger --max-request"
                )
            )
        if not request.more:
            return batch
        wait_ms = min(max(request.budget_ms or 0, EXPIRE_MS), EXPIRE_MS_MAX)
        self._keep(peer, request.id, batch, wait_ms)
        return None

    def refuse(self, peer: bytes, request_id: int, error: PickleDBError) -> None:
        """Have all of a batch refused, since one of its parts was no good."""
        batch = self._take(peer, request_id)
        batch.refuse(error)
        self._keep(peer, request_id, batch, EXPIRE_MS)

    def expire(self) -> None:
        """Drop those whose sender has given up."""
        now = time.monotonic()
        for name, batch in list(self._open.items()):
            if now > batch.expires:
                self._drop(name)
                self._late[name] = None
        while len(self._late) > LATE_MAX:
            del self._late[next(iter(self._late))]

    def _take(self, peer: bytes, request_id: int) -> Batch:
        batch = self._drop((peer, request_id))
        if batch is None:
            batch = Batch(self._limits)
            if (peer, request_id) in self._late:  # or what comes now would count as all of it
                batch.refuse(RequestTimeout("a part of the batch came so late that it was dropped"))
        return batch

    def _keep(self, peer: bytes, request_id: int, batch: Batch, wait_ms: int) -> None:
        batch.expires = time.monotonic() + wait_ms / 1000
        self._open[peer, request_id] = batch
        self._open_of.tie((peer, request_id), peer)
        self.bytes += batch.bytes
        if self._open_of.count(peer) > OPEN_MAX:
            self.offending[peer] = f"had over {OPEN_MAX} unfinished requests in parts"

    def _drop(self, name: tuple[bytes, int]) -> Batch | None:
        batch = self._open.pop(name, None)
        if batch is not None:
            self._open_of.untie(name)
            self.bytes -= batch.bytes
        return batch

    def gone(self, peer: bytes) -> None:
        """The connection of `peer` was lost: nothing can be added to what it began."""
        for name in self._open_of.of(peer):
            self._drop(name)
