"""A process that writes without pause and notes what it was answered; run as a script.

`writers.py NUMBER COUNT TARGET HISTORY`: the process NUMBER of COUNT that write to TARGET. Each
operation becomes a line of HISTORY, a JSON array: key, kind, value, result, start, end (both
time.monotonic(), which is one clock for all processes). It says "ready" once it is connected, and
goes on until its standard input is closed.

What is written, so that nothing can be lost, halved or done twice unnoticed:

- `r:N`, a few keys that all processes set, read, remove and pop all the time;
- `t:P:N`, tokens that process P sets once, and two other processes try to take; `made:P`, how
  many there were so far;
- `u:N`, keys that all processes claim by setdefault;
- `pair:N:x` and `:y`, set together and read together; half of it would be `["half", x, y]`;
- `bulk:N:...`, thousands of keys set together, sent in parts, of which three are read together.

`popitem` takes what happens to be last: a register, a token, a claim. Pairs and bulks are there
from the start (`initial`), so that it never reaches them.
"""

from __future__ import annotations

import json
import random
import select
import sys
import time
from contextlib import closing

from pickledbd_client import PickleDB

TIMEOUT = 60.0
REGISTERS, PAIRS, BULKS = 6, 3, 2
BULK_KEYS = 4000  # about 110 KB, so two parts
LOOKED_AT = (0, BULK_KEYS // 2, BULK_KEYS - 1)
START = "start"
"""The value of each pair and bulk when all begins."""


def initial():
    """What is there before the first process comes."""
    content = {}
    for n in range(PAIRS):
        content |= _pair(n, START)
    for n in range(BULKS):
        content |= _bulk(n, START)
    return content | {f"floor:{n}": "x" * 100 for n in range(10_000)}


def history_key(key):
    """The key under which what was done to `key` is noted: that of its group, or itself."""
    kind, _, rest = key.partition(":")
    return f"{kind}:{rest.split(':')[0]}" if kind in ("pair", "bulk") else key


def _pair(n, value):
    return {f"pair:{n}:x": value, f"pair:{n}:y": value}


def _bulk(n, value):
    return {f"bulk:{n}:{i}": value for i in range(BULK_KEYS)}


def seen_together(values):
    """The value of a group whose keys have `values`; no value was ever set that tells otherwise."""
    values = list(values)
    return values[0] if len(set(values)) == 1 else ["half", *values]


class Writer:
    def __init__(self, number, count, target, history):
        self.db = PickleDB(target, timeout=TIMEOUT, autostart=False)
        self.number = number
        self.count = count
        self.history = history
        self.random = random.Random(number)
        self.unique = 0
        self.tokens = self.claims = 0
        # How far it is with the tokens of the two processes before it
        self.taken = {(number - distance) % count: 0 for distance in (1, 2)}
        self.actions = {
            self.use_register: 40,
            self.set_token: 8,
            self.take_token: 16,
            self.claim: 6,
            self.set_pair: 10,
            self.read_pair: 10,
            self.pop_item: 2,
            self.set_bulk: 0.3,
            self.read_bulk: 3,
        }
        if number == 0:
            self.actions[self.save] = 0.5

    def run(self):
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        while not select.select([sys.stdin], [], [], 0)[0]:
            [action] = self.random.choices(list(self.actions), self.actions.values())
            action()

    def note(self, key, kind, value, ask):
        """Do it, and note when, and what was answered. An error is noted with what it says."""
        start = time.monotonic()
        try:
            result = ask()
        except Exception as error:
            self.write("error", kind, f"{key}: {error!r}", None, (start, time.monotonic()))
            raise
        end = time.monotonic()
        if kind == "popitem":
            (key, result), kind = result, "pop"
        self.write(key, kind, value, result, (start, end))
        return result

    def write(self, key, kind, value, result, times):
        json.dump([key, kind, value, result, *times], self.history)
        self.history.write("\n")

    def new_value(self):
        self.unique += 1
        return f"{self.number}.{self.unique}"

    def use_register(self):
        key = f"r:{self.random.randrange(REGISTERS)}"
        kind = self.random.choice(("set", "get", "get", "remove", "pop", "setdefault"))
        if kind == "set":
            value = self.new_value()
            self.note(key, kind, value, lambda: self.db.set(key, value))
        elif kind == "setdefault":
            value = self.new_value()
            self.note(key, kind, value, lambda: self.db.setdefault(key, value))
        elif kind == "pop":
            self.note(key, kind, None, lambda: self.db.pop(key, None))
        elif kind == "remove":
            self.note(key, kind, None, lambda: self.db.remove(key))
        else:
            self.note(key, kind, None, lambda: self.db.get(key))

    def set_token(self):
        key, value = f"t:{self.number}:{self.tokens}", self.new_value()
        self.note(key, "set", value, lambda: self.db.set(key, value))
        self.tokens += 1
        made = f"made:{self.number}"
        self.note(made, "set", self.tokens, lambda: self.db.set(made, self.tokens))

    def take_token(self):
        of = self.random.choice(list(self.taken))
        key, made = f"t:{of}:{self.taken[of]}", f"made:{of}"
        if self.note(key, "pop", None, lambda: self.db.pop(key, None)) is not None:
            self.taken[of] += 1
        elif (self.note(made, "get", None, lambda: self.db.get(made)) or 0) > self.taken[of]:
            self.taken[of] += 1  # another has it

    def claim(self):
        key, value = f"u:{self.claims}", self.new_value()
        self.claims += 1
        self.note(key, "setdefault", value, lambda: self.db.setdefault(key, value))

    def set_pair(self):
        n, value = self.random.randrange(PAIRS), self.new_value()
        self.note(f"pair:{n}", "set", value, lambda: self.db.update(_pair(n, value)) or True)

    def read_pair(self):
        n = self.random.randrange(PAIRS)
        keys = list(_pair(n, None))
        self.note(f"pair:{n}", "get", None, lambda: seen_together(self.db.get_many(keys).values()))

    def set_bulk(self):
        n, value = self.random.randrange(BULKS), self.new_value()
        self.note(f"bulk:{n}", "set", value, lambda: self.db.set_many(_bulk(n, value)))

    def read_bulk(self):
        n = self.random.randrange(BULKS)
        keys = [f"bulk:{n}:{i}" for i in LOOKED_AT]
        self.note(f"bulk:{n}", "get", None, lambda: seen_together(self.db.get_many(keys).values()))

    def pop_item(self):
        self.note("popitem", "popitem", None, self.db.popitem)

    def save(self):
        self.note("save", "save", None, self.db.save)


def main():
    number, count, target, history = sys.argv[1:]
    with open(history, "w") as file:
        writer = Writer(int(number), int(count), target, file)
        with closing(writer.db):
            writer.run()


if __name__ == "__main__":
    main()
