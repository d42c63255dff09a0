"""Daemons that demand keys, and those who come to them."""

from __future__ import annotations

import os
import re
import select
import shutil
import time

import zmq
from zmq.auth import load_certificate

from pickledbd_client import AsyncPickleDB, PickleDB
from pickledbd_client.keygen import make
from support import PATIENCE, Daemon, wait_until


def said(daemon, pattern):
    """Wait until a daemon has said something on stderr that matches; all that it has said."""
    stderr = daemon.process.stderr.fileno()
    deadline = time.monotonic() + PATIENCE
    heard = daemon.__dict__.setdefault("heard", "")
    while not re.search(pattern, heard):
        left = max(0.0, deadline - time.monotonic())
        assert select.select([stderr], [], [], left)[0], f"no {pattern} in: {heard}"
        some = os.read(stderr, 2**16).decode()
        assert some, f"it ended, and said: {heard}"
        daemon.heard = heard = heard + some
    return heard


class Keyed:
    """A daemon with keys at tcp, and with a socket that anybody of this user's may use."""

    def __init__(self, folder, *options):
        self.folder = folder
        self.authorized = folder / "authorized"
        (self.authorized / "read-only").mkdir(parents=True)
        make("daemon", folder)
        self.options = options
        self.port = "*"
        self.start()

    def start(self):
        self.daemon = Daemon(
            self.folder / "my.db",
            *("--bind", f"tcp://127.0.0.1:{self.port}", "--bind", f"ipc://{self.folder}/s"),
            *(*self.key_options(), *self.options),
        )
        self.tcp = self.daemon.ready.strip().split(" and ")[-1]
        self.ipc = self.daemon.endpoint
        self.port = self.tcp.rpartition(":")[2]

    def key_options(self):
        secret = self.folder / "daemon.key_secret"
        return "--curve-key", secret, "--authorized-keys", self.authorized

    def files(self, name, of="daemon"):
        """As `curve=` names them; made if they are not there."""
        if not (self.folder / f"{name}.key").exists():
            make(name, self.folder)
        return self.folder / f"{name}.key_secret", self.folder / f"{of}.key"

    def authorize(self, name, folder="."):
        """Have a key let in, by a file that is there at once."""
        self.files(name)
        there = self.authorized / folder / f"{name}.key"
        shutil.copy(self.folder / f"{name}.key", there.with_suffix(".new"))
        os.replace(there.with_suffix(".new"), there)
        return there

    def client(self, name, *, cls=PickleDB, endpoint=None, of="daemon", **options):
        options = {"timeout": PATIENCE, "curve": name and self.files(name, of), **options}
        return cls(endpoint or self.tcp, **options)

    def async_client(self, name, **options):
        return self.client(name, cls=AsyncPickleDB, **options)

    def dealer(self, context, name):
        """A bare socket with a key; None: with none."""
        dealer = context.socket(zmq.DEALER)
        dealer.linger = 0
        dealer.rcvtimeo = int(PATIENCE * 1000)
        if name is not None:
            own, daemon = self.files(name)
            dealer.curve_publickey, dealer.curve_secretkey = load_certificate(own)
            dealer.curve_serverkey = load_certificate(daemon)[0]
        return dealer

    def told(self, what="info"):
        with PickleDB(self.ipc, timeout=PATIENCE) as db:
            return getattr(db, what)()

    def until_hung_up(self, dealer):
        """Wait until a socket's connection is lost."""
        wait_until(lambda: not dealer.poll(0, zmq.POLLOUT), "the daemon to hang up")
