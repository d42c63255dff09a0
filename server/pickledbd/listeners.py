"""Listening: the ROUTER socket bound to the claimed endpoints, also again where one was lost.

The listening sockets are the claims' own, made by the system's calls, and libzmq is given a
descriptor of each (ZMQ_USE_FD). So connections that come while nobody accepts any are not refused:
they wait.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterable

import zmq

from pickledbd.endpoints import CannotServe, Claim
from pickledbd.ownership import AlreadyOwnedError

log = logging.getLogger(__name__)


class Listeners:
    """What `router` listens to."""

    def __init__(self, router: zmq.Socket[bytes], claims: Iterable[Claim]) -> None:
        self._router = router
        self._claims = list(claims)
        self.paused = False
        """Whether connections are left to wait."""

    def bind(self) -> list[str]:
        """Listen at every claimed endpoint and return them as clients reach them. CannotServe."""
        return [self._bind(claim) for claim in self._claims]

    def _bind(self, claim: Claim) -> str:
        endpoint = claim.listen()
        if not self.paused:
            self._attach(claim)
        return endpoint

    def _attach(self, claim: Claim) -> None:
        """Have libzmq accept what comes."""
        self._router.use_fd = os.dup(claim.fileno())  # which libzmq closes
        try:
            self._router.bind(claim.endpoint)
        except zmq.ZMQError as error:
            raise CannotServe(f"cannot bind {claim.endpoint}: {error.strerror}") from None
        finally:
            self._router.use_fd = -1

    def _detach(self, claim: Claim) -> None:
        with contextlib.suppress(zmq.ZMQError):  # it may be unbound since it was lost
            self._router.unbind(claim.endpoint)

    def pause(self) -> None:
        """Accept nothing: who connects waits in the system's queue (listen(2))."""
        self.paused = True
        for claim in self._claims:
            self._detach(claim)

    def resume(self) -> None:
        """Accept again."""
        self.paused = False
        for claim in self._claims:
            if claim.fileno() >= 0:
                try:
                    self._attach(claim)
                except (CannotServe, OSError) as error:
                    log.error("cannot accept at %s: %s", claim.endpoint, error)

    def restore(self) -> None:
        """Listen again where somebody removed the socket that new clients need."""
        for claim in self._claims:
            if not claim.lost():
                continue
            log.warning("%s was removed; binding it again", claim.endpoint)
            try:
                claim.restore()
                self._detach(claim)
                self._bind(claim)
            except AlreadyOwnedError as error:
                log.error("%s was removed and is now held by pid %s", error.args[0], error.pid)
            except (CannotServe, OSError) as error:
                log.error("cannot restore what was removed: %s", error)
