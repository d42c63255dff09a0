"""pickleDB's class, shared by threads and processes: `from pickledbd_client import PickleDB`."""

from typing import TYPE_CHECKING, Any

import pickledbd_protocol  # noqa: F401 - before orjson: see there
from pickledbd_client.database import PickleDB
from pickledbd_client.held import Held
from pickledbd_client.watching import Change, Resync
from pickledbd_protocol import (
    Conflict,
    InvalidKey,
    InvalidValue,
    LockLost,
    NotAllowed,
    PickleDBError,
    ProtocolError,
    RequestTimeout,
    SaveFailed,
    TooLarge,
    Unavailable,
    WritesRefused,
    __version__,
)

if TYPE_CHECKING:
    from pickledbd_client.async_database import AsyncPickleDB

__all__ = [
    "AsyncPickleDB",
    "Change",
    "Conflict",
    "Held",
    "InvalidKey",
    "InvalidValue",
    "LockLost",
    "NotAllowed",
    "PickleDB",
    "PickleDBError",
    "ProtocolError",
    "RequestTimeout",
    "Resync",
    "SaveFailed",
    "TooLarge",
    "Unavailable",
    "WritesRefused",
    "__version__",
]


def __getattr__(name: str) -> Any:
    """AsyncPickleDB, once it is wanted: asyncio takes longer to import than all the rest."""
    if name == "AsyncPickleDB":
        from pickledbd_client.async_database import AsyncPickleDB  # noqa: PLC0415 - see above

        return AsyncPickleDB
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
