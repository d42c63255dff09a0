"""From the options to who may come, and where: the claimed endpoints, and the keys.

May live here: what is refused since it would let in more than was meant, and what is said loudly
since it was meant.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import socket
from collections.abc import Sequence
from pathlib import Path

from pickledbd import activation
from pickledbd.door import Curve
from pickledbd.endpoints import (
    CannotServe,
    Claim,
    check,
    group_number,
    place,
    private_endpoint,
)
from pickledbd.keys import Authorized, own_key

log = logging.getLogger(__name__)

READ_ONLY = "read-only"
"""The name of a passed socket (FileDescriptorName=) whose clients may only read."""

UNNAMED = (".socket", "unknown")
"""How that of another ends: systemd gives it the name of its unit."""


def claim_all(
    options: argparse.Namespace, location: Path, stack: contextlib.ExitStack
) -> list[Claim]:
    """The endpoints to be bound, the best ones first; `stack` releases them. CannotServe.

    Best is a socket of this machine, and where everything may be done.
    """
    guarded = options.curve_key is not None or options.insecure
    claims: list[Claim] = []

    def claim(
        endpoint: str,
        *,
        private: bool = False,
        read_only: bool = False,
        passed: socket.socket | None = None,
    ) -> None:
        check(endpoint, beyond_loopback=guarded)
        known = next((each for each in claims if place(each.endpoint) == place(endpoint)), None)
        if known is not None:
            if known.read_only != (read_only or options.read_only_clients):
                raise CannotServe(f"{endpoint} cannot be for everything and only for reading")
            return
        claims.append(
            Claim(
                endpoint,
                private=private,
                group=None if private else group(options),
                read_only=read_only or options.read_only_clients,
                passed=passed,
            )
        )
        stack.callback(claims[-1].release)

    for each in activation.passed():
        try:
            claim(each.endpoint, read_only=_is_for_readers(each.name), passed=each.socket)
        except CannotServe as error:
            raise CannotServe(f"{each.what} does not fit: {error}") from None
    for endpoint in options.bind:
        claim(endpoint)
    if not claims:
        claim(private_endpoint(location), private=True)
    for endpoint in options.bind_read_only:
        claim(endpoint, read_only=True)
    if options.group is not None and not any(each.is_shared for each in claims):
        raise CannotServe("--group is for sockets: name one, --bind ipc:///PATH")
    return sorted(claims, key=lambda each: (each.read_only, each.is_tcp))


def _is_for_readers(name: str) -> bool:
    """Whether a passed socket of this name is for clients that may only read. CannotServe."""
    if name == READ_ONLY or name.endswith(UNNAMED):
        return name == READ_ONLY
    # Rather not than a door that was meant to be half open, and misspelt
    raise CannotServe(f"FileDescriptorName= is to be {READ_ONLY}, or left out")


def group(options: argparse.Namespace) -> int | None:
    """The number of the group that sockets, and what belongs to them, are for. CannotServe."""
    return None if options.group is None else group_number(options.group)


def curve(options: argparse.Namespace, claims: Sequence[Claim]) -> Curve | None:
    """What is needed to ask for keys. CannotServe if only half of it is there, or of no use."""
    tcp = [claim.endpoint for claim in claims if claim.is_tcp]
    if (options.curve_key is None) != (options.authorized_keys is None):
        raise CannotServe(
            "--curve-key and --authorized-keys belong together: the daemon's key, and those of "
            "the clients that may come"
        )
    if options.insecure and options.curve_key is not None:
        raise CannotServe("--insecure does without keys, and --curve-key demands them: choose one")
    if options.insecure and tcp:
        log.warning(
            "--insecure: WHOEVER REACHES %s MAY READ AND CHANGE EVERYTHING, and whoever is on the "
            "way can listen; see --curve-key",
            " and ".join(tcp),
            extra={"event": "insecure", "endpoints": tcp},
        )
    if options.curve_key is None:
        return None
    if not tcp:
        raise CannotServe("--curve-key is for tcp: name an endpoint, --bind tcp://ADDRESS:PORT")
    _, secret = own_key(_path(options.curve_key))
    authorized = Authorized(_path(options.authorized_keys))
    if not authorized:
        log.warning(
            "%a holds no key yet: nobody may come by tcp",
            os.fspath(options.authorized_keys),
            extra={"event": "no_keys", "path": os.fspath(options.authorized_keys)},
        )
    return Curve(secret, authorized)


def _path(option: str) -> Path:
    return Path(option).expanduser().absolute()
