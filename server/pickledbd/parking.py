"""Requests that wait for what others do: a lock to be free, a key to change.

May live here: how they are parked, answered and forgotten; the rules are those of `locks` and
`watches`. Nobody asks again and again: each request is answered when its time comes, or never, if
its connection is lost. No sockets and no files: what has to be in the journal is returned.
"""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from pickledbd import records
from pickledbd.clock import now_ms
from pickledbd.locks import Lock, told_of
from pickledbd.queues import Waiter
from pickledbd.store import Store
from pickledbd_protocol import Request, encode_reply

WAITING = {"lock", "keep", "watch", "unwatch"}
"""Commands by which clients wait for each other: what `Parking` handles."""

Peer = bytes

Replies = list[tuple[Peer, bytes]]

Texts = list[bytes]
"""Of records for the journal."""


class Parking:
    """The parked requests of all clients."""

    def __init__(self, store: Store) -> None:
        self._locks = store.locks
        self._feed = store.feed
        self._store = store
        self._left: Replies = []  # to those who are not to wait any longer

    def handle(self, peer: Peer, request: Request) -> bytes | None:
        """The result of a command of WAITING; None if it is parked."""
        name, args = request.command.name, request.args
        if name == "watch":
            return self._feed.ask(
                peer,
                request.id,
                prefix=args.get("prefix", ""),
                since=args.get("since"),
                watcher=args.get("watcher", ""),
            )
        if name == "lock":
            return self._lock(peer, request)
        if name == "keep":
            lost = self._locks.keep(peer, args["holder"], args["asks"])
            return b'{"lost":%b}' % orjson.dumps(lost)
        left = self._feed.leave(args["watcher"])
        self._left += [(peer, encode_reply(request_id, b"{}")) for peer, request_id in left]
        return b"{}"

    def _lock(self, peer: Peer, request: Request) -> bytes | None:
        args = request.args
        if self._locks.is_over((args["holder"], args["ask"])):
            return b"{}"
        now = now_ms()
        since = now if request.sent_at is None else min(request.sent_at, now)
        waiter = Waiter(
            args["name"],
            (args["holder"], args["ask"]),
            args["ttl_ms"],
            peer,
            request.id,
            since,
            since + args["wait_ms"] if "wait_ms" in args else None,
        )
        token = self._locks.ask(waiter)
        return None if token is None else _granted(token)

    def holds(self, request: Request) -> bool:
        """Whether the ask of a `lock` was granted already."""
        return self._locks.holds((request.args["holder"], request.args["ask"]))

    def knows(self, request: Request) -> bool:
        """Whether it is a `lock` whose ask is there already, so that nothing is added by it."""
        args = request.args
        return request.command.name == "lock" and self._locks.knows((args["holder"], args["ask"]))

    def of(self, peer: Peer) -> int:
        """How many requests of this connection are parked."""
        return self._feed.of(peer) + self._locks.waiting_of(peer)

    def forget(self, request: Request) -> None:
        """Have a `lock` that is refused wait no longer."""
        self._locks.forget((request.args["holder"], request.args["ask"]))

    @property
    def next_due(self) -> int | None:
        """When `overdue` is to be called, by the daemon's clock."""
        return self._locks.next

    @property
    def restless(self) -> bool:
        """Whether somebody may be to be answered."""
        return bool(self._left or self._locks.gave_up) or self._feed.restless

    def overdue(self) -> Texts:
        """End what is over: locks, and the patience of those who wait for one."""
        return _ended(self._locks.overdue())

    def gone(self, peer: Peer) -> Texts:
        """The connection of `peer` was lost."""
        self._feed.gone(peer)
        return _ended(self._locks.gone(peer))

    def grants(self) -> tuple[Texts, Replies]:
        """Grant the locks that are free, which is undone if the store is rolled back."""
        texts, replies = [], []
        for waiter, lock, undo in self._locks.grants():
            effect = {"lock": told_of(lock)}
            self._store.did(undo, effect)
            texts.append(records.effects({}, others=effect))
            replies.append((waiter.peer, encode_reply(waiter.request_id, _granted(lock.token))))
        return texts, replies

    def answers(self) -> Replies:
        """To those who watch, of what was committed; and to those who are to wait no longer."""
        replies, self._left = self._left, []
        replies += [
            (peer, encode_reply(request_id, result))
            for peer, request_id, result in self._feed.answers()
        ]
        gave_up, self._locks.gave_up = self._locks.gave_up, []
        replies += [(each.peer, encode_reply(each.request_id, b"{}")) for each in gave_up]
        return replies

    def __len__(self) -> int:
        return len(self._feed) + self._locks.waiting


def _granted(token: int) -> bytes:
    return b'{"token":%d}' % token


def _ended(locks: Iterable[Lock]) -> Texts:
    return [records.effects({}, others={"unlock": lock.name}) for lock in locks]
