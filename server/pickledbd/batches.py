"""Batches that come in several messages, or are too large to be applied in one turn.

May live here: gathering their items as a table, in short steps. Only when the last has come, and
all are proved, does the engine carry them out.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from itertools import islice
from typing import Any

from pickledbd.table import CHUNK, Table
from pickledbd_protocol import PickleDBError, Request, TooLarge, canonical

LARGE = 1000
"""Items of a batch that a turn does not apply by itself."""

EXPIRE_MS = 60_000
"""How long after its last part an unfinished batch is kept at least."""


class Batch:
    """The items of one request."""

    def __init__(self) -> None:
        self.number = time.time_ns()
        """Tells its records in the journal from those of others, also of daemons before."""
        self.table = Table()
        self.is_large = False
        self.expires = 0.0
        self.bytes = 0
        self._single: dict[str, Any] = {}
        self._error: PickleDBError | None = None

    def add(self, request: Request) -> None:
        """Have the items of a further message."""
        items = request.args["items"]
        self.bytes += request.size
        if request.more or self.is_large:
            self.is_large = True
            if self._error is None:
                for _ in self._encode(items):
                    pass
        else:
            self.is_large = len(items) > LARGE
            self._single = items

    def refuse(self, error: PickleDBError) -> None:
        """Have no items, and `error` for all of it."""
        self.table = Table()
        self._single = {}
        self._error = error
        self.is_large = True  # whose errors are told when the last part has come

    def prepare(self) -> Iterator[None]:
        """Prove and encode what is left, a little at each step. InvalidValue names the key."""
        yield from self._encode(self._single)
        if self._error is not None:
            raise self._error

    def _encode(self, items: dict[str, Any]) -> Iterator[None]:
        pairs = iter(items.items())
        try:
            while part := dict(islice(pairs, CHUNK)):
                self.table.extend(list(part), [canonical(k, value) for k, value in part.items()])
                yield
        except PickleDBError as error:
            self._error = error

    def parts(self) -> Iterator[dict[str, bytes]]:
        """Its items, some at a time."""
        for keys, values in self.table.view():
            yield dict(zip(keys, values, strict=True))


class Batches:
    """The batches whose last message has not come yet."""

    def __init__(self, request_bytes: int) -> None:
        self._request_bytes = request_bytes
        self._open: dict[tuple[bytes, str, int], Batch] = {}

    def gather(self, peer: bytes, request: Request) -> Batch | None:
        """The batch that this message ends, or None if further ones have to come.

        It is refused if its messages are larger together than a request may be.
        """
        name = (peer, request.client, request.id)
        batch = self._open.pop(name, None) or Batch()
        batch.add(request)
        if batch.bytes > self._request_bytes:
            batch.refuse(
                TooLarge(
                    f"a {request.command.name} of over {self._request_bytes:,} bytes is more than "
                    "this daemon accepts; send less at once, or start it with a larger "
                    "--max-request"
                )
            )
        if not request.more:
            return batch
        self._open[name] = batch
        wait_ms = max(request.budget_ms or 0, EXPIRE_MS)
        batch.expires = time.monotonic() + wait_ms / 1000
        return None

    def expire(self) -> None:
        """Drop those whose sender has given up."""
        now = time.monotonic()
        for name, batch in list(self._open.items()):
            if now > batch.expires:
                del self._open[name]
