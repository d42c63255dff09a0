"""The keys with which a client comes by tcp, named by the files that hold them.

The files are certificates in ZeroMQ's format, which `pickledbctl keygen` makes. They are read at
each connection, so that a key can be replaced while programs run.
"""

from __future__ import annotations

import os
import struct
from pathlib import Path

import zmq

from pickledbd_protocol import NotAllowed, Unavailable

CurveFiles = tuple[str | os.PathLike[str], str | os.PathLike[str]]
"""Those of the client's own secret key, and of the daemon's public key."""

KEY_BYTES = 32

_PAIR = "the file of one's own secret key, NAME.key_secret, and that of the daemon's key, NAME.key"


class Curve:
    """What `curve=` names, or else $PICKLEDBD_CURVE."""

    def __init__(self, own: str | os.PathLike[str], daemon: str | os.PathLike[str]) -> None:
        self.own = Path(own).expanduser().absolute()
        self.daemon = Path(daemon).expanduser().absolute()

    @property
    def files(self) -> CurveFiles:
        """As an option again, for another process."""
        return os.fspath(self.own), os.fspath(self.daemon)

    def keys(self) -> tuple[bytes, bytes, bytes]:
        """The client's public and secret key, and the daemon's. Unavailable, NotAllowed."""
        public, secret = _load(self.own)
        if secret is None:
            raise Unavailable(f"{self.own} holds no secret key: curve is {_PAIR}")
        found = self.own.stat()
        if found.st_uid == os.geteuid() and found.st_mode & 0o077:
            raise NotAllowed(
                f"{self.own} holds a secret key and can be read by others: run chmod 600 "
                f"{self.own}, and make a new key if anybody may have done so"
            )
        if zmq.curve_public(secret) != public:
            raise Unavailable(f"the two keys in {self.own} do not belong together: make new ones")
        return public, secret, _load(self.daemon)[0]


def curve_of(files: CurveFiles | None) -> Curve | None:
    """From the option, or the environment. ValueError or Unavailable if that is none."""
    if files is not None:
        try:
            own_file, daemon_file = files
            return Curve(own_file, daemon_file)
        except (TypeError, ValueError):
            raise ValueError(f"curve is a pair, {_PAIR}, not {files!r}") from None
    told = os.environ.get("PICKLEDBD_CURVE", "")
    if not told:
        return None
    own, colon, daemon = told.partition(":")
    if not (own and colon and daemon):
        raise Unavailable(f"$PICKLEDBD_CURVE is, with a colon between them, {_PAIR}, not {told!r}")
    return Curve(own, daemon)


def _load(path: Path) -> tuple[bytes, bytes | None]:
    # What it takes to import is not to delay those who come by a socket of this machine
    from zmq.auth.certs import load_certificate  # noqa: PLC0415

    public: bytes = b""
    secret: bytes | None = None
    try:
        path.open("rb").close()  # which tells why that cannot be done
        public, secret = load_certificate(path)
    except PermissionError as error:
        raise NotAllowed(f"cannot read the key {path}: {error.strerror}") from None
    except OSError as error:
        raise Unavailable(f"cannot read the key {path}: {error.strerror}") from None
    except (ValueError, IndexError):
        pass
    if not (_is_key(public) and (secret is None or _is_key(secret))):
        raise Unavailable(f"{path} is no certificate of a key, as `pickledbctl keygen` makes it")
    return public, secret


def _is_key(text: bytes) -> bool:
    from zmq.utils import z85  # noqa: PLC0415 - as above

    try:
        key: bytes = z85.decode(text)
        return len(key) == KEY_BYTES and z85.encode(key) == text
    except (ValueError, KeyError, struct.error):
        return False
