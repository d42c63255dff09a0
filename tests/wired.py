"""The engine with its file and journal, and without a socket."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import time
import uuid
from types import SimpleNamespace

from pickledbd import cli
from pickledbd.counters import Counters
from pickledbd.limits import Limits
from pickledbd.notify import Notifier
from pickledbd.options import parser
from pickledbd.ownership import Ownership
from pickledbd.rights import EVERYTHING
from pickledbd.snapshot import DataFile
from pickledbd.status import Status


class Wired:
    """An engine with its file and its journal, as the command makes it, without sockets."""

    def __init__(self, path, *options):
        self.path = path
        self.client = uuid.uuid4().hex
        self.ids = itertools.count(1)
        self.replies = []
        self.rights = EVERYTHING  # of who sends what is received
        self.progress = []  # what the start told of it
        self.stack = contextlib.ExitStack()
        self.owner = Ownership(path)
        self.stack.callback(self.owner.release)
        asked = parser().parse_args([str(path), *options])
        self.engine, self.tasks = cli._recover(
            asked,
            DataFile(path),
            self.stack,
            owner=self.owner,
            status=Status(location=str(path), request_bytes=2**20, limits=Limits.of(asked)),
            signals=SimpleNamespace(wake=lambda: None),
            notifier=Notifier(),
            counters=Counters(),
            progress=lambda *told: self.progress.append(told),
        )

    def close(self):
        """As after a kill: nothing is saved, nothing tidied up."""
        self.tasks.finish()
        self.stack.close()

    def receive(self, op, args=None, *, peer=b"p", **envelope):
        """Hand in one message; its id."""
        number = next(self.ids)
        request = {"id": number, "client": self.client, "op": op, "args": args or {}} | envelope
        self.engine.receive(peer, [json.dumps(request).encode()], self.rights)
        if self.engine.turn_over:  # as the loop does
            self.replies += self.engine.finish_turn()
        return request["id"]

    def turn(self):
        """End the turn and all that it has begun; the replies, each with its peer."""
        self.replies += self.engine.finish_turn()
        while True:
            self.tasks.finish()
            now = time.monotonic()
            due = self.engine.tick(now)  # what had to wait for a batch is taken up
            self.replies += self.engine.take_replies()
            if not self.tasks and due > now:
                replies, self.replies = self.replies, []
                return [(peer, json.loads(reply)) for peer, reply in replies]

    def send(self, op, args=None, **envelope):
        """One message, a turn of its own; the replies."""
        self.receive(op, args, **envelope)
        return [reply for _, reply in self.turn()]

    def ask(self, op, **args):
        (reply,) = self.send(op, args)
        return reply["result"] if "result" in reply else reply["error"]

    def left(self):
        """The files beside each other, without the lock."""
        return sorted(set(os.listdir(self.path.parent)) - {"my.db.lock"})
