"""Exactly once: what each client's writes were answered, so that a repeat gets the same.

May live here: the answers and the rules for repeats (SPEC.md, Repeats). After RIFL and the Raft
thesis (6.3): a write is named by its client and a number that grows, and its answer is kept, as
durable as the write itself, until the client's next write tells that it has arrived. Bounded in
number and in bytes; of what was given up before its time the newest is known, so that a repeat
whose first may have been among it is refused and never carried out twice. When that was sent is
told by this daemon's own clock: how long ago would not do, as a repeat may be long on its way.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from pickledbd.clock import now_ms
from pickledbd.records import NOT_KEPT, Answer
from pickledbd_protocol import ProtocolError, Request, Unavailable

ANSWERS_MAX = 10_000
"""Clients whose last write is remembered."""

SMALL = 100
"""Answers of at most so many bytes are always kept with the write that they answer."""

BYTES_MAX = 4 * 2**20
"""Bytes of all larger answers. Beyond that the oldest are given up, and only that the write was
applied is remembered."""

KEEP_MS = 10 * 60 * 1000
"""How long an answer is kept at most, in milliseconds. Its client asks for it for a minute less."""


def answer_to(request: Request, result: bytes) -> Answer:
    """What is to be remembered of a write that is applied now."""
    budget_ms = 0 if request.budget_ms is None else request.budget_ms
    return Answer(request.client, request.id, now_ms(), budget_ms, result)


class Retries:
    """The answer to the last write of each client, in the order of these writes."""

    def __init__(self) -> None:
        self._answers: dict[str, Answer] = {}
        self._large: dict[str, int] = {}  # bytes of those that are
        self._bytes = 0
        self.forgotten = 0
        """When the newest write was made whose answer was given up, by the clocks of then."""
        # Nothing is older than that: what the system's clock did between two daemons, or while
        # the machine slept, is not known
        self._since = now_ms()

    def answered(self, request: Request) -> bytes | None:
        """The answer that this write was given before, or None if it is to be carried out.

        ProtocolError if its id should have grown; Unavailable, with the outcome unknown, if
        nobody can tell whether it was carried out.
        """
        known = self._answers.get(request.client)
        first_sent = request.sent_at
        if known is None:
            unknown = first_sent is not None and not self.forgotten < first_sent <= now_ms()
        elif request.id > known.id:
            unknown = False
        elif first_sent is None:
            raise ProtocolError(
                f"id {request.id} of client {request.client!r} is not over {known.id}, its last "
                "write's: ids of writes have to grow; to repeat a write send sent_at"
            )
        elif request.id == known.id and known.result != NOT_KEPT:
            return known.result
        else:
            unknown = True
        if unknown:
            raise Unavailable(
                f"it is not known any more whether this {request.command.name} was applied",
                outcome_known=False,
            )
        return None

    def remember(self, answer: Answer) -> Answer | None:
        """Note the answer to a client's write, if it is its newest; the one there was before."""
        newest = self._answers.get(answer.client)
        if newest is not None and newest.id > answer.id:
            return newest  # this is of a large batch that its client gave up, to write on
        before = self.forget(answer.client)
        self._answers[answer.client] = answer
        size = len(answer.result)
        if size > SMALL:
            self._large[answer.client] = size
            self._bytes += size
        while self._bytes > BYTES_MAX:
            client = next(iter(self._large))
            self._bytes -= self._large.pop(client)
            self._answers[client] = replace(self._answers[client], result=NOT_KEPT)
        if len(self._answers) > ANSWERS_MAX:
            self._give_up(next(iter(self._answers)))
        return before

    def forget(self, client: str) -> Answer | None:
        """Have no answer for `client`; the one there was."""
        if self._large:
            self._bytes -= self._large.pop(client, 0)
        return self._answers.pop(client, None)

    def restore(self, answers: Iterable[Answer], forgotten: int) -> None:
        """Know what a journal's head tells."""
        for answer in answers:
            self.remember(answer)
        self.forgotten = max(self.forgotten, forgotten)

    def expire(self) -> None:
        """Give up what is over KEEP_MS old."""
        limit = now_ms() - KEEP_MS
        while self._answers:
            oldest = next(iter(self._answers.values()))
            if max(oldest.at, self._since) > limit:
                return
            self._give_up(oldest.client)

    def awaited(self) -> list[Answer]:
        """The answers that their clients may still ask for, in the order of the writes."""
        now = now_ms()
        return [
            answer
            for answer in self._answers.values()
            if now < max(answer.at, self._since) + answer.budget_ms
        ]

    @property
    def needed(self) -> bool:
        """Whether what is known here still tells a repeat from a write that is new.

        For how long clients ask for answers that were given up is not known, but nobody does so
        after KEEP_MS.
        """
        forgotten = self.forgotten and max(self.forgotten, self._since)
        return now_ms() - forgotten < KEEP_MS or bool(self.awaited())

    def _give_up(self, client: str) -> None:
        gone = self.forget(client)
        if gone is not None:
            self.forgotten = max(self.forgotten, gone.at)
