"""The owner's mind: requests in, replies out. No sockets.

The loop hands in what arrived and, when it has handed in enough, ends the turn: what the turn
changed is appended to the journal in one write, and only then are its replies given out. Where
that fails the changes are undone and the requests answered once more, writes by a refusal. What
takes long goes on as tasks between the turns: `large` batches, `reaping`, saves, answers with the
whole content. Everything runs in the loop's thread.
"""

from __future__ import annotations

import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import orjson

from pickledbd import clock, records
from pickledbd.about import About
from pickledbd.batches import Batch, Batches
from pickledbd.clock import now_ms
from pickledbd.disk import DiskError
from pickledbd.handlers import HANDLERS, READERS, TELLING, carry_out, told_bytes
from pickledbd.journal import Journal
from pickledbd.large import Large
from pickledbd.parking import WAITING, Parking
from pickledbd.reaping import Reaper
from pickledbd.records import Answer
from pickledbd.retries import Retries, answer_to
from pickledbd.rights import EVERYTHING, Rights
from pickledbd.saver import Gate, Saver
from pickledbd.status import Status
from pickledbd.store import Effect, Size, Store
from pickledbd.table import View
from pickledbd.tasks import Pause, Task, Tasks
from pickledbd.ties import Ties
from pickledbd_protocol import (
    NotAllowed,
    PickleDBError,
    Refused,
    Request,
    SaveFailed,
    decode_requests,
    encode_error,
    encode_reply,
    gather,
    shown,
)

log = logging.getLogger(__name__)

Peer = bytes

ALIVE_SECONDS = 1.0
"""How often who waits for something long is told that it is being done."""

TAKEN_IN_SECONDS = 0.0005
"""How long several requests of one message, or those that were held, are taken in at a time."""

TICK_SECONDS = 0.05
"""How soon after a write, or a task, the saver looks whether it has something to do."""

HELD_MAX = 1000
HELD_BYTES = 2**20
"""Requests of one connection that are held, or one of so many bytes; what comes then is not to be
taken in."""

READS_MAX = 64
READS_OF_PEER = 4
"""Answers with the whole content that are given at a time, to all and to one connection: each may
need copies of what is changed meanwhile. Who asks for further ones has to wait."""

PARSED = 32
"""Items of a large batch take up to so many times the memory that their text took."""

LONG_SECONDS = 3600.0
"""How soon the daemon looks at its clock at the latest."""


@dataclass(slots=True)
class _Turn:
    """What was asked since the last turn ended, and what has come of it."""

    requests: list[tuple[Peer, Request]] = field(default_factory=list)
    replies: list[tuple[Peer, bytes]] = field(default_factory=list)
    records: list[bytes] = field(default_factory=list)
    answered: list[tuple[str, Answer | None]] = field(default_factory=list)
    """Clients whose writes were answered, with the answers before."""
    reads: list[tuple[Peer, Request]] = field(default_factory=list)
    large: list[tuple[Peer, Request, Batch]] = field(default_factory=list)
    saves: list[tuple[Peer, Request]] = field(default_factory=list)


