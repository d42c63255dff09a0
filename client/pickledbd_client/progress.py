"""What is told on stderr of work that takes long: how much is done, how fast, how long yet.

On a terminal it is one line that changes; else, if it is asked for, a line now and then. Where
stderr is no terminal nothing is told without being asked for.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import Self, TextIO

_TERMINAL_SECONDS = 0.1
_LINE_SECONDS = 1.0
_CLEAR = "\r\x1b[K"


class Progress:
    """`with Progress("exporting", "exported", ...) as progress: progress.add(1)`."""

    def __init__(
        self,
        doing: str,
        done: str,
        *,
        asked: bool,
        share: Callable[[int], float | None] = lambda _count: None,
    ) -> None:
        """`share`: how much of it is done at a count of keys, from 0 to 1; None if nobody knows."""
        self.count = 0
        """Keys so far."""
        self._doing = doing
        self._done = done
        self._share = share
        self._terminal = sys.stderr.isatty()
        self._shown = asked or self._terminal
        self._started = self._told = time.monotonic()
        self._skipped = 0

    def add(self, count: int) -> None:
        """So many further keys are done."""
        self.count += count
        if not self._shown:
            return
        now = time.monotonic()
        if now - self._told >= (_TERMINAL_SECONDS if self._terminal else _LINE_SECONDS):
            self._told = now
            self._say(self._line(now))

    def skip(self, count: int) -> None:
        """So many were done before; they are counted, though not in the rate."""
        self.count += count
        self._skipped += count

    def note(self, text: str) -> None:
        """Tell what goes on instead of counting."""
        if self._shown:
            self._say(text)

    def _line(self, now: float) -> str:
        spent = now - self._started
        rate = (self.count - self._skipped) / spent if spent else 0
        line = f"{self._doing}: {self.count:,} keys, {rate:,.0f}/s"
        share = self._share(self.count)
        if not share:
            return line
        left = spent * (1 - share) / share
        return f"{line}, {share:.0%}, {_time(left)} left"

    def _say(self, text: str) -> None:
        with contextlib.suppress(OSError):  # nobody reads it
            # A longer line than the terminal's could not be cleared
            if self._terminal:
                columns, _ = size_of(sys.stderr)
                line = f"{_CLEAR}{text[: columns - 1]}"
            else:
                line = f"{text}\n"
            sys.stderr.write(line)
            sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._shown:
            return
        if self._terminal:
            self._say("")
        if exc_type is None:
            spent = time.monotonic() - self._started
            with contextlib.suppress(OSError):
                sys.stderr.write(f"{self._done} {self.count:,} keys in {_time(spent)}\n")


def size_of(terminal: TextIO) -> tuple[int, int]:
    """Columns and rows as they are now, whatever the environment says; some do not tell."""
    columns, rows = os.get_terminal_size(terminal.fileno())
    return columns or 80, rows or 24


def _time(seconds: float) -> str:
    """A span of time as people say it."""
    minutes, rest = divmod(round(seconds), 60)
    if not minutes:
        return f"{seconds:.1f} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"
