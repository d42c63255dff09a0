"""What the daemon logs, and in which form: for people, for programs, for systemd's journal.

May live here: the forms, and how a line leaves the process. Who logs gives a message, which says
all of it in a sentence, and by `extra` the `event` (systemd/README.md lists them) and its fields.
Keys appear shortened, values never. What clients have sent is quoted with all that is not
printable escaped, so nobody can forge a line.

Whoever should read the log may have stopped to: the loop does not wait for that. A line that cannot
be had rid of at once is lost and counted, and that is told as soon as somebody reads again.

The journal's protocol is that of systemd.journal-fields(7) and of its "Native Journal Protocol":
one datagram an entry, fields as NAME=value, or with a length where a value has several lines.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import socket
import sys
import time
from typing import Any, TextIO

import orjson

FORMS = ("text", "json", "journal")
LEVELS = ("debug", "info", "warning", "error")

JOURNAL = "/run/systemd/journal/socket"

AT_ONCE = 4096
"""Bytes that a pipe takes without blocking if it takes any: PIPE_BUF, pipe(7)."""

_PRIORITIES = {
    logging.CRITICAL: 2,
    logging.ERROR: 3,
    logging.WARNING: 4,
    logging.INFO: 6,
    logging.DEBUG: 7,
}
"""Those of syslog(3)."""

_STANDARD = {*vars(logging.makeLogRecord({})), "message", "asctime", "taskName", "event"}


def begin(form: str | None, level: int) -> str:
    """Have what is logged written to stderr from now on, in one of FORMS; that form.

    None: the journal's if stderr is connected to it, else text.
    """
    if form is None:
        form = "journal" if is_journal(sys.stderr) else "text"
    _handlers[:] = [Handler(form, -1 if sys.stderr is None else sys.stderr.fileno())]
    logging.basicConfig(level=level, handlers=_handlers)
    return form


def is_journal(stream: TextIO | None) -> bool:
    """Whether a stream is what systemd connected to its journal (systemd.exec(5))."""
    if stream is None or not (told := os.environ.get("JOURNAL_STREAM")):
        return False
    found = os.fstat(stream.fileno())
    return told == f"{found.st_dev}:{found.st_ino}"


def lost() -> int:
    """How many lines were lost, since nobody read them."""
    return sum(handler.lost for handler in _handlers)


class Handler(logging.Handler):
    """Writes records to the descriptor `file`, or the journal's socket, without waiting."""

    def __init__(self, form: str, file: int, journal: str = JOURNAL) -> None:
        super().__init__()
        self.lost = 0
        self._told_lost = 0
        self._form = form
        self._file = _unwaiting(file)
        self._is_cut = False  # whether the last line was
        self._room = select.poll()
        self._is_own = self._file != file
        if file >= 0:
            self._room.register(self._file, select.POLLOUT)
        self._journal = journal
        self._socket: socket.socket | None = None
        if form == "journal":
            self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
            self._socket.setblocking(False)

    def close(self) -> None:
        """Let go of the journal's socket, or of the terminal."""
        if self._socket is not None:
            self._socket.close()
        if self._is_own:
            os.close(self._file)
        super().close()

    def emit(self, record: logging.LogRecord) -> None:
        """Write a record, or count it as lost."""
        try:
            if not self._write(record):
                self.lost += 1
            elif self.lost > self._told_lost:
                self._tell_lost()
        except Exception:  # noqa: BLE001 - as logging's own handlers: no call to log fails
            self.handleError(record)

    def _tell_lost(self) -> None:
        count = self.lost - self._told_lost
        message = f"{count} lines of this log are missing here: nobody read them in time"
        told = {"msg": message, "levelno": logging.WARNING, "levelname": "WARNING"}
        if self._write(logging.makeLogRecord(told | {"event": "log_lost", "count": count})):
            self._told_lost += count

    def _write(self, record: logging.LogRecord) -> bool:
        if self._socket is not None:
            try:
                self._socket.sendto(_entry(record), self._journal)
            except BlockingIOError:
                return False
            except OSError:  # it is not there, or out of reach: by stderr it gets to it too
                priority = b"<%d>" % _priority(record)
                return self._write_out(
                    b"".join(priority + line + b"\n" for line in _text(record).splitlines())
                )
            return True
        if self._form == "json":
            return self._write_out(_json(record))
        return self._write_out(b"pickledbd: %b\n" % _text(record))

    def _write_out(self, text: bytes) -> bool:
        """All of it, as far as it need not wait."""
        if self._is_cut:
            text = b"\n" + text
        while text:
            if not self._room.poll(0):
                return False
            try:
                text = text[os.write(self._file, text[:AT_ONCE]) :]
            except OSError:
                return False  # whoever would have read it has gone
            self._is_cut = bool(text)
        return True


