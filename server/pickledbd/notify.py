"""Telling systemd: the sd_notify(3) protocol, one datagram of NAME=value lines.

After gunicorn's systemd.py: no dependency is needed for it, and without systemd it does nothing.
"""

from __future__ import annotations

import contextlib
import os
import socket

EXTEND_USEC = 60_000_000
"""While something takes long: how much later than now the service manager is to give up."""


def notify(**state: str | int) -> None:
    """Send e.g. READY=1 and STATUS="serving" to the service manager, if there is one."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address.startswith("@"):  # Linux's abstract namespace
        address = "\0" + address[1:]
    if not address:
        return
    message = "\n".join(f"{name}={value}" for name, value in state.items())
    # A service manager that cannot be told is no reason to stop serving.
    with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.sendto(message.encode(), address)
