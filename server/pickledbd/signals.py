"""Signals as something that a poll can wait for."""

from __future__ import annotations

import contextlib
import signal
import socket
from types import FrameType


class Signals:
    """SIGTERM, SIGINT and SIGHUP (a closed terminal) as a readable descriptor and a flag."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._reader, writer = socket.socketpair()
        self._reader.setblocking(False)
        writer.setblocking(False)
        self._writer = writer
        signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            # nohup, and a shell that starts it in the background, have a reason to ignore one
            if number == signal.SIGTERM or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self.received = signal.Signals(number)

    def fileno(self) -> int:
        return self._reader.fileno()

    def wake(self) -> None:
        """End the loop's wait. For any thread."""
        with contextlib.suppress(OSError):  # full of calls that were not answered yet, or closed
            self._writer.send(b"\0")

    def drain(self) -> None:
        """Forget the calls to wake."""
        with contextlib.suppress(BlockingIOError):
            while self._reader.recv(4096):
                pass