def _unwaiting(file: int) -> int:
    """The same descriptor; of a terminal, another one, which does not wait.

    A terminal that is stopped (Ctrl+S) tells of room as long as it has any, and has who writes more
    wait. The descriptor itself is left as it is, for others have it too, as the shell.
    """
    with contextlib.suppress(OSError):  # it is no terminal, or is another user's
        flags = os.O_WRONLY | os.O_NOCTTY | os.O_NONBLOCK | os.O_CLOEXEC
        return os.open(os.ttyname(file), flags)
    return file


_handlers: list[Handler] = []


def fields_of(record: logging.LogRecord) -> dict[str, Any]:
    """What was given beside the message and the event."""
    return {name: value for name, value in vars(record).items() if name not in _STANDARD}


def _priority(record: logging.LogRecord) -> int:
    return next(number for least, number in _PRIORITIES.items() if record.levelno >= least)


def _text(record: logging.LogRecord) -> bytes:
    """The message in one line, and behind it, indented, the traceback if there is one."""
    lines = [_printable(record.getMessage())]
    lines += [f"    {_printable(line)}" for line in _traceback(record).splitlines()]
    return _encoded("\n".join(lines))


def _json(record: logging.LogRecord) -> bytes:
    milliseconds = int(record.created * 1000) % 1000
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    told = {
        "time": f"{moment}.{milliseconds:03d}Z",
        "level": record.levelname.lower(),
        "event": getattr(record, "event", record.name),
        "message": record.getMessage(),
        **fields_of(record),
    }
    if record.exc_info:
        told["traceback"] = _traceback(record)
    # What the system calls a file need not be UTF-8
    plain = {
        name: _encoded(value).decode() if isinstance(value, str) else value
        for name, value in told.items()
    }
    return orjson.dumps(plain, default=str, option=orjson.OPT_APPEND_NEWLINE)


def _entry(record: logging.LogRecord) -> bytes:
    """A datagram for the journal."""
    told: dict[str, Any] = {
        "MESSAGE": _text(record).decode(),
        "PRIORITY": _priority(record),
        "SYSLOG_IDENTIFIER": "pickledbd",
        "PICKLEDBD_EVENT": getattr(record, "event", record.name),
    }
    told |= {f"PICKLEDBD_{name.upper()}": value for name, value in fields_of(record).items()}
    return b"".join(_field(name, str(value)) for name, value in told.items())


def _field(name: str, value: str) -> bytes:
    text = _encoded(value)
    if b"\n" in text:
        return b"%b\n%b%b\n" % (name.encode(), len(text).to_bytes(8, "little"), text)
    return b"%b=%b\n" % (name.encode(), text)


def _traceback(record: logging.LogRecord) -> str:
    return logging.Formatter().formatException(record.exc_info) if record.exc_info else ""


def _printable(text: str) -> str:
    """It in one line, and with nothing that a terminal would obey."""
    if text.isprintable():
        return text
    return "".join(
        each if each.isprintable() else each.encode("unicode_escape").decode() for each in text
    )


def _encoded(text: str) -> bytes:
    return text.encode(errors="backslashreplace")
