"""Power cuts: from a trace of what a daemon did in its directory to what the disk may then hold.

After ALICE (OSDI 2014) and CrashMonkey (OSDI 2018). The trace is strace's. A power cut may come
between any two of its lines, and POSIX promises little about what is then on the disk:

- of what was done to a file since its last completed fsync each sector may be as it was at any
  moment since, and the length as well, whichever the other; what is missing is NULs;
- of the names made, changed and removed since the directory's last completed fsync, some may be
  there and others not: "ordered" is a file system that keeps their order (ext4), else any may be
  missing; one rename is all or nothing.
"""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass, field
from pathlib import Path

SECTOR, PAGE = 512, 4096

TRACED = (
    "openat,creat,write,writev,pwrite64,pwritev,fsync,fdatasync,ftruncate,truncate,fallocate,"
    "rename,renameat,renameat2,link,linkat,symlink,symlinkat,unlink,unlinkat,sendto,sendmsg"
)

_LINE = re.compile(r"(\d+) +(.*)")
_RESUMED = re.compile(r"<\.\.\. \w+ resumed>(.*)")
# Also a result that no call has: so strace prints what it finds in a thread that is being killed
_CUT_OFF = re.compile(
    r" *<unfinished \.\.\.>(\) += \?)?$|\) += (\?( <unavailable>)?|-1 \(errno \d+\))$"
)
_CALL = re.compile(r"(\w+)\((.*)\) += (-?\d+)")
_TEXT = re.compile(r'"((?:\\x[0-9a-f]{2})*)"')
_DESCRIPTOR = re.compile(r"(\d+)<([^>]*)>")


def strace(log):
    """The command line before that of the program which is to be traced; it keeps its pid."""
    return ["strace", "-D", "-f", "-y", "-xx", "-s", str(2**28), "-e", "trace=" + TRACED, "-o", log]


@dataclass
class Change:
    """Bytes written to a file, or its truncation (no `data`), between two lines of the trace."""

    began: int
    ended: int
    offset: int
    data: bytes | None


@dataclass(eq=False)
class File:
    """A file, whatever its names."""

    start: bytes = b""
    changes: list[Change] = field(default_factory=list)
    syncs: list[tuple[int, int]] = field(default_factory=list)
    size: int = 0

    def synced(self, now):
        """How many of the changes are certainly on the disk at the line `now`."""
        began = max((began for began, ended in self.syncs if ended <= now), default=-1)
        return sum(change.ended < began for change in self.changes)

    def pending(self, now):
        """What was on the disk at `now`, and the changes that may be there too."""
        synced = self.synced(now)
        content = bytearray(self.start)
        for change in self.changes[:synced]:
            put(content, change)
        return bytes(content), [each for each in self.changes[synced:] if each.began <= now]

    def variants(self, now, chance):
        """Some of the contents that the disk may hold at `now`, without end, the plainest first."""
        before, pending = self.pending(now)
        after = bytearray(before)
        for change in pending:
            put(after, change)
        yield bytes(after)
        yield before
        yield before[: len(after)].ljust(len(after), b"\0")
        while True:
            yield torn(before, pending, chance)


@dataclass
class Naming:
    """Names that came to mean another file, or nothing (None), at once."""

    began: int
    ended: int
    names: dict[str, File | None]


def put(content, change):
    """Make a change as the file system does when nothing goes wrong."""
    if change.data is None:
        del content[change.offset :]
        content.extend(bytes(change.offset - len(content)))
    else:
        content.extend(bytes(max(0, change.offset - len(content))))
        content[change.offset : change.offset + len(change.data)] = change.data


def torn(before, pending, chance):
    """One of the many contents between `before` and all of `pending`.

    The disk takes each sector as it is in memory at some moment: with the changes up to then.
    """
    grain = chance.choice((SECTOR, PAGE))
    moments = {0, len(pending), *(chance.randint(0, len(pending)) for _ in range(3))}
    content = bytearray(before)
    versions = [before] if 0 in moments else []
    for index, change in enumerate(pending, 1):
        put(content, change)
        if index in moments:
            versions.append(bytes(content))
    favourite, kept = chance.choice(versions), chance.choice((0.0, 0.1, 0.5, 0.9))
    longest = max(map(len, versions))
    start = min((change.offset for change in pending), default=longest)
    start -= start % grain
    found = bytearray(before[:start])
    for at in range(start, longest, grain):
        version = favourite if chance.random() < kept else chance.choice(versions)
        found += version[at : at + grain].ljust(min(grain, longest - at), b"\0")
    size = len(chance.choice(versions)) if chance.random() < 0.7 else longest
    if chance.random() < 0.2:
        size = chance.randint(min(map(len, versions)), longest)
    return bytes(found[:size])


