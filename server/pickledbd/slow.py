"""What took long: a log of it, which is bounded in lines a second, and the last of it for `info`.

May live here: what is told of a slow operation. Keys appear shortened, values never. There are
two kinds: what *held* the loop, so that everybody waited, and what *took* long in all, beside the
others, which only its own client noticed. After Redis's SLOWLOG.
"""

from __future__ import annotations

import logging
import math
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from pickledbd_protocol import Request, shown

log = logging.getLogger(__name__)

SLOW_MS = 100
"""By default, for what held the loop: twenty times what the daemon's own slices take at most."""

IN_ALL = 10
"""How many times that something may take beside the others."""

KEPT = 16
"""Operations of which `info` tells."""

PAUSE_SECONDS = 1.0
"""Between two lines in the log: what is slow is not to become slower by that."""


class SlowLog:
    """The slow operations of a daemon."""

    def __init__(self, slow_ms: float = SLOW_MS) -> None:
        """Those over `slow_ms`; 0 for none."""
        self.seconds = slow_ms / 1000 if slow_ms else math.inf
        """From how long on something that holds the loop is slow."""
        self.count = 0
        self.who: Callable[[bytes], dict[str, Any]] = lambda _peer: {}
        """The fields by which the log names a peer; set by who knows its connection."""
        self._kept: deque[dict[str, Any]] = deque(maxlen=KEPT)
        self._tell_at = 0.0
        self._untold = 0

    def last(self) -> list[dict[str, Any]]:
        """The last ones, the newest first."""
        return list(reversed(self._kept))

    def held(self, peer: bytes, request: Request, seconds: float) -> None:
        """A request held the loop for so long, which is slow."""
        self._note(request.command.name, seconds, "held", _about(request.args) | self.who(peer))

    def own(self, what: str, seconds: float) -> None:
        """Something that is no request's held the loop for so long; noted if that is slow."""
        if seconds >= self.seconds:
            self._note(what, seconds, "held", {})

    def took(self, peer: bytes, request: Request, seconds: float, count: int | None = None) -> None:
        """A request was carried out beside others in so long; noted if that is slow.

        `count`: of how many items it was, if it came in parts.
        """
        if seconds >= self.seconds * IN_ALL:
            about = _about(request.args) | ({} if count is None else {"count": count})
            self._note(request.command.name, seconds, "took", about | self.who(peer))

    def _note(self, command: str, seconds: float, how: str, about: dict[str, Any]) -> None:
        self.count += 1
        told = {"command": command, "ms": round(seconds * 1000, 1), "how": how, **about}
        self._kept.append({"time": round(time.time(), 3), **told})
        now = time.monotonic()
        if now < self._tell_at:
            self._untold += 1
            return
        self._tell_at = now + PAUSE_SECONDS
        log.log(
            logging.WARNING if how == "held" else logging.INFO,
            "slow: %s%s%s %s %.1f ms%s%s",
            command,
            f" of {about['count']} items" if "count" in about else "",
            f" {about['key']}" if "key" in about else "",
            "held all others up for" if how == "held" else "took",
            told["ms"],
            f", for {about['peer']}" if "peer" in about else "",
            f"; {self._untold} others were not told" if self._untold else "",
            extra={"event": "slow", **told, "untold": self._untold},
        )
        self._untold = 0


def _about(args: dict[str, Any]) -> dict[str, Any]:
    """Of which key, or of how many, a request is."""
    key = next((args[name] for name in ("key", "name", "prefix") if name in args), None)
    many = next((args[name] for name in ("items", "keys", "steps") if name in args), None)
    about = {} if key is None else {"key": shown(key)}
    return about if many is None else about | {"count": len(many)}
