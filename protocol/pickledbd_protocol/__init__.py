"""What server and client agree on: commands, codec, errors, lock file, value rules. No I/O."""

# orjson imports these while it is loaded itself, and crashes (SIGSEGV) where Ctrl+C ends one of
# these imports: so they are there before, for all who import this package first
import dataclasses  # noqa: F401
import datetime  # noqa: F401, ICN001
import enum  # noqa: F401
import json  # noqa: F401
import uuid  # noqa: F401

from pickledbd_protocol.codec import (
    GATHERED_MAX,
    Refused,
    Reply,
    Request,
    decode_replies,
    decode_requests,
    encode_error,
    encode_reply,
    encode_request,
    gather,
    join_parts,
)
from pickledbd_protocol.commands import COMMANDS, GLOB_MAX, TTL_MS_MAX, Command
from pickledbd_protocol.errors import (
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
)
from pickledbd_protocol.lock_file import (
    BEING_STARTED,
    LOCK_SUFFIX,
    may_be_written,
    owner_told,
)
from pickledbd_protocol.values import (
    INT_MAX,
    INT_MIN,
    canonical,
    canonical_items,
    check_integers,
    encode_items,
    encode_key,
    encode_value,
    may_hold_binary,
    restore,
    shown,
)
from pickledbd_protocol.version import PROTOCOL_VERSION, __version__

__all__ = [
    "BEING_STARTED",
    "COMMANDS",
    "GATHERED_MAX",
    "GLOB_MAX",
    "INT_MAX",
    "INT_MIN",
    "LOCK_SUFFIX",
    "PROTOCOL_VERSION",
    "TTL_MS_MAX",
    "Command",
    "Conflict",
    "InvalidKey",
    "InvalidValue",
    "LockLost",
    "NotAllowed",
    "PickleDBError",
    "ProtocolError",
    "Refused",
    "Reply",
    "Request",
    "RequestTimeout",
    "SaveFailed",
    "TooLarge",
    "Unavailable",
    "WritesRefused",
    "__version__",
    "canonical",
    "canonical_items",
    "check_integers",
    "decode_replies",
    "decode_requests",
    "encode_error",
    "encode_items",
    "encode_key",
    "encode_reply",
    "encode_request",
    "encode_value",
    "gather",
    "join_parts",
    "may_be_written",
    "may_hold_binary",
    "owner_told",
    "restore",
    "shown",
]