class Engine:
    """Applies requests to the store, and makes what they change durable before it answers."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        retries: Retries,
        saver: Saver,
        *,
        status: Status,
        tasks: Tasks,
        gate: Gate,
    ) -> None:
        self.turn_over = False
        """Whether the loop is to end the turn now."""
        self._store = store
        self._journal = journal
        self._retries = retries
        self._saver = saver
        self._status = status
        self._slow = status.slow
        self._tasks = tasks
        self._reaper = Reaper(store, journal, saver, tasks)
        self._limits = status.limits
        self._large = Large(
            store, journal, retries, saver, reaper=self._reaper, gate=gate, limits=status.limits
        )
        self._batches = Batches(status.request_bytes, status.limits)
        self._parking = Parking(store)
        self._about = About(store, journal, saver, self._parking, status)
        self._turn = _Turn()
        self._replies: list[tuple[Peer, bytes]] = []
        self._in_doubt = False  # whether what is refused now may come back at the next start
        self._applying: set[Peer] = set()  # whose large batch does not count yet
        self._parsed: dict[tuple[Peer, int], int] = {}  # bytes of these
        self._held: dict[Peer, list[Request]] = {}  # until a batch counts, or there is time
        self._waiting: Ties[tuple[Peer, int], Peer] = Ties()  # answers that take long
        self._since: dict[tuple[Peer, int], float] = {}  # when they were begun
        self._reads: Counter[Peer] = Counter()  # of them those with the whole content
        self._begun = 0.0  # when what the loop is held by was begun
        self._pace: Callable[[Peer], Pause | None] = lambda _peer: None
        self._has_room: Callable[[Callable[[], int]], bool] = lambda _size: True
        self._tell_alive = 0.0
        self._freeing = False
        self._tick_at = 0.0
        self._gone: set[Peer] = set()
        self._readers: set[Peer] = set()  # who may only read
        self._gathering: set[Peer] = set()  # who have asked for several things in one message

    def paced_by(
        self, pace: Callable[[Peer], Pause | None], has_room: Callable[[Callable[[], int]], bool]
    ) -> None:
        """`pace`: what to wait for, if anything, before a peer is given more of a long answer.

        `has_room`: whether a reply of so many bytes may be made, for all that others leave unread.
        """
        self._pace, self._has_room = pace, has_room

    @property
    def waits_for_disk(self) -> bool:
        """Whether each turn does."""
        return self._journal.durable == "fsync"

    @property
    def offending(self) -> dict[Peer, str]:
        """Peers on whom the loop is to hang up, and why."""
        return self._batches.offending

    def is_full(self, peer: Peer) -> bool:
        """Whether the loop is to keep what comes from this connection, for now."""
        held = self._held.get(peer) if self._held else None
        return held is not None and (len(held) >= HELD_MAX or held[-1].size >= HELD_BYTES)

    # Turns

    def receive(self, peer: Peer, frames: Sequence[bytes], rights: Rights = EVERYTHING) -> None:
        """Take in one message. What of it there is no time for is held until after this turn."""
        self._begun = time.monotonic()
        requests = decode_requests(frames)
        if rights is not EVERYTHING:
            self._readers.add(peer)
            requests = self._permitted(requests, rights)
        is_alone = len(requests) == 1
        if not is_alone:
            self._gathering.add(peer)
        until = 0.0 if is_alone else time.monotonic() + TAKEN_IN_SECONDS
        for number, request in enumerate(requests):
            if isinstance(request, Refused):
                if request.is_part and request.id is not None:
                    self._batches.refuse(peer, request.id, request.error)
                else:
                    self._status.errors[request.error.code] += 1
                    self._replies.append((peer, encode_error(request.id, request.error)))
                continue
            if not request.more:
                self._status.requests[request.command.name] += 1
            if self.turn_over:  # by the request before, of the same message
                self._end_turn()
            if number and (self._begun >= until or self._pace(peer)):
                self._hold(peer, request)
            else:
                self._admit(peer, request)
        if not (is_alone or self.waits_for_disk):
            # Whoever has further ones under way goes on with these while those are applied. But a
            # turn that waits for the disk is worth being shared
            self.turn_over = True

    def _permitted(
        self, requests: list[Request | Refused], rights: Rights
    ) -> list[Request | Refused]:
        """The same, with a refusal for each that its sender may not ask."""
        permitted: list[Request | Refused] = []
        for request in requests:
            if isinstance(request, Request):
                try:
                    rights.check(request)
                except NotAllowed as error:
                    if not request.more:  # nothing is kept of parts: the last is answered for all
                        permitted.append(Refused(request.id, error))
                    continue
            permitted.append(request)
        return permitted

    def _admit(self, peer: Peer, request: Request) -> None:
        if (
            peer in self._held  # what one connection asks is applied in that order
            or self._is_blocked(peer, request)
            or (request.command.name == "popitem" and not self._store.find_last())
        ):
            self._hold(peer, request)
            return
        if not request.more:  # what was gathered is not to be gathered once more
            self._turn.requests.append((peer, request))
        self._answer(peer, request)
        now = time.monotonic()
        if now - self._begun >= self._slow.seconds:
            self._slow.held(peer, request, now - self._begun)
        self._begun = now

    def _is_blocked(self, peer: Peer, request: Request) -> bool:
        """Whether a task has to come to its end, or further, before it can be applied."""
        return (
            peer in self._applying
            or (self._store.folding and self._is_blocked_by_fold(request))
            or (
                request.command.name in TELLING
                and not self._has_room(partial(told_bytes, self._store, request.args))
            )
            or (
                request.command.name in READERS
                and (self._reads.total() >= READS_MAX or self._reads[peer] >= READS_OF_PEER)
            )
        )

    def _is_blocked_by_fold(self, request: Request) -> bool:
        """Whether it needs the store in one piece, or it known how large that is."""
        return request.command.whole or (
            request.command.writes and self._limits.may_refuse(self._store.size, request.size)
        )

    def _hold(self, peer: Peer, request: Request) -> None:
        self._held.setdefault(peer, []).append(_as_sent_now(request))

    def _answer(self, peer: Peer, request: Request) -> None:
        start = self._store.logged()
        clock.hold()
        try:
            reply = self._apply(peer, request)
        except Exception as error:  # noqa: BLE001 - which is answered, and logged if it is a fault
            self._store.roll_back(start)
            reply = self._refuse(peer, request, error)
        finally:
            clock.let_go()
        if reply is not None:
            self._turn.replies.append((peer, reply))

    def _refuse(self, peer: Peer, request: Request, error: Exception) -> bytes:
        """The reply with an error. Of a fault the log has more than the client is told."""
        if not isinstance(error, PickleDBError):
            # Whatever it was, it was one request's; the others must go on.
            name, who = request.command.name, self._slow.who(peer)
            log.error(
                "a %s of client %s (%s) failed",
                name,
                request.client,
                who.get("peer"),
                exc_info=error,
                extra={"event": "fault", "command": name, "client": request.client, **who},
            )
            error = PickleDBError(f"{name} failed in the daemon; see its log")
        self._status.errors[error.code] += 1
        return encode_error(request.id, error)

    def _apply(self, peer: Peer, request: Request) -> bytes | None:
        """The reply, or None if it comes later."""
        name = request.command.name
        if request.command.writes:
            return self._write(peer, request)
        handler = HANDLERS.get(name)
        if handler is not None:
            return encode_reply(request.id, handler(self._store, request.args))
        if name in WAITING:
            return self._park(peer, request)
        if name in READERS:
            self._turn.reads.append((peer, request))
            self.turn_over = True  # what the next request changes is not to be in it
            return None
        if name == "save":
            self._check_waiting(peer, request, len(self._turn.saves))
            self._turn.saves.append((peer, request))
            return None
        about: dict[str, Any] = {}
        if name == "hello":
            about = self._about.hello(request.args["versions"], read_only=peer in self._readers)
        elif name == "info":
            reset = request.args.get("reset", False)
            about = self._about.info(reset=reset, read_only=peer in self._readers)
        return encode_reply(request.id, orjson.dumps(about))

    def _park(self, peer: Peer, request: Request) -> bytes | None:
        if (
            request.command.name == "lock"
            and self._saver.refusing is not None
            and not self._parking.holds(request)
        ):
            self._parking.forget(request)  # no grant could be made durable
            raise self._refusal(self._saver.refusing)
        if request.command.parks and not self._parking.knows(request):
            self._limits.check_key(request.args.get("name") or request.args.get("prefix", ""))
            self._check_waiting(peer, request)
        result = self._parking.handle(peer, request)
        return None if result is None else encode_reply(request.id, result)

    def _check_waiting(self, peer: Peer, request: Request, others: int = 0) -> None:
        waiting = len(self._parking) + len(self._waiting) + len(self._store.locks) + others
        of_peer = self._parking.of(peer) + self._waiting.count(peer) + others
        self._limits.check_waiting(waiting, of_peer, request.command.name)

    def _write(self, peer: Peer, request: Request) -> bytes | None:
        batch = self._batches.gather(peer, request) if request.command.parts else None
        if request.more:
            return None  # judged when its last part has come: there is one reply to all of them
        known = self._retries.answered(request)
        if known is not None:
            return encode_reply(request.id, known)
        if self._saver.refusing is not None:
            raise self._refusal(self._saver.refusing)
        if batch is not None and batch.is_large:
            self._turn.large.append((peer, _as_sent_now(request), batch))
            self._applying.add(peer)
            self._parsed[peer, request.id] = batch.bytes + PARSED * request.size
            return None
        store = self._store
        start, before = store.logged(), store.size if self._limits.bounded else None
        result = carry_out(store, request.command.name, request.args)
        changed = store.logged() > start
        if changed:
            self._check_limits(request, start, before)
        # Also a repeat that changed nothing is remembered, though not in the journal: the first
        # may still come, by the connection that its client gave up, and is not to be applied then.
        if changed or request.sent_at is not None:
            answer = answer_to(request, result)
            if changed and self._journal.appends:
                self._turn.records.append(_record(store.effect(start), answer))
            self._turn.answered.append((request.client, self._retries.remember(answer)))
        if request.command.name == "set" and "ttl_ms" not in request.args:
            # Its client may keep what it wrote. Not in the answer that a repeat is given: by then
            # there may be another table, whose counters may by chance be the same
            result = b"{%b}" % store.counters.of(request.args["key"])
        return encode_reply(request.id, result)

    def _check_limits(self, request: Request, start: int, before: Size | None) -> None:
        """TooLarge or WritesRefused if what was changed is not to be kept."""
        if self._limits.may_exceed(request.size):
            for items in self._store.was_set(start):
                self._limits.check_items(items.keys(), items.values())
        if before is None:
            return
        after, more = self._store.size, self._large.growth
        if after.bytes > before.bytes or after.keys > before.keys:
            what = f"a {request.command.name}"
            if "key" in request.args:
                what += f" of key {shown(request.args['key'])}"
            self._limits.check_growth(before.plus(more), after.plus(more), what)

    def _refusal(self, why: str) -> PickleDBError:
        return self._saver.refusal(why, in_doubt=self._in_doubt)

    def finish_turn(self) -> list[tuple[Peer, bytes]]:
        """Make durable what the turn changed; the replies."""
        self._end_turn()
        return self.take_replies()

    def _end_turn(self) -> None:
        turn = self._turn
        if self._store.locks.ready and not self._saver.refusing:
            texts, replies = self._parking.grants()
            turn.replies += replies
            if self._journal.appends:
                turn.records += texts
        if turn.records:
            began = time.monotonic()
            try:
                self._journal.write(turn.records)
            except DiskError as error:
                turn = self._done_again(error)
            self._begun = time.monotonic()
            self._slow.own("journal", self._begun - began)
            soon = 0.0 if self._saver.refusing else self._begun + TICK_SECONDS
            self._tick_at = min(self._tick_at, soon)
        if self._store.logged():
            self._store.commit()
        if self._parking.restless:
            turn.replies += self._parking.answers()
        self._turn = _Turn()
        self.turn_over = False
        self._replies += turn.replies
        if turn.reads or turn.large or turn.saves:
            self._begin_tasks(turn)

    def _gather_replies(self) -> None:
        """Answer those who asked for several things in one message in one message too."""
        several: dict[Peer, list[bytes]] = {peer: [] for peer in self._gathering}
        others: list[tuple[Peer, bytes]] = []
        for peer, reply in self._replies:
            if peer in several:
                several[peer].append(reply)
            else:
                others.append((peer, reply))
        self._gathering.clear()
        self._replies = others + [(peer, gather(some)) for peer, some in several.items() if some]

    def _begin_tasks(self, turn: _Turn) -> None:
        """Begin what the turn asked for and takes long."""
        for peer, request in turn.reads:
            self._waits(peer, request)
            self._reads[peer] += 1
            store = self._store
            view = store.view()
            reader = READERS[request.command.name]
            parts = reader(store.content(view), request.args, store.feed.sequence)
            self._tasks.add(self._read(peer, request, view, parts))
        for peer, request, batch in turn.large:
            self._waits(peer, request)
            answer = partial(self._applied, peer, request, batch.count)
            self._tasks.add(self._large.carry_out(request, batch, answer))
        self._begin_saves(turn.saves)

    def _done_again(self, error: DiskError) -> _Turn:
        """Have nothing of this turn's changes, and answer its requests once more; what comes of it.

        No write among them is carried out now, so there is nothing to be made durable.
        """
        self._saver.failed(error)
        self._in_doubt = error.leaves_traces
        self._store.roll_back()
        failed, self._turn = self._turn, _Turn()
        for client, before in reversed(failed.answered):
            self._retries.forget(client)
            if before is not None:
                self._retries.remember(before)
        self._applying.difference_update(peer for peer, _, _ in failed.large)
        for peer, request, _ in failed.large:
            self._parsed.pop((peer, request.id), None)
        for peer, request in failed.requests:
            self._answer(peer, request)
        self._in_doubt = False
        return self._turn

    def take_replies(self) -> list[tuple[Peer, bytes]]:
        """The replies that are ready to be sent."""
        if self._gathering:
            self._gather_replies()
        replies, self._replies = self._replies, []
        return replies

    # Between the turns

    def tick(self, now: float) -> float:
        """Do what is due at time.monotonic() `now`; when to be called again at the latest."""
        due = self._come_due(now)
        held_back = self._admit_held()
        if self._store.garbage and not self._freeing:
            self._freeing = True
            self._tasks.add(self._free())
        if now >= self._tick_at:
            self._tick_at = self._saver.tick(now)
        if self._tasks:  # one of them may fail, which is to be looked after
            self._tick_at = min(self._tick_at, now + TICK_SECONDS)
        due = min(due, self._tick_at)
        if self._waiting or self._held:
            self.tell_alive(now)
            due = min(due, self._tell_alive)
        else:
            self._gone.clear()
            self._tell_alive = now + ALIVE_SECONDS
        return now if held_back or self._parking.restless else due

    def _come_due(self, now: float) -> float:
        """Do what the daemon's clock says; when to look again at the latest."""
        if self._parking.restless:  # a large batch has come to count
            self._end_turn()
        if not (self._store.expires or self._store.locks.busy):
            return now + LONG_SECONDS
        self._reaper.begin()
        shown = now_ms()
        due = self._parking.next_due
        if due is not None and due <= shown:
            self._note(self._parking.overdue())
        elif self._store.locks.ready:  # since writes are not refused any more
            self._end_turn()
        times = (self._parking.next_due, self._reaper.next_due)
        waits = [(at - shown) / 1000 for at in times if at is not None]
        return now + min(waits, default=LONG_SECONDS)

    def _note(self, texts: list[bytes]) -> None:
        """Have in the journal what happened by itself, and grant what has become free by it."""
        if self._journal.appends and not self._saver.refusing:
            self._turn.records += texts
        self._end_turn()

    def tell_alive(self, now: float) -> None:
        """Tell those who wait for something long, now and then, that it is being done.

        Of each connection the first is told so: what comes behind it waits too.
        """
        if now >= self._tell_alive:
            self._tell_alive = now + ALIVE_SECONDS
            firsts = {peer: requests[0].id for peer, requests in self._held.items()}
            firsts |= {peer: request_id for peer, (_, request_id) in self._waiting.firsts()}
            for peer, request_id in firsts.items():
                self._replies.append((peer, encode_reply(request_id, b"{}", more=True)))

    def _admit_held(self) -> bool:
        """Take up what was held, if it need not be any more; True if there is more to take up."""
        if not self._held:
            return False
        self._begun = time.monotonic()
        until = self._begun + TAKEN_IN_SECONDS
        for peer in self._unblocked():
            held = deque(self._held.pop(peer))
            while held and peer not in self._held:
                self._admit(peer, held.popleft())
                if self.turn_over:
                    self._end_turn()
                if time.monotonic() >= until:
                    break
            if held:  # behind all others, and behind what was held again
                self._held[peer] = [*self._held.get(peer, ()), *held]
            if time.monotonic() >= until:
                break
        self._end_turn()
        return bool(self._unblocked())

    def _unblocked(self) -> list[Peer]:
        return [
            peer
            for peer, held in self._held.items()
            if not (self._is_blocked(peer, held[0]) or self._pace(peer))
        ]

    @property
    def holds(self) -> bool:
        """Whether there is something that `tick` may take up when replies were read."""
        return bool(self._held)

    @property
    def keys(self) -> int:
        """How many keys there are."""
        return len(self._store)

    @property
    def memory(self) -> int:
        """Bytes of what is stored, and of what is to be, at most."""
        parsed = sum(self._parsed.values())
        parsed += PARSED * sum(held[-1].size for held in self._held.values())
        return self._store.size.bytes + self._batches.bytes + parsed

    @property
    def dirty(self) -> int:
        """How many changes the data file does not hold."""
        return self._saver.dirty

    @property
    def status(self) -> str:
        """What there is, and how it goes, in one line for people."""
        return self._about.line()

    @property
    def saving(self) -> str:
        """What `finish` is at, for people."""
        return self._saver.told

    def finish(self, progress: Callable[[], None] = lambda: None) -> SaveFailed | None:
        """End all that was begun and save what is unsaved, serving nobody; why that failed.

        `progress` is called from time to time.
        """
        self._tasks.finish(progress)
        while self._held:
            if not self._admit_held():
                time.sleep(0.001)  # until `progress` has somebody read, or leave
            progress()
            self._tasks.finish(progress)
        return self._saver.save_now(progress) if self._saver.unsaved else None

    def end(self) -> None:
        """Tidy up after a `finish` that succeeded."""
        self._saver.end()

    def refresh(self, progress: Callable[[], None] = lambda: None) -> None:
        """Take over what another program did to the data file, if nothing of ours is unsaved.

        Only for a moment when no client is connected: to each of them the content would change
        by itself. `progress` is called from time to time.
        """
        if not self._tasks and self._saver.refresh(progress):
            told = {"event": "loaded_again", "path": self._status.location}
            log.warning("%s was changed by another program; loaded again", told["path"], extra=told)

    def upkeep(self) -> None:
        """Forget what nobody will ask for any more."""
        self._retries.expire()
        self._batches.expire()
        self._store.counters.keep_up()
        self._store.feed.upkeep()

    def halted(self) -> None:
        """Nobody was served for a while, so no lock could be kept: have their time begin anew."""
        self._store.locks.begin_anew()

    def gone(self, *peers: Peer) -> None:
        """The connections of these were lost: what they asked and was not begun is forgotten."""
        if self._waiting:
            self._gone.update(peers)
        for peer in peers:
            self._held.pop(peer, None)
            self._readers.discard(peer)
            self._batches.gone(peer)
        self._note([text for peer in peers for text in self._parking.gone(peer)])

    def _free(self) -> Task[None]:
        yield from self._store.free()
        self._freeing = False

    def _read(self, peer: Peer, request: Request, view: View, parts: Iterator[bytes]) -> Task[None]:
        """Answer with the whole content, part by part."""
        try:
            part = b""
            for following in parts:
                while (pause := self._pace(peer)) is not None and peer not in self._gone:
                    yield pause
                if peer in self._gone:
                    yield from view.free()
                    return
                if following:
                    if part:
                        self._replies.append((peer, encode_reply(request.id, part, more=True)))
                    part = following
                yield None
            self._replies.append((peer, encode_reply(request.id, part)))
        finally:
            view.close()
            self._waited(peer, request)
            self._reads[peer] -= 1
            if not self._reads[peer]:
                del self._reads[peer]

    def _waits(self, peer: Peer, request: Request) -> None:
        """Something that takes long is begun."""
        self._waiting.tie((peer, request.id), peer)
        self._since[peer, request.id] = time.monotonic()

    def _waited(self, peer: Peer, request: Request, count: int | None = None) -> None:
        """It was done; of so many items, if not just those of `request`, the last of its parts."""
        self._waiting.untie((peer, request.id))
        began = self._since.pop((peer, request.id), None)
        if began is not None:
            self._slow.took(peer, request, time.monotonic() - began, count)

    def _applied(self, peer: Peer, request: Request, count: int, result: bytes | Exception) -> None:
        """A large batch has come to count, or was refused."""
        self._waited(peer, request, count)
        self._parsed.pop((peer, request.id), None)
        self._status.large_batches += 1
        if isinstance(result, bytes):
            reply = encode_reply(request.id, result)
        else:
            reply = self._refuse(peer, request, result)
        self._replies.append((peer, reply))
        self._applying.discard(peer)

    def _begin_saves(self, saves: list[tuple[Peer, Request]]) -> None:
        needed = bool(saves) and self._saver.needed
        for peer, request in saves:
            if not needed:
                self._replies.append((peer, encode_reply(request.id, b'{"saved":false}')))
                continue
            self._waits(peer, request)

            def saved(
                error: SaveFailed | None, peer: Peer = peer, request: Request = request
            ) -> None:
                self._waited(peer, request)
                reply = encode_reply(request.id, b'{"saved":true}')
                if error is not None:
                    reply = self._refuse(peer, request, error)
                self._replies.append((peer, reply))

            self._saver.save(saved)


def _record(effect: Effect, answer: Answer) -> bytes:
    """For the journal: what a write did, and what it was answered."""
    return records.effects(
        effect.sets,
        effect.removed,
        clear=effect.clear,
        answer=answer,
        expires=effect.expires,
        others=effect.others,
    )


def _as_sent_now(request: Request) -> Request:
    """The same, which has to wait: its repeat may be answered, and forgotten, before its turn."""
    return request if request.sent_at is not None else replace(request, sent_at=now_ms())
