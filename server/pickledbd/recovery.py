"""Start-up: from the data file and its journals to the content that was acknowledged.

May live here: reading journals, and the rules for what does not fit together (SPEC.md, Starting).
Nothing is changed here: what is to be cut or removed is only told. The rules in short: a tail that
never reached the disk is cut, with one warning; damage before the end, and a data file that is
not the one that the journals follow, are refused with their place and the choices that the user
has. Nothing is guessed.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from pickledbd import clock, records
from pickledbd.expiry import stamped, text_of
from pickledbd.journal import find_journals, journal_path
from pickledbd.locks import Locks
from pickledbd.records import Answer
from pickledbd.retries import Retries
from pickledbd.snapshot import PROGRESS_BYTES, DataFile, Progress, Unreadable, no_progress
from pickledbd.table import Table

SECTOR = 512
"""What the disk never wrote is NUL up to the end of a sector, or of the file."""

_NULS = re.compile(rb"\0+")


@dataclass
class Scan:
    """What one journal holds."""

    number: int
    path: Path
    length: int
    good: int = 0
    """Where the records that can be read one after the other end."""
    head: dict[str, Any] | None = None
    head_length: int = 0
    bases: list[tuple[str, int]] = field(default_factory=list)
    """Digests of data files, each with the place up to which the file holds what stands here."""
    newest: int = 0
    """When the newest of its writes was applied."""
    effects: int = 0
    """Records that change something."""
    synced: bool = False
    """Whether it tells that it, and so all journals before it, was on the disk."""
    damaged: bool = False
    """Whether what follows `good` is no tail that did not reach the disk."""


@dataclass
class Recovered:
    """The content, and what a daemon has to know to go on."""

    table: Table
    retries: Retries
    locks: Locks
    expiring: dict[str, int] = field(default_factory=dict)
    """The deadlines of keys whose values have one, and perhaps of some that had one."""
    saved_locks: int = 0
    """Changes of the locks that the annex holds."""
    replayed: int = 0
    """Changes that the data file does not hold."""
    known: list[tuple[int, int, int]] = field(default_factory=list)
    """The journals that go on: number, and from where to where each counts. Empty after a choice:
    the content is then to be saved before anything else."""
    superfluous: list[Path] = field(default_factory=list)
    """Journals that are not needed any more."""
    highest: int = 0
    """The highest number of a journal."""
    warnings: list[str] = field(default_factory=list)
    cut_bytes: int = 0
    """Bytes of the journals that are not applied."""
    steps: dict[str, float] = field(default_factory=dict)
    """Seconds that each step took."""


def recover(
    file: DataFile,
    *,
    choice: str | None = None,
    progress: Progress = no_progress,
) -> Recovered:
    """The content of `file` and its journals. Unreadable tells why there is none.

    `choice`: what to do where they do not fit together. "replay": apply to the data file what
    can be read of the journals; "discard": do without them. `progress` is called with what is
    being read and the bytes read so far.
    """
    started = time.monotonic()
    table = file.load(progress)
    loaded = time.monotonic()
    try:
        scans = [scan(number, path, progress) for number, path in find_journals(file.path).items()]
    except OSError as error:
        raise Unreadable(f"cannot read {error.filename}: {error.strerror}") from error
    _go_on_with_clock(file, scans)
    found = Recovered(
        table,
        Retries(),
        Locks(),
        expiring=file.take_deadlines(),
        steps={"reading the data file": loaded - started},
    )
    found.locks.restore(file.annex.locks)
    found.saved_locks = found.locks.changes
    found.highest = max((each.number for each in scans), default=0)
    scanned = time.monotonic()
    found.steps["checking the journal"] = scanned - loaded
    if choice == "discard":
        found.superfluous = [each.path for each in scans]
        return found
    if not any(digest == file.digest for each in scans for digest, _ in each.bases):
        for strange in file.annex.strange:
            found.warnings.append(
                f"{strange} belongs to another data file, perhaps to {file.path} before it was "
                "edited: what it tells of when keys expire is not used"
            )
    chain = _chain(file, _without_abandoned(scans, file.digest), found, forced=choice == "replay")
    if choice:
        found.known = []
    found.superfluous = [s.path for s in scans if s.number not in {n for n, _, _ in found.known}]
    _replay(chain, file.digest, found, progress)
    found.steps["replaying the journal"] = time.monotonic() - scanned
    return found


def _go_on_with_clock(file: DataFile, scans: list[Scan]) -> None:
    told = [each.head["clock"] for each in scans if each.head and "clock" in each.head]
    if file.annex.clock is not None:
        told.append(file.annex.clock)
    newest = max((each.newest for each in scans), default=0)
    clock.go_on(max(told, key=lambda each: each["now"], default=None), newest)


def scan(number: int, path: Path, progress: Progress = no_progress) -> Scan:
    """Read one journal, without applying it. OSError."""
    found = Scan(number, path, path.stat().st_size)
    told = 0
    with path.open("rb") as file:
        for line in file:
            record = records.decode(line, number, found.good)
            if record is None or ("journal" in record) != (found.good == 0):  # one head, the first
                found.damaged = _is_damage(number, found.good, line, file)
                break
            if found.good == 0:
                found.head, found.head_length = record, len(line)
                if record["base"] is not None:
                    found.bases.append((record["base"], len(line)))
            elif "base" in record:
                found.bases.append((record["base"], record["end"]))
            elif "synced" in record:
                found.synced = True
            else:
                found.effects += 1
            found.newest = max(found.newest, record.get("at", 0))
            found.good += len(line)
            if found.good - told >= PROGRESS_BYTES:
                told = found.good
                progress(path.name, told)
    return found


def _is_damage(number: int, place: int, line: bytes, rest: Iterator[bytes]) -> bool:
    """Whether a record that cannot be read was once on the disk.

    It was if it still has its form, or a later one tells so. Else, if later ones have theirs, the
    disk may have written those first; but then what it did not write is NULs, as no byte of a
    journal is.
    """
    if records.form(line) is not None:
        return True
    hole = _has_hole(place, line)
    offset = place + len(line)
    has_form = False  # behind bytes that were lost or added, none is in its place
    for later in rest:
        if records.form(later) is None:
            hole = hole or (not has_form and _has_hole(offset, later))
        else:
            has_form = True
            record = records.decode(later, number, offset)
            if record is not None and record.get("synced", 0) > place:
                return True
        offset += len(later)
    return has_form and not hole


def _without_abandoned(scans: list[Scan], digest: str) -> list[Scan]:
    """The journals without those that were begun and given up, but not removed."""
    kept: list[Scan] = []
    follows: int | None = None
    for each in reversed(scans):
        head = each.head or {}
        if each.number != scans[0].number and _begins_anew(each) and head["base"] != digest:
            continue  # its snapshot, after --replay-journal, was never put in the file's place
        if follows is None or each.number <= follows or each.effects:
            kept.insert(0, each)
            previous = head.get("previous")
            follows = previous[0] if previous else None
    return kept


def _begins_anew(each: Scan) -> bool:
    """Whether a journal follows none, and holds nothing yet."""
    unused = not each.effects and not each.damaged
    return unused and each.head is not None and each.head["previous"] is None


def _has_hole(offset: int, line: bytes) -> bool:
    return any((offset + nuls.end()) % SECTOR == 0 for nuls in _NULS.finditer(line))


def _chain(
    file: DataFile, scans: list[Scan], found: Recovered, *, forced: bool
) -> list[tuple[Scan, int, int]]:
    """The journals to apply to the data file, each with its place to begin and to end."""
    base = _base(file, scans, found, forced=forced)
    if base is None:
        return []
    first, start = base
    chain: list[tuple[Scan, int, int]] = []
    for index in range(first, len(scans)):
        each, later = scans[index], scans[index + 1 :]
        end, problem, acceptable = _end(file.path, each, later)
        if problem and not acceptable and not forced:
            raise Unreadable(
                f"{problem}. Restore it, or start once with --replay-journal (apply what stands "
                "before that) or --discard-journal (do without the journals); nothing was touched"
            )
        if each.head is not None:
            chain.append((each, start, end))
            found.known.append((each.number, max(start, each.head_length), end))
        start = 0
        if problem:
            found.cut_bytes = each.length - end + sum(s.length for s in later)
            beyond = "".join(f", with all of {s.path.name}" for s in later)
            found.warnings.append(
                f"{each.path}: read up to byte {end:,}, {found.cut_bytes:,} bytes were "
                f"cut{beyond}: {problem}"
            )
            break
    return chain


def _base(
    file: DataFile, scans: list[Scan], found: Recovered, *, forced: bool
) -> tuple[int, int] | None:
    """The journal, and the place in it, that the data file holds everything up to."""
    for each in scans:
        if each.head is not None and each.head["journal"] not in records.READABLE:
            raise Unreadable(
                f"{each.path} is of format {each.head['journal']}, this release reads "
                f"up to {records.FORMAT}: use the release that wrote it; nothing was touched"
            )
    bases = [
        (index, end)
        for index, each in enumerate(scans)
        for digest, end in each.bases
        if digest == file.digest
    ]
    if bases:
        return bases[-1]
    unsure = [
        each
        for each in scans
        if each.effects or each.damaged or (each.head is not None and each.head["base"] is None)
    ]
    if not unsure:
        # Nothing to lose: someone edited the file after a clean stop
        if scans:
            found.warnings.append(f"{file.path} was changed since the last stop; taken as it is")
        for each in scans:
            if each.head is not None:
                found.retries.restore(_answers(each.head), each.head["forgotten"])
        return None
    if forced:
        return 0, 0
    raise Unreadable(
        f"{file.path} is not the file that its journal follows: it was replaced, edited or "
        f"damaged, and {', '.join(each.path.name for each in unsure)} tells of writes that were "
        f"acknowledged ({sum(each.effects for each in unsure)} can be read). Put the right file "
        "back, or start once with --replay-journal (apply them to this file) or "
        "--discard-journal (do without them); nothing was touched"
    )


def _end(data: Path, each: Scan, later: list[Scan]) -> tuple[int, str, bool]:
    """Where the records of a journal end, why no others follow, and whether a crash does that.

    The reason is "" if these are all that there were, and what follows is the next journal.
    """
    end, whole = each.good, each.good == each.length
    if later and later[0].head is not None:
        number, length = later[0].head["previous"] or (0, 0)
        if number > each.number:
            missing = journal_path(data, number)
            return end, f"{missing} is missing, which {later[0].path.name} follows", False
        if number < each.number:
            return end, f"{later[0].path} does not follow {each.path.name}", False
        # What stands beyond the length that its successor tells was refused, though not removed
        end, whole = min(each.good, length), each.good >= length
    if whole:
        return end, "", True
    if each.damaged or any(s.synced for s in later):
        return end, f"{each.path} is damaged at byte {each.good:,} of {each.length:,}", False
    return end, "the rest had not reached the disk when the machine or the daemon died", True


def _replay(
    chain: list[tuple[Scan, int, int]],
    digest: str,
    found: Recovered,
    progress: Progress,
) -> None:
    batches: dict[int, list[dict[str, Any]]] = {}
    for number, (each, start, end) in enumerate(chain):
        place = 0
        told = 0
        with each.path.open("rb") as file:
            for line in file:
                if place >= end:
                    break
                record = records.decode(line, each.number, place)
                if record is None:
                    break
                if place == 0:
                    # Of a data file that was never put in place: what it holds, but no journal
                    # before it (--durability save), is lost, and so are these answers
                    lost = number > 0 and record["base"] not in (None, digest)
                    found.retries.restore(() if lost else _answers(record), record["forgotten"])
                elif place >= start:
                    _apply(record, found, batches)
                answer = records.answer_of(record)
                if answer is not None:
                    found.retries.remember(answer)
                place += len(line)
                if place - told >= PROGRESS_BYTES:
                    told = place
                    progress(each.path.name, place)


def _answers(head: dict[str, Any]) -> Iterator[Answer]:
    for told in head["answers"]:
        answer = records.answer_of(told)
        if answer is not None:
            yield answer


def _apply(
    record: dict[str, Any], found: Recovered, batches: dict[int, list[dict[str, Any]]]
) -> None:
    if "batch" in record:
        batches.setdefault(record["batch"], []).append(record)
        return
    if record.get("clear"):
        found.replayed += len(found.table)
        found.table = Table()
        found.expiring.clear()
    for part in batches.pop(record["commit"], []) if "commit" in record else ():
        _set(part, found)
    for key in record.get("remove", ()):
        found.replayed += found.table.remove(key) is not None
    _set(record, found)
    if "lock" in record:
        found.locks.granted(record["lock"])
    elif "unlock" in record:
        found.locks.released(record["unlock"])


def _set(record: dict[str, Any], found: Recovered) -> None:
    for key, value in record.get("set", {}).items():
        found.table.set(key, bytes(memoryview(orjson.dumps(value))))
        found.replayed += 1
    for key, deadline in record.get("expires", {}).items():
        _expire(key, deadline, found)


def _expire(key: str, deadline: int | None, found: Recovered) -> None:
    value = found.table.get(key)
    if value is not None:
        found.table.set(key, stamped(text_of(value), deadline))
        if deadline is not None:
            found.expiring[key] = deadline
        found.replayed += 1
