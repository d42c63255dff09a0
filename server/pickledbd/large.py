"""Carrying out batches that are too large for a turn: all of one counts from one moment on.

May live here: the steps of that, as a task. First its items are proved; then the journal gets
them in parts, which do not count yet; and then, in one step, a record that has them count, and the
store adopts them.
"""

from __future__ import annotations

from collections.abc import Callable

from pickledbd import records
from pickledbd.batches import Batch
from pickledbd.disk import DiskError
from pickledbd.journal import Journal
from pickledbd.limits import Limits
from pickledbd.reaping import Reaper
from pickledbd.retries import Retries, answer_to
from pickledbd.saver import Gate, Saver
from pickledbd.store import Size, Store
from pickledbd.tasks import Task
from pickledbd_protocol import Request


class Large:
    """Carries out large batches."""

    def __init__(
        self,
        store: Store,
        journal: Journal,
        retries: Retries,
        saver: Saver,
        *,
        reaper: Reaper,
        gate: Gate,
        limits: Limits,
    ) -> None:
        self._store = store
        self._journal = journal
        self._retries = retries
        self._saver = saver
        self._reaper = reaper
        self._gate = gate
        self._limits = limits
        self.growth = Size(0, 0)
        """What the batch that is being carried out will add: nobody else may take that."""

    def carry_out(
        self, request: Request, batch: Batch, answer: Callable[[bytes | Exception], None]
    ) -> Task[None]:
        """Apply a batch; `answer` is called with the result, or with why it was not applied."""
        adopted = False
        result: bytes | Exception
        try:
            yield from batch.prepare()
            yield from self._gate.enter()
            try:
                # A repeat of it may have come by another connection meanwhile
                known = self._retries.answered(request)
                if known is None:
                    yield from self._commit(request, batch)
                    known, adopted = b"{}", True
                result = known
            finally:
                self.growth = Size(0, 0)
                self._gate.leave()
        except Exception as error:  # noqa: BLE001 - which is answered, and logged if it is a fault
            result = error
        answer(result)
        if adopted:  # else it would be another's, and two must not fold the same
            yield from self._store.fold()

    def _commit(self, request: Request, batch: Batch) -> Task[None]:
        answer = answer_to(request, b"{}")
        clear = request.command.name == "replace"
        failures = self._saver.failures
        in_doubt = False
        why = self._saver.refusing
        if why:  # though it may be over by the time that what follows is done
            raise self._saver.refusal(why)
        yield from self._find_room(request, batch, clear=clear)
        try:
            if self._journal.appends:
                yield from self._write_parts(batch)
            if not clear:  # what is due and set again comes last
                yield from self._reaper.all_due()
            if self._journal.appends:
                last = records.effects({}, clear=clear, answer=answer, commit=batch.number)
                if self._saver.failures == failures:
                    self._demand(request)
                    self._journal.write([last])
        except DiskError as error:
            self._saver.failed(error)
            in_doubt = error.leaves_traces
        if self._saver.failures > failures:
            # Even if all is well again: the parts stand in a journal that does not count any more
            why = self._saver.refusing or "the journal failed meanwhile"
            raise self._saver.refusal(why, in_doubt=in_doubt)
        if not self._journal.appends:
            self._demand(request)
        self._store.adopt(batch.table, clear=clear, wheel=batch.wheel)
        self._retries.remember(answer)

    def _write_parts(self, batch: Batch) -> Task[None]:
        """Have all but its last record in the journal, where they do not count yet."""
        failures = self._saver.failures
        for items, deadlines in batch.parts():
            part = records.effects(items, batch=batch.number, expires=deadlines)
            self._journal.write([part], sync_now=False)
            yield None
            if self._saver.failures > failures:
                return
        if self._journal.durable == "fsync":
            yield from self._saver.sync()  # what is left for the loop is one record

    def _find_room(self, request: Request, batch: Batch, *, clear: bool) -> Task[None]:
        """WritesRefused if it would make the store larger than that may be."""
        if not self._limits.bounded:
            return
        for after in self._store.sized_with(batch.table, clear=clear):
            if after is None:
                yield None
            else:
                before = self._store.size
                self._limits.check_growth(before, after, f"a {request.command.name}")
                more = (max(0, new - old) for new, old in zip(after, before, strict=True))
                self.growth = Size(*more)

    def _demand(self, request: Request) -> None:
        """LockLost if it names the token of a lock that is not held any more."""
        if "token" in request.args:
            self._store.locks.demand(request.args["token"])
