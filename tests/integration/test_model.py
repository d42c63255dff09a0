"""Every command, by clients of each kind in turn, beside a plain dict that does the same.

Keys expire meanwhile, the daemon is killed and stopped, and what it saves is read as plain JSON.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import math
import time

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from looped import async_client
from modelled import LATE, Model, equal, text
from pickledbd_client import InvalidValue, PickleDBError, RequestTimeout
from support import Daemon

MARGIN = 0.03
"""So long before a deadline nothing is asked any more: it would seldom be known who was first."""

WHO = st.sampled_from(["cached", "plain", "async"])
THREADED = st.sampled_from(["cached", "plain"])
KEYS = st.sampled_from(["a", "a:1", "b", "", "é*", 1])
NUMBERS = st.sampled_from([1, 0, -1, 5, 0.5, -2.25, 2**63, -(2**63), 2**64 - 1, 1e308])
VALUES = NUMBERS | st.sampled_from(
    [
        "s",
        "",
        "\0\n\u2028é",
        None,
        True,
        False,
        [],
        {},
        [1, [2.0, None]],
        {"k": {"": "v"}},
        b"\0\xff",
    ]
)
TTLS = st.sampled_from([None, 0.08, 0.2, 0.5, 1000])
SOME = st.fixed_dictionaries(
    {},
    optional={
        "prefix": st.sampled_from(["", "a", "a:", "é", "z"]),
        "glob": st.sampled_from(["*", "a*", "?", "[!a]*", "*:[1-9]", "é[*]", "a:?", ""]),
    },
)
ITEMS = st.dictionaries(KEYS.map(str), VALUES, max_size=4)


def expiring(ttl):
    return {} if ttl is None else {"ttl": ttl}


WHICH = st.sampled_from(["its", "its", "another's", "none"])
STEPS = st.lists(
    st.one_of(
        st.builds(lambda k, v, t: ("set", (k, v), expiring(t)), KEYS, VALUES, TTLS),
        st.builds(lambda k: ("remove", (k,), {}), KEYS),
        st.builds(lambda i, t: ("set_many", (i,), expiring(t)), ITEMS, TTLS),
        st.builds(lambda k, n: ("incr", (k, n), {}), KEYS, NUMBERS),
        st.builds(lambda k, t: ("expire", (k, t or 0.2), {}), KEYS, TTLS),
        st.builds(lambda k: ("persist", (k,), {}), KEYS),
        st.builds(lambda k: ("remove_many", (k,), {}), st.lists(KEYS, max_size=3)),
        st.just(("purge", (), {})),
    ),
    max_size=5,
)


class Sync:
    """A PickleDB, whose operators have names here."""

    def __init__(self, db):
        self.db = db

    def __getattr__(self, name):
        return getattr(self.db, name)

    def contains(self, key):
        return key in self.db

    def getitem(self, key):
        return self.db[key]

    def delitem(self, key):
        del self.db[key]

    def len(self):
        return len(self.db)

    def all(self, *args, **keywords):
        return self.db.all(*args, **keywords) if keywords else list(self.db)

    def keys(self, **some):
        return list(self.db.keys(**some))

    def items(self, **some):
        return list(self.db.items(**some))

    def values(self, **some):
        return list(self.db.values(**some))

    def dump(self):
        return self.db.db

    def replace(self, content):
        self.db.db = content
        return True

    def batch(self, steps, token=None):
        with self.db.batch(token=token) as batch:
            for name, args, keywords in steps:
                getattr(batch, name)(*args, **keywords)
        return batch.results

    def locked(self, name, work):
        with self.db.lock(name, timeout=0) as held:
            return held.token, getattr(self.db, work[0])(*work[1], token=held.token)

    def close(self):
        self.db.close()


class Async:
    """An AsyncPickleDB, each call of which is awaited."""

    def __init__(self, db):
        self.db = db
        self.runner = asyncio.Runner()

    def __getattr__(self, name):
        return lambda *args, **keywords: self.runner.run(getattr(self.db, name)(*args, **keywords))

    def contains(self, key):
        return self.runner.run(self.db.exists(key))

    def getitem(self, key):
        async def get():
            return await self.db[key]

        return self.runner.run(get())

    def delitem(self, key):
        if not self.remove(key):
            raise KeyError(key)

    def all(self, **some):
        return self.runner.run(self.db.all(**some) if some else self._listed(self.db))

    async def _listed(self, them):
        return [one async for one in them]

    def keys(self, **some):
        return self.runner.run(self._listed(self.db.keys(**some)))

    def items(self, **some):
        return self.runner.run(self._listed(self.db.items(**some)))

    def values(self, **some):
        return self.runner.run(self._listed(self.db.values(**some)))

    def dump(self):
        async def dump():
            return await self.db.db

        return self.runner.run(dump())

    def batch(self, steps, token=None):
        async def carry_out():
            async with self.db.batch(token=token) as batch:
                for name, args, keywords in steps:
                    getattr(batch, name)(*args, **keywords)
            return batch.results

        return self.runner.run(carry_out())

    def locked(self, name, work):
        async def carry_out():
            async with self.db.lock(name, timeout=0) as held:
                return held.token, await getattr(self.db, work[0])(*work[1], token=held.token)

        return self.runner.run(carry_out())

    def close(self):
        self.runner.run(self.db.close())
        self.runner.close()


class World:
    """What there is for all examples of a test: the daemon, or the one after it, and clients."""

    def __init__(self, location):
        self.location = location
        self.daemon = Daemon(location)
        self.clients = {
            "cached": Sync(self.daemon.client()),
            "plain": Sync(self.daemon.client(cache_bytes=0)),
            "async": Async(async_client(self.daemon)),
        }
        self.newest_token = 0
        self.restarts = self.expired = 0

    def close(self):
        for client in self.clients.values():
            client.close()

    def restart(self, end):
        end(self.daemon)
        self.daemon = Daemon(self.location)
        self.restarts += 1

    def in_the_file(self):
        """The items of the data file, as any program reads them."""
        return list(json.loads(self.location.read_bytes() or b"{}").items())


def plain(value):
    """A value as it stands in the file."""
    if isinstance(value, bytes):
        return {"$binary": {"base64": base64.b64encode(value).decode(), "subType": "00"}}
    return value


def outcome(work):
    """What it returned or which error it raised."""
    try:
        return work(), None
    except (KeyError, PickleDBError) as error:
        return None, type(error)


class Commands(RuleBasedStateMachine):
    restarts_max = 1

    def __init__(self, world):
        super().__init__()
        self.world = world
        self.model = Model()
        self.turn = 0
        self.restarts = 0
        self.old_tokens = [1]
        self.held = {}  # of the name of each lock that is held by somebody: who, token, how often

    # How it is compared

    def settle(self):
        """Wait until nothing is about to expire."""
        while True:
            now = time.monotonic()
            near = [high for low, high in self.model.times() if low - MARGIN <= now <= high + LATE]
            if not near:
                return
            time.sleep(max(near) + LATE + 0.001 - now)

    def compare(self, ask, apply, what):
        """Ask, and have the model do the same; the answer."""
        self.settle()
        began = time.monotonic()
        answer = outcome(ask)
        ended = time.monotonic()
        tried = []
        for model in self.model.possible(began, ended):
            expected = outcome(lambda model=model: apply(model))
            if answer[1] is expected[1] and equal(answer[0], expected[0]):
                self.world.expired += len(self.model.entries.keys() - model.entries.keys())
                self.model = model
                return answer[0]
            tried.append(expected)
        raise AssertionError(f"{what}: {answer} is none of {tried}")

    def do(self, who, name, *args, **keywords):
        return self.compare(
            lambda: getattr(self.world.clients[who], name)(*args, **keywords),
            lambda model: getattr(model, name)(*args, **keywords),
            f"{who}.{name}{args}{keywords}",
        )

    @initialize(items=ITEMS)
    def begin(self, items):
        self.do("plain", "replace", items)

    def teardown(self):
        for name, (who, _, times) in self.held.items():
            for _ in range(times):
                self.world.clients[who].lock(name).release()

    @invariant()
    def all_is_the_same(self):
        self.turn += 1
        who = ["cached", "plain", "async"][self.turn % 3]
        self.do(who, "items")
        self.compare(
            lambda: self.world.clients[who].info()["keys"], Model.len, f"{who}.info()['keys']"
        )
        for key in list(self.model.entries):
            self.do(who, "ttl", key)

    # Single keys

    @rule(who=WHO, key=KEYS, value=VALUES, ttl=TTLS)
    def set(self, who, key, value, ttl):
        self.do(who, "set", key, value, ttl=ttl)

    @rule(
        who=WHO, key=KEYS, name=st.sampled_from(["get", "contains", "getitem", "remove", "delitem"])
    )
    def look_or_remove(self, who, key, name):
        self.do(who, name, key)

    @rule(key=KEYS)
    def all_of_them_look(self, key):
        for who in self.world.clients:
            self.do(who, "get", key, "default")
            self.do(who, "contains", key)

    @rule(who=WHO, key=KEYS, default=st.lists(VALUES, max_size=1))
    def pop(self, who, key, default):
        self.do(who, "pop", key, *default)

    @rule(who=WHO)
    def popitem(self, who):
        self.do(who, "popitem")

    @rule(who=WHO, key=KEYS, value=VALUES)
    def setdefault(self, who, key, value):
        self.do(who, "setdefault", key, value)

    # Together

    @rule(who=WHO, key=KEYS, by=NUMBERS, default=NUMBERS)
    def incr(self, who, key, by, default):
        self.do(who, "incr", key, by, default)

    def version(self, who, key):
        value, version = self.do(who, "get_versioned", key)
        if version:
            assert self.model.versions.setdefault(text(value), version) == version
            assert list(self.model.versions.values()).count(version) == 1
        return version

    @rule(who=WHO, key=KEYS)
    def get_versioned(self, who, key):
        self.version(who, key)

    def some_version(self, who, key, which):
        """The key's, or another."""
        its = self.version(who, key)
        others = [version for version in self.model.versions.values() if version != its]
        return {"its": its, "another's": others[-1] if others else "no version"}.get(which, 0)

    @rule(who=WHO, key=KEYS, value=VALUES, ttl=TTLS, which=WHICH)
    def cas(self, who, key, value, ttl, which):
        self.do(who, "cas", key, self.some_version(who, key, which), value, ttl=ttl)

    @rule(who=WHO, key=KEYS, default=VALUES)
    def modify(self, who, key, default):
        self.do(who, "modify", key, lambda value: [value] if type(value) is int else 7, default)

    # How long a key lives

    @rule(who=WHO, key=KEYS)
    def ttl(self, who, key):
        self.do(who, "ttl", key)

    @rule(who=WHO, key=KEYS, ttl=TTLS.filter(bool))
    def expire(self, who, key, ttl):
        self.do(who, "expire", key, ttl)

    @rule(who=WHO, key=KEYS)
    def persist(self, who, key):
        self.do(who, "persist", key)

    @rule()
    def some_expire(self):
        first = min((high for _, high in self.model.times()), default=math.inf)
        if first < time.monotonic() + 1:
            time.sleep(max(0, first + LATE + 0.001 - time.monotonic()))

    # Many

    @rule(who=WHO, items=ITEMS, ttl=TTLS)
    def set_many(self, who, items, ttl):
        self.do(who, "set_many", items, ttl=ttl)

    @rule(who=WHO, items=ITEMS, ttl=TTLS)
    def set_many_in_parts(self, who, items, ttl):
        """So large that it is not applied within one turn."""
        self.do(who, "set_many", items | {f"a:large{n}": "x" * 2000 for n in range(70)}, ttl=ttl)
        self.do(who, "remove_many", [f"a:large{n}" for n in range(2, 70)])

    @rule(who=WHO, items=ITEMS)
    def update(self, who, items):
        self.do(who, "update", items)

    @rule(
        who=WHO, keys=st.lists(KEYS, max_size=4), name=st.sampled_from(["get_many", "remove_many"])
    )
    def look_at_or_remove_many(self, who, keys, name):
        self.do(who, name, keys)

    @rule(who=WHO, items=ITEMS)
    def replace(self, who, items):
        self.do(who, "replace", items)

    @rule(who=WHO, name=st.sampled_from(["purge", "clear"]))
    def purge(self, who, name):
        self.do(who, name)

    @rule(who=WHO, steps=STEPS, key=KEYS, which=st.none() | WHICH, at=st.integers(0, 5))
    def batch(self, who, steps, key, which, at):
        if which is not None:
            condition = ("if_version", (key, self.some_version(who, key, which)), {})
            steps = [*steps[:at], condition, *steps[at:]]
        self.do(who, "batch", steps)

    # Everything

    @rule(who=WHO, some=SOME, name=st.sampled_from(["all", "keys", "items", "values"]))
    def scan(self, who, some, name):
        self.do(who, name, **some)

    @rule(who=WHO, name=st.sampled_from(["len", "dump", "ping"]))
    def tell(self, who, name):
        self.do(who, name)

    # Locks

    @rule(who=THREADED, name=st.sampled_from(["one", "other"]))
    def lock(self, who, name):
        lock = self.world.clients[who].lock(name, timeout=0)
        holder, token, times = self.held.get(name, (who, None, 0))
        if holder != who:
            with pytest.raises(RequestTimeout):
                lock.acquire()
            return
        granted = lock.acquire().token
        if times:
            assert granted == token
        else:
            self.note_token(granted)
        self.model.tokens.add(granted)
        self.held[name] = (who, granted, times + 1)

    def note_token(self, token):
        assert token > self.world.newest_token
        self.world.newest_token = token

    @precondition(lambda self: self.held)
    @rule(which=st.integers(0, 1))
    def unlock(self, which):
        name = sorted(self.held)[which % len(self.held)]
        who, token, times = self.held.pop(name)
        self.world.clients[who].lock(name).release()
        if times > 1:
            self.held[name] = (who, token, times - 1)
        else:
            self.model.tokens.remove(token)
            self.old_tokens.append(token)

    @rule(
        who=WHO,
        key=KEYS,
        value=VALUES,
        write=st.sampled_from(
            [
                lambda key, value: ("set", key, value),
                lambda key, value: ("setdefault", key, value),
                lambda key, _: ("remove", key),
                lambda key, _: ("pop", key, None),
                lambda key, _: ("incr", key, 1, 0),
                lambda key, value: ("cas", key, 0, value),
                lambda key, _: ("expire", key, 1000),
                lambda key, _: ("persist", key),
                lambda key, value: ("set_many", {str(key): value}),
                lambda key, _: ("remove_many", [key]),
                lambda key, value: ("batch", [("set", (key, value), {}), ("remove", (key,), {})]),
            ]
        ),
        which=st.integers(0, 3),
    )
    def with_token(self, who, key, value, write, which):
        tokens = [*self.model.tokens, *self.old_tokens[-2:]]
        name, *args = write(key, value)
        self.do(who, name, *args, token=tokens[which % len(tokens)])

    @rule(who=WHO, name=st.sampled_from(["third", "one"]), key=KEYS, value=VALUES)
    def within_a_lock(self, who, name, key, value):
        """Taken, used and released at once; by who holds it already, for one more time."""
        holder, token, _ = self.held.get(name, (None, None, 0))
        work = ("set", (key, value))

        def apply(model):
            if holder not in (None, who):
                raise RequestTimeout
            return token or self.world.clients[who].token, model.set(key, value)

        def ask():
            client = self.world.clients[who]
            granted, result = client.locked(name, work)
            client.token = granted
            return granted, result

        done = self.compare(ask, apply, f"{who}.locked({name}, {work})")
        if done is not None and token is None:
            self.note_token(done[0])
            self.old_tokens.append(done[0])

    # What is refused changes nothing

    @rule(
        who=WHO,
        wrong=st.sampled_from(
            [
                ("set", "a", math.nan),
                ("set", "a", 2**64),
                ("set_many", {"a": 1, "b": {1, 2}}),
                ("setdefault", "new", math.inf),
                ("incr", "a", True),
                ("incr", "a", 2**64),
                ("expire", "a", 0),
                ("cas", "a", 1, "value"),
                ("batch", [("purge", (), {}), ("set", ("a", math.nan), {})]),
                ("batch", [("purge", (), {}), ("set", ("n", []), {}), ("incr", ("n",), {})]),
            ]
        ),
    )
    def refused(self, who, wrong):
        name, *args = wrong

        def refuse(_model):
            raise InvalidValue

        self.compare(lambda: getattr(self.world.clients[who], name)(*args), refuse, f"{wrong}")

    # The file, and other daemons

    def _told_in_the_file(self, model):
        return [(key, plain(value)) for key, value in model.items()]

    @rule(who=WHO)
    def save(self, who):
        def ask():
            assert self.world.clients[who].save() is True
            return self.world.in_the_file()

        self.compare(ask, self._told_in_the_file, "the file after a save")

    @precondition(lambda self: self.restarts < self.restarts_max)
    @rule()
    def kill(self):
        self.restarts += 1
        self.world.restart(Daemon.kill)

    @precondition(lambda self: self.restarts < self.restarts_max)
    @rule()
    def stop(self):
        self.restarts += 1

        def ask():
            self.world.daemon.stop()
            return self.world.in_the_file()

        self.compare(ask, self._told_in_the_file, "the file after a stop")
        self.world.restart(lambda _daemon: None)


def compare_all(location, examples, steps):
    world = World(location)
    try:
        with contextlib.closing(world):
            run_state_machine_as_test(
                lambda: Commands(world),
                settings=settings(
                    max_examples=examples,
                    stateful_step_count=steps,
                    suppress_health_check=list(HealthCheck),
                    database=None,
                ),
            )
        world.daemon.check_and_stop()
    finally:
        print(f"{world.restarts} restarts, {world.expired} keys expired")  # noqa: T201
    return world


def test_every_command_does_what_a_dict_does(location):
    compare_all(location, 12, 50)


@pytest.mark.long
def test_every_command_does_what_a_dict_does_for_long(location):
    world = compare_all(location, 400, 80)
    assert world.restarts > 20
    assert world.expired > 100
