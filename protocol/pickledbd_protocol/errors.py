"""Every error a user of pickledbd can meet, and its code on the wire.

May live here: exception classes and the table that names them on the wire. They import nothing,
so everything may import them. Each is also the built-in that Python programs already catch.
Grouped by whose business it is: the caller's, others', the daemon's, the connection's.
"""

from __future__ import annotations


class PickleDBError(Exception):
    """Anything that pickledbd raises by itself; raised as such for a fault in the daemon."""

    code = "internal"

    outcome_known = True
    """True: nothing was changed. False: the write may have been applied, or may be yet."""


# The caller's: the request was wrong; nothing was changed, and repeating it will not help.


class InvalidKey(PickleDBError, ValueError, TypeError):
    """The key cannot be written as JSON text (a lone surrogate)."""

    code = "invalid_key"


class InvalidValue(PickleDBError, ValueError, TypeError):
    """The value is not JSON as orjson writes it, nor bytes."""

    code = "invalid_value"


class TooLarge(PickleDBError, ValueError):
    """The request is larger than the daemon accepts."""

    code = "too_large"


class NotAllowed(PickleDBError, PermissionError):
    """The operating system or the daemon refuses this user."""

    code = "not_allowed"


class ProtocolError(PickleDBError):
    """One side sent what the protocol does not know, or speaks another version of it."""

    code = "protocol"


# Others': the request was right, but somebody else was quicker; nothing was changed.


class Conflict(PickleDBError, RuntimeError):
    """A value is not of the version that was demanded, or one retry after the other failed so."""

    code = "conflict"


class LockLost(PickleDBError, RuntimeError):
    """The lock is not held any more: its time was over before it was renewed."""

    code = "lock_lost"


# The daemon's: the request was right, the disk or its owner was not.


class SaveFailed(PickleDBError, OSError):
    """The data could not be written to disk; the file is as the last good save left it."""

    code = "save_failed"


class WritesRefused(PickleDBError, OSError):
    """Writes are refused while they could not be made durable; reads go on."""

    code = "writes_refused"


# The connection's: no answer. `outcome_known` tells what a write may have done.


class _NoAnswer(PickleDBError):
    """Base of the errors after which a write may or may not have been applied."""

    def __init__(self, *args: object, outcome_known: bool = True) -> None:
        super().__init__(*args)
        self.outcome_known = outcome_known


class Unavailable(_NoAnswer, ConnectionError):
    """No daemon serves the database, it could not be started, or it went away."""

    code = "unavailable"


class RequestTimeout(_NoAnswer, TimeoutError):
    """No answer within the deadline."""

    code = "timeout"


BY_CODE: dict[str, type[PickleDBError]] = {
    cls.code: cls
    for cls in (
        PickleDBError,
        InvalidKey,
        InvalidValue,
        TooLarge,
        NotAllowed,
        ProtocolError,
        Conflict,
        LockLost,
        SaveFailed,
        WritesRefused,
        Unavailable,
        RequestTimeout,
    )
}
"""From the code on the wire to the class raised by a client (SPEC.md, Errors)."""
