"""What server and client agree on: commands, codec, errors, lock file, value rules. No I/O."""

from pickledbd_protocol.codec import (
    Refused,
    Reply,
    Request,
    decode_reply,
    decode_request,
    encode_error,
    encode_reply,
    encode_request,
    join_parts,
)
from pickledbd_protocol.commands import COMMANDS, Command
from pickledbd_protocol.errors import (
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
)
from pickledbd_protocol.lock_file import (
    BEING_STARTED,
    LOCK_SUFFIX,
    may_be_written,
    owner_told,
)
from pickledbd_protocol.values import (
    canonical,
    check_integers,
    encode_items,
    encode_key,
    encode_value,
    restore,
    shown,
)
from pickledbd_protocol.version import PROTOCOL_VERSION, __version__

__all__ = [
    "BEING_STARTED",
    "COMMANDS",
    "LOCK_SUFFIX",
    "PROTOCOL_VERSION",
    "Command",
    "InvalidKey",
    "InvalidValue",
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
    "check_integers",
    "decode_reply",
    "decode_request",
    "encode_error",
    "encode_items",
    "encode_key",
    "encode_reply",
    "encode_request",
    "encode_value",
    "join_parts",
    "may_be_written",
    "owner_told",
    "restore",
    "shown",
]