class Trace:
    """What happened in one directory, and what was sent, by the lines of strace's logs."""

    def __init__(self, directory, logs, start):
        """`start`: the files that were there before, by name, certainly on the disk.

        `logs`: strace's log of each daemon, and the sizes of the files when it had ended.
        """
        self.namings: list[Naming] = []
        self.sent: list[tuple[int, bytes]] = []
        self._directory = directory
        self._start = {name: File(data, size=len(data)) for name, data in start.items()}
        self._names: dict[str, File | None] = {**self._start}
        self._open: dict[str, File] = {}
        self._root = File()  # the directory, of which only the syncs are of interest
        self.files = list(self._start.values())
        self._now = 0
        for log, sizes in logs:
            self._read(log, sizes)
        self.files += {
            id(file): file
            for naming in self.namings
            for file in naming.names.values()
            if file is not None and file not in self.files
        }.values()

    def _read(self, log, sizes):
        unfinished: dict[str, tuple[int, str]] = {}
        for line in log.read_text().splitlines():
            self._now = now = self._now + 1
            thread, text = _LINE.match(line).groups()
            began = now
            resumed = _RESUMED.match(text)
            if resumed:
                began, text = unfinished.pop(thread)
                text += resumed[1]
            text, cut_off = _CUT_OFF.subn("", text)
            if cut_off:
                unfinished[thread] = (began, text)
                continue
            call = _CALL.match(text)
            if call and int(call[3]) >= 0:
                self._take(began, now, *call.groups())
        for began, text in unfinished.values():  # it was killed in the midst of these
            call = _CALL.match(text.rstrip(", ") + ") = 0")
            done = call and self._done(call[1], call[2], sizes)
            if done:
                self._take(began, self._now, call[1], call[2], done)
        for name, file in self._names.items():
            assert file is None or sizes[name] == file.size, f"{name} was misread in {log}"

    def _done(self, call, arguments, sizes):
        """How much of what was under way at the kill took place, as the files tell."""
        texts = [bytes.fromhex(t.replace("\\x", "")) for t in _TEXT.findall(arguments)]
        if call == "write":
            file = self._open.get(_DESCRIPTOR.match(arguments)[1])
            names = [name for name, each in self._names.items() if each is file and file]
            return max((sizes.get(name, 0) - file.size for name in names), default=0)
        if call not in ("unlink", "rename", "link"):
            return 0
        names = [Path(text.decode()).name for text in texts]
        if call == "link":
            return int(names[1] in sizes)
        return int(names[0] not in sizes and names[0] in self._names)

    def _take(self, began, ended, call, arguments, result):  # noqa: C901 - one branch a syscall
        texts = [bytes.fromhex(t.replace("\\x", "")) for t in _TEXT.findall(arguments)]
        if call in ("sendto", "sendmsg"):
            self.sent.append((began, b"".join(texts)))
            return
        if call in ("openat", "rename", "link", "unlink"):
            paths = [Path(text.decode()) for text in texts]
            if call == "openat" and paths[0] == self._directory:
                self._open[result] = self._root
            elif call == "openat":
                self._open.pop(result, None)
            if all(p.parent == self._directory and p.suffix != ".lock" for p in paths):
                self._name(began, ended, call, [p.name for p in paths], result, arguments)
            return
        descriptor = _DESCRIPTOR.match(arguments)
        path = descriptor[2] if descriptor else ""
        if "\\x" in path:
            path = bytes.fromhex(path.replace("\\x", "").removesuffix("(deleted)")).decode()
        inside = path == str(self._directory) or path.startswith(f"{self._directory}/")
        if not inside or path.endswith(".lock"):
            return
        file = self._open[descriptor[1]]
        if call in ("fsync", "fdatasync"):
            file.syncs.append((began, ended))
        elif call == "write":
            data = texts[0][: int(result)]
            file.changes.append(Change(began, ended, file.size, data))
            file.size += len(data)
        elif call == "ftruncate":
            file.size = int(arguments.rpartition(",")[2])
            file.changes.append(Change(began, ended, file.size, None))
        else:
            raise AssertionError(f"{call} on {path} is not known here")

    def _name(self, began, ended, call, names, result, arguments):  # noqa: PLR0917 - its parts
        known = self._names.get(names[0])
        if call == "openat":
            assert "O_TRUNC" not in arguments
            if known is None and "O_CREAT" in arguments:
                known = File()
                self._rename(began, ended, {names[0]: known})
            if known is not None:
                self._open[result] = known
        elif call == "unlink":
            self._rename(began, ended, {names[0]: None})
        else:
            gone = {names[0]: None} if call == "rename" else {}
            self._rename(began, ended, {**gone, names[1]: known})

    def _rename(self, began, ended, names):
        self._names.update(names)
        self.namings.append(Naming(began, ended, names))

    def moments(self):
        """The lines of the trace at which something changed that a power cut may show."""
        found = {0}
        for each in itertools.chain(self.namings, *(file.changes for file in self.files)):
            found |= {each.began, each.ended}
        for file in (self._root, *self.files):
            found |= {ended for _, ended in file.syncs}
        return sorted(found | {now for now, _ in self.sent})

    def crashes(self, now, chance, count, *, ordered):
        """`count` of the contents that the directory may have after a power cut at `now`."""
        began = max((began for began, ended in self._root.syncs if ended <= now), default=-1)
        certain = [n for n in self.namings if n.ended < began]
        pending = [n for n in self.namings if n.ended >= began and n.began <= now]
        if ordered:
            choices = [pending[:length] for length in range(len(pending) + 1)]
        elif len(pending) <= 6:
            choices = [
                [n for n, kept in zip(pending, which, strict=True) if kept]
                for which in itertools.product((True, False), repeat=len(pending))
            ]
        else:
            choices = [[n for n in pending if chance.random() < 0.5] for _ in range(64)]
        variants: dict[int, object] = {}
        drawn: dict[int, list[bytes]] = {}

        def draw(file, turn):
            contents = variants.setdefault(id(file), file.variants(now, chance))
            seen = drawn.setdefault(id(file), [])
            if turn < 3:  # all files in the same plain way
                while len(seen) <= turn:
                    seen.append(next(contents))
                return seen[turn]
            if chance.random() < 0.4:
                return chance.choice(seen or [next(contents)])
            seen.append(next(contents))
            return seen[-1]

        for turn in range(count):
            whole = turn // len(choices) if turn < 3 * len(choices) else 3
            kept = choices[turn % len(choices)]
            names = {**self._start}
            for naming in (*certain, *kept):
                names.update(naming.names)
            yield {name: draw(file, whole) for name, file in names.items() if file is not None}
