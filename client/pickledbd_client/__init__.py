"""pickleDB's class, shared by threads and processes: `from pickledbd_client import PickleDB`."""

from pickledbd_client.async_database import AsyncPickleDB
from pickledbd_client.database import PickleDB
from pickledbd_protocol import (
    InvalidKey,
    InvalidValue,
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

__all__ = [
    "AsyncPickleDB",
    "InvalidKey",
    "InvalidValue",
    "NotAllowed",
    "PickleDB",
    "PickleDBError",
    "ProtocolError",
    "RequestTimeout",
    "SaveFailed",
    "TooLarge",
    "Unavailable",
    "WritesRefused",
    "__version__",
]
