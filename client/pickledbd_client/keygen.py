"""`pickledbctl keygen`: a pair of CURVE keys, in two files in ZeroMQ's format. Needs no daemon."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import zmq

from pickledbd_protocol import InvalidValue, NotAllowed, Unavailable

CERTIFICATE = """\
# {about}. ZeroMQ's format of CURVE certificates.

metadata
curve
    public-key = "{public}"
"""

ADVICE = """\
{secret}: the secret key. Leave it to the user who needs it; it need never be copied.
{public}: the public key. Whoever has it can do no harm.

For a client: put {public.name} into the daemon's --authorized-keys directory (or into read-only/ in
it, and it may only read). The client connects with
  PickleDB("tcp://HOST:PORT", curve=("{secret.name}", "DAEMON.key"))
  pickledbctl -e tcp://HOST:PORT --curve {secret.name} DAEMON.key ping
where DAEMON.key is the daemon's public key.

For a daemon: give {public.name} to its clients, and start it with
  pickledbd LOCATION --bind tcp://ADDRESS:PORT --curve-key {secret.name} --authorized-keys DIR
"""


def keygen(options: argparse.Namespace) -> int:
    """The command: make them, and tell what to do with each."""
    secret, public = make(options.name, options.dir)
    print(ADVICE.format(secret=secret, public=public), end="")
    return 0


def make(name: str, directory: str = ".") -> tuple[Path, Path]:
    """Make NAME.key_secret and NAME.key in `directory`, and return their paths.

    Nothing is ever overwritten: Unavailable if one of them is there, or NotAllowed if the directory
    cannot be written to. InvalidValue if the name is none for a file.
    """
    if not re.fullmatch(r"[\w@+-][\w.@+-]*", name):
        raise InvalidValue(f"{name!r} is no name of a key: letters, digits and . _ - @ + are")
    folder = Path(directory).expanduser()
    secret_path, public_path = folder / f"{name}.key_secret", folder / f"{name}.key"
    public, secret = (key.decode() for key in zmq.curve_keypair())
    text = CERTIFICATE.format(about="A SECRET key: only its user may read it", public=public)
    _write(secret_path, 0o600, f'{text}    secret-key = "{secret}"\n')
    try:
        _write(public_path, 0o644, CERTIFICATE.format(about="A public key", public=public))
    except BaseException:
        secret_path.unlink()  # which was made just now
        raise
    return secret_path, public_path


def _write(path: Path, mode: int, text: str) -> None:
    try:
        file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise Unavailable(
            f"{path} is there already: choose another name, or move it away"
        ) from None
    except PermissionError as error:
        raise NotAllowed(f"cannot write {path}: {error.strerror}") from None
    except OSError as error:
        raise Unavailable(f"cannot write {path}: {error.strerror}") from None
    try:
        with os.fdopen(file, "w", encoding="ascii") as writer:
            writer.write(text)
            os.fchmod(file, mode)  # whatever the umask
    except BaseException:
        path.unlink()
        raise
