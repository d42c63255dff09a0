"""What a connection may: everything, or only read. The command table says what is reading.

Every request comes by here before anything is done with it, be it one of several in a message, a
part of a large one, or one that has to wait.
"""

from __future__ import annotations

from dataclasses import dataclass

from pickledbd_protocol import NotAllowed, Request


@dataclass(frozen=True, slots=True)
class Rights:
    """Those of a connection, and why they are no more."""

    reads: bool = True
    changes: bool = True
    why: str = ""

    def check(self, request: Request) -> None:
        """Raise NotAllowed unless it may ask this."""
        if self.changes:
            return
        command = request.command
        if not self.reads:
            raise NotAllowed(f"{command.name} is not allowed: {self.why}")
        if not command.reads:
            raise NotAllowed(f"{command.name} is not allowed to who may only read: {self.why}")
        for name in command.restricted:
            if request.args.get(name):
                raise NotAllowed(
                    f"{command.name} with {name} is not allowed to who may only read: {self.why}"
                )


EVERYTHING = Rights()
