"""Listening: the ROUTER socket bound to the claimed endpoints, also again where one was lost.

The listening sockets are the claims' own, made by the system's calls, and libzmq is given a
descriptor of each (ZMQ_USE_FD). So connections that come while nobody accepts any are not refused:
they wait. And where systemd has the sockets too, they wait for the next daemon.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable

import zmq

from pickledbd.door import Door
from pickledbd.endpoints import CannotServe, Claim
from pickledbd.ownership import AlreadyOwnedError
from pickledbd.valve import Valve

log = logging.getLogger(__name__)


class Listeners:
    """What `router` listens to."""

    def __init__(self, router: zmq.Socket[bytes], claims: Iterable[Claim], door: Door) -> None:
        self._router = router
        self._door = door
        self._claims = list(claims)
        self._valves: dict[Claim, Valve] = {}

    def bind(self) -> list[str]:
        """Listen at every claimed endpoint and return them as clients reach them. CannotServe."""
        return [self._bind(claim) for claim in self._claims]

    def _bind(self, claim: Claim) -> str:
        endpoint = claim.listen()
        self._door.prepare(self._router, claim)
        descriptor = os.dup(claim.fileno())  # which libzmq closes
        self._router.use_fd = descriptor
        try:
            self._router.bind(endpoint)
        except zmq.ZMQError as error:
            raise CannotServe(f"cannot bind {endpoint}: {error.strerror}") from None
        finally:
            self._router.use_fd = -1
        self._valves[claim] = Valve(descriptor)
        return endpoint

    def let_one_in(self) -> None:
        """Accept one further connection at each endpoint."""
        for valve in self._valves.values():
            valve.let_one_in()

    def shut(self) -> None:
        """Accept nobody."""
        for valve in self._valves.values():
            valve.shut()

    def restore(self) -> None:
        """Listen again where somebody removed the socket that new clients need."""
        for claim in self._claims:
            if not claim.lost():
                continue
            told = {"event": "socket_removed", "endpoint": claim.endpoint}
            log.warning("%s was removed; binding it again", claim.endpoint, extra=told)
            try:
                claim.restore()
                self._valves.pop(claim, None)
                with contextlib.suppress(zmq.ZMQError):  # it may be unbound since last time
                    self._router.unbind(claim.endpoint)
                self._bind(claim)
            except AlreadyOwnedError as error:
                told = {"event": "lock_taken", "path": str(error.args[0]), "owner_pid": error.pid}
                log.error(
                    "%s was removed and is now held by pid %s", error.args[0], error.pid, extra=told
                )
            except (CannotServe, OSError) as error:
                log.error(
                    "cannot restore what was removed: %s", error, extra={"event": "not_restored"}
                )
