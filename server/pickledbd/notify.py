"""Telling systemd: the sd_notify(3) protocol, one datagram of NAME=value lines.

After gunicorn's systemd.py: no dependency is needed for it, and without systemd it does nothing.
It is the loop's thread that tells, and nobody else: that the daemon is alive
(sd_watchdog_enabled(3)) is to be said by who would be stuck if it were not.
"""

from __future__ import annotations

import math
import os
import socket
import time

EXTEND_SECONDS = 60.0
"""While something takes long: how much later than now the service manager is to give up."""

PROGRESS_SECONDS = 1.0
"""How often it is told, at most, that something which takes long gets on."""

SEND_SECONDS = 10.0
"""How long what must not be lost may wait for a service manager that is busy."""


class Notifier:
    """The service manager that started this process, or nobody."""

    def __init__(self, address: str = "", watchdog: float = math.inf) -> None:
        """At the socket `address`; "" for nobody.

        `watchdog`: the seconds after which it takes for stuck who has said nothing.
        """
        self._address = "\0" + address[1:] if address.startswith("@") else address  # unix(7)
        self._watchdog = watchdog if address else math.inf
        self._alive_at = -math.inf  # when it was last told so
        self._progress_at = -math.inf
        self._status = ""
        self._serving = False

    @classmethod
    def from_environment(cls) -> Notifier:
        """As the environment tells; there it is removed, since it is nobody else's."""
        address = os.environ.pop("NOTIFY_SOCKET", "")
        usec = os.environ.pop("WATCHDOG_USEC", "")
        pid = os.environ.pop("WATCHDOG_PID", str(os.getpid()))
        watched = usec.isdecimal() and int(usec) > 0 and pid == str(os.getpid())
        return cls(address, int(usec) / 1e6 if watched else math.inf)

    def ready(self, status: str) -> None:
        """Clients are served from now on, and `keep_alive` is called in time."""
        self._serving = True
        self._status = status
        self._tell(SEND_SECONDS, READY=1, STATUS=status, **self._alive(time.monotonic()))

    def stopping(self) -> None:
        """It has begun to end."""
        self._tell(SEND_SECONDS, STOPPING=1, EXTEND_TIMEOUT_USEC=_usec(EXTEND_SECONDS))

    def status(self, status: str) -> None:
        """What the daemon is doing now, for people; told where it has changed."""
        if status != self._status and self._tell(0.0, STATUS=status):
            self._status = status

    def progress(self, status: str, *, seconds: float = EXTEND_SECONDS) -> None:
        """A start or a stop that takes long gets on. May be called as often as one likes.

        The service manager is to wait `seconds` for the next sign.
        """
        now = time.monotonic()
        if now < self._progress_at + PROGRESS_SECONDS:
            return
        self._progress_at = now
        # Before it is ready the timeout of the start is what watches it, and that is extended: the
        # watchdog would begin with the first sign of life, and knows no step that takes longer
        alive = self._alive(now) if self._serving else {}
        self._tell(0.0, STATUS=status, EXTEND_TIMEOUT_USEC=_usec(seconds), **alive)
        self._status = status

    def keep_alive(self, now: float) -> float:
        """Tell at time.monotonic() `now` that the loop is not stuck, if that is due.

        When to call this again at the latest: at half of what the watchdog waits. Who is awake
        anyway tells it after a third, so that nobody is woken for it.
        """
        if math.isinf(self._watchdog):
            return math.inf
        if now >= self._alive_at + self._watchdog / 3 and not self._tell(0.0, **self._alive(now)):
            self._alive_at = -math.inf  # it is too busy to listen: again, soon
            return now + self._watchdog / 20
        return self._alive_at + self._watchdog / 2

    def _alive(self, now: float) -> dict[str, int]:
        self._alive_at = now
        return {} if math.isinf(self._watchdog) else {"WATCHDOG": 1}

    def _tell(self, patience: float, **state: str | int) -> bool:
        """Whether there is nothing left to tell; it may wait so many seconds."""
        if not self._address:
            return True
        # A line more would be taken for another member
        lines = (f"{name}={value}".replace("\n", " ") for name, value in state.items())
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            sender.settimeout(patience)
            try:
                sender.sendto("\n".join(lines).encode(errors="replace"), self._address)
            except (BlockingIOError, TimeoutError):
                return False
            except OSError:
                pass  # A service manager that cannot be told is no reason to stop serving.
        return True


def _usec(seconds: float) -> int:
    return int(seconds * 1e6)
