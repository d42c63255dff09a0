"""A plain dict that answers as the database has to: what the model tests compare with.

Time is known to it as what the asking process saw: a command was applied at some moment between
`began` and `ended`, so a deadline is known as a range.
"""

from __future__ import annotations

import copy
import fnmatch
import itertools
import math
from dataclasses import dataclass

from pickledbd_client import Conflict, InvalidValue, LockLost

FOREVER = (math.inf, math.inf)

LATE = 0.01
"""How long after its deadline a key may be there at most, in seconds, by whose clock ever."""

ROUNDING = 0.002
"""Times on the wire are whole milliseconds."""


@dataclass(frozen=True)
class Between:
    """Some number of a range."""

    low: float
    high: float


class AnyVersion:
    """Some version of a value that is there."""


def equal(real, expected):
    """Whether it is the same in value, type and order, or what the special objects stand for."""
    if isinstance(expected, Between):
        return type(real) is float and expected.low <= real <= expected.high
    if isinstance(expected, AnyVersion):
        return type(real) is str
    if isinstance(expected, dict):
        return isinstance(real, dict) and equal(list(real.items()), list(expected.items()))
    if isinstance(expected, list | tuple):
        return (
            isinstance(real, list | tuple)
            and len(real) == len(expected)
            and all(map(equal, real, expected))
        )
    return type(real) is type(expected) and real == expected


class Model:
    """The methods of PickleDB. `entries` has of each key its value and when that expires."""

    def __init__(self):
        self.entries = {}
        self.began = self.ended = 0.0
        self.versions = {}
        """Of the texts of values that somebody asked about, the versions."""
        self.tokens = set()
        """Of the locks that are held."""

    def possible(self, began, ended):
        """What it may be at the moment between these two at which a command is applied.

        What was set to expire by the same command does so at the same moment.
        """
        mine = copy.copy(self)
        mine.began, mine.ended = began, ended
        mine.entries = {k: e for k, e in self.entries.items() if e[1][1] + LATE > began}
        unsure = sorted({time for _, time in mine.entries.values() if time[0] <= ended})
        for gone in itertools.chain.from_iterable(
            itertools.combinations(unsure, n) for n in range(len(unsure) + 1)
        ):
            one = copy.copy(mine)
            one.entries = {k: e for k, e in mine.entries.items() if e[1] not in gone}
            yield one

    def times(self):
        """The ranges in which something expires."""
        return {time for _, time in self.entries.values() if time != FOREVER}

    def _until(self, ttl):
        if ttl is None:
            return FOREVER
        return (self.began + ttl, self.ended + ttl + ROUNDING)

    def _demand(self, token):
        if token is not None and token not in self.tokens:
            raise LockLost

    def _put(self, key, value, until=FOREVER):
        self.entries[str(key)] = (value, until)

    # The commands

    def set(self, key, value, *, ttl=None, token=None):
        self._demand(token)
        self._put(key, value, self._until(ttl))
        return True

    def get(self, key, default=None):
        return self.entries.get(str(key), (default, FOREVER))[0]

    def getitem(self, key):
        return self.entries[str(key)][0]

    def contains(self, key):
        return str(key) in self.entries

    def delitem(self, key):
        del self.entries[str(key)]

    def remove(self, key, *, token=None):
        self._demand(token)
        return self.entries.pop(str(key), None) is not None

    def pop(self, key, *default, token=None):
        self._demand(token)
        if default and str(key) not in self.entries:
            return default[0]
        return self.entries.pop(str(key))[0]

    def popitem(self):
        key, (value, _) = self.entries.popitem()
        return key, value

    def setdefault(self, key, default=None, *, token=None):
        self._demand(token)
        return self.entries.setdefault(str(key), (default, FOREVER))[0]

    def set_many(self, items, *, ttl=None, token=None):
        self._demand(token)
        for key, value in items.items():
            self._put(key, value, self._until(ttl))
        return True

    def update(self, items):
        self.set_many(items)

    def get_many(self, keys):
        return {str(key): self.get(key) for key in keys if self.contains(key)}

    def remove_many(self, keys, *, token=None):
        self._demand(token)
        return sum(self.remove(key) for key in keys)

    def incr(self, key, by=1, default=0, *, token=None):
        self._demand(token)
        before = self.get(key, default)
        if type(before) not in (int, float):
            raise InvalidValue
        after = before + by
        if not (math.isfinite(after) if type(after) is float else -(2**63) <= after < 2**64):
            raise InvalidValue
        self._put(key, after, self.entries.get(str(key), (0, FOREVER))[1])
        return after

    def get_versioned(self, key):
        if not self.contains(key):
            return None, 0
        return self.get(key), AnyVersion()

    def _is_of(self, key, version):
        if not self.contains(key):
            return version == 0
        return version == self.versions.get(text(self.get(key)), AnyVersion)

    def cas(self, key, version, value, *, ttl=None, token=None):
        self._demand(token)
        if not self._is_of(key, version):
            return False
        return self.set(key, value, ttl=ttl)

    def modify(self, key, fn, default=None):
        until = self.entries.get(str(key), (0, FOREVER))[1]
        changed = fn(self.get(key, default))
        self._put(key, changed, until)
        return changed

    def ttl(self, key):
        low, high = self.entries.get(str(key), (0, FOREVER))[1]
        if low == math.inf:
            return None
        return Between(low - self.ended - ROUNDING, high - self.began + ROUNDING)

    def expire(self, key, seconds, *, token=None):
        self._demand(token)
        if self.contains(key):
            self._put(key, self.get(key), self._until(seconds))
        return self.contains(key)

    def persist(self, key, *, token=None):
        self._demand(token)
        expires = self.entries.get(str(key), (0, FOREVER))[1] != FOREVER
        if expires:
            self._put(key, self.get(key))
        return expires

    def some(self, prefix="", glob=None):
        """Keys to values, of those keys."""
        return {
            key: value
            for key, (value, _) in self.entries.items()
            if key.startswith(prefix) and (glob is None or fnmatch.fnmatchcase(key, glob))
        }

    def all(self, prefix="", glob=None):
        return list(self.some(prefix, glob))

    keys = all

    def items(self, prefix="", glob=None):
        return list(self.some(prefix, glob).items())

    def values(self, prefix="", glob=None):
        return list(self.some(prefix, glob).values())

    def dump(self):
        return self.some()

    def len(self):
        return len(self.entries)

    def purge(self):
        self.entries.clear()
        return True

    def clear(self):
        self.entries.clear()

    def replace(self, content):
        self.entries = {}
        return self.set_many(content)

    def if_version(self, key, version):
        if not self._is_of(key, version):
            raise Conflict
        return True

    def batch(self, steps, token=None):
        """`steps`: name, arguments and keywords of each. All or nothing."""
        self._demand(token)
        before = dict(self.entries)
        try:
            return [getattr(self, name)(*args, **keywords) for name, args, keywords in steps]
        except Exception:
            self.entries = before
            raise

    def ping(self):
        return True


def text(value):
    """What tells values apart as their JSON does: 1 is not 1.0, nor True."""
    return repr(value)
