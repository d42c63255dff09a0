"""The door: who is let in at which endpoint, what they may there, and who has to leave.

May live here: what the parts that decide it have in common, and the loop has to do with: the
handler of libzmq's questions (`zap`), the keys, the log of refusals. As long as every client may
do everything, which is what a daemon of one machine begins with, there is none of this.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import zmq

from pickledbd.endpoints import Claim
from pickledbd.keys import LOOK_SECONDS, Authorized
from pickledbd.refusals import Refusals
from pickledbd.rights import EVERYTHING, Rights
from pickledbd.status import Status
from pickledbd.zap import Zap, domain, identity

REASONS_MAX = 1000
"""Addresses of which it is noted why they were refused, until their connections end."""

ANSWERING_SECONDS = 0.0004
"""How long those who want in are dealt with in one turn: they are not to hold up who is in."""

_FAILURES: dict[int | None, str] = {
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "it wants to show a key, which is not asked for",
}
_KEYED_FAILURES: dict[int | None, str] = {
    None: "it shows no key, or asks nothing",
    0: "it shows no key before it leaves, or in time",
    zmq.PROTOCOL_ERROR_ZMTP_MECHANISM_MISMATCH: "it shows no key, as a client without curve does",
    zmq.PROTOCOL_ERROR_ZMTP_CRYPTOGRAPHIC: "it takes another public key for this daemon's",
}
_STRANGE = "it does not speak ZeroMQ's protocol"


@dataclass(frozen=True, slots=True)
class Curve:
    """What is needed for keys."""

    secret: str
    """The daemon's own."""
    authorized: Authorized


class Door:
    """Of the ROUTER that is bound to `claims`."""

    def __init__(
        self,
        context: zmq.Context[zmq.Socket[bytes]],
        claims: Sequence[Claim],
        curve: Curve | None,
        status: Status,
    ) -> None:
        """With `curve` all tcp endpoints demand keys."""
        self.refusals = Refusals(status)
        self.look_at = 0.0
        """When to `look` again, in time.monotonic()."""
        self._curve = curve
        self._reasons: dict[str, str] = {}
        self._zap: Zap | None = None
        if curve is None:
            self.look_at = float("inf")
        if curve is not None or any(claim.read_only for claim in claims):
            keys = None if curve is None else curve.authorized
            self._zap = Zap(context, keys, self._refused)

    # For the loop

    @property
    def descriptors(self) -> list[int]:
        """What becomes readable when there may be something to `answer`."""
        return [] if self._zap is None else [self._zap.fileno()]

    @property
    def unanswered(self) -> bool:
        """Whether somebody may wait for an answer."""
        return self._zap is not None and self._zap.unanswered

    def answer(self) -> None:
        """Let in, or refuse, those who ask for it: all of them, or some, if they are many."""
        if self._zap is not None:
            self._zap.answer(time.monotonic() + ANSWERING_SECONDS)

    def look(self, until: float) -> bool:
        """Look at the keys; whether they may be others since the last time."""
        if self._curve is None:
            return False
        is_done = self._curve.authorized.look_again(until)
        self.look_at = time.monotonic() + LOOK_SECONDS if is_done else 0.0
        changed, self._curve.authorized.changed = self._curve.authorized.changed, False
        return changed

    def close(self) -> None:
        if self._zap is not None:
            self._zap.close()

    # For the sockets

    def prepare(self, router: zmq.Socket[bytes], claim: Claim) -> None:
        """Have what `router` is bound to next let in whom it should: libzmq copies its options."""
        if self._zap is None:
            return
        keyed = self._curve is not None and claim.is_tcp
        router.zap_domain = domain(claim.endpoint, keyed=keyed, read_only=claim.read_only).encode()
        router.zap_enforce_domain = True  # nobody, should there be no handler
        if self._curve is not None and keyed:
            router.curve_secretkey = self._curve.secret.encode()
        router.curve_server = keyed
        if keyed:
            claim.hold()

    def user(self, frame: zmq.Frame) -> str:
        """The user id that came with a message; empty where all may do everything."""
        return "" if self._zap is None else str(frame.get("User-Id"))

    def sender(self, frame: zmq.Frame) -> Rights:
        """What who sent a message may, whose connection was lost since."""
        return self.rights(self.user(frame))

    def rights(self, user: str) -> Rights:
        """What a user may now."""
        if not user:
            return EVERYTHING
        public, reads_only, endpoint = identity(user)
        name = self.name(user)
        if public is not None and not name:
            return Rights(reads=False, changes=False, why="its key was taken back")
        if name.startswith("read-only/"):
            return Rights(changes=False, why=f"key {name}")
        return Rights(changes=False, why=f"clients at {endpoint}") if reads_only else EVERYTHING

    def name(self, user: str) -> str:
        """Of a user's key; empty if there is none."""
        public = identity(user)[0] if user else None
        key = self._curve.authorized.get(public) if self._curve is not None and public else None
        return "" if key is None else key.name

    def _refused(self, where: str, why: str) -> None:
        if len(self._reasons) >= REASONS_MAX:
            self._reasons.clear()
        self._reasons[where] = why

    def left(self, who: str, endpoint: str, failure: int | None) -> None:
        """A connection ended that never sent a message.

        `failure` of its handshake as libzmq tells it: 0 where it went on until the end, and None
        where nothing was told.
        """
        keyed = self._curve is not None and endpoint.startswith("tcp:")
        where = who.rpartition(":")[0].strip("[]")
        if not where and keyed and self._reasons:  # it had gone before anybody looked who it was
            where = who = next(iter(self._reasons))
        why = self._reasons.pop(where, None)
        if why is None and (keyed or failure):
            why = (_KEYED_FAILURES if keyed else _FAILURES).get(failure, _STRANGE)
        if why is not None:
            self.refusals.note(who, endpoint, why)
