"""The counter table: what changes in it, and how its lease ends, however its daemon does."""

from __future__ import annotations

import contextlib
import fcntl
import json
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pickledbd import counters as counters_module
from pickledbd import table
from pickledbd.counters import Counters
from pickledbd.store import Store
from pickledbd.table import Table
from pickledbd_protocol import PROTOCOL_VERSION
from pickledbd_protocol import counters as layout
from support import PATIENCE, Daemon, in_fork, on_a_small_disk, wait_until

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the table")


class Mapped:
    """The table that a daemon told of, read as the specification says."""

    def __init__(self, told):
        self.told = told
        with open(told["path"], "rb") as file:
            self.stat = os.fstat(file.fileno())
            self._map = mmap.mmap(file.fileno(), layout.TABLE_BYTES, prot=mmap.PROT_READ)
        self.id = self._map[layout.ID_AT : layout.ID_AT + layout.ID_BYTES]
        assert self._map[layout.MAGIC_AT : layout.ID_AT] == layout.MAGIC
        assert len(self._map) == os.stat(told["path"]).st_size == layout.TABLE_BYTES

    def _number(self, at, size):
        return int.from_bytes(self._map[at : at + size], sys.byteorder)

    @property
    def lease_holds(self):
        return self._number(self.told["lease_at"], 1) == 0

    def counter(self, slot):
        assert layout.FIRST_SLOT <= slot < layout.FIRST_SLOT + layout.SLOTS
        return self._number(slot * layout.COUNTER_BYTES, layout.COUNTER_BYTES)


class Wire:
    """A bare socket that asks one thing after the other."""

    def __init__(self, dealer):
        self.dealer = dealer
        self.number = 0

    def ask(self, op, **args):
        self.number += 1
        request = {"id": self.number, "client": "c0ffee", "op": op, "args": args}
        self.dealer.send(json.dumps(request).encode())
        return json.loads(self.dealer.recv())["result"]

    def hello(self):
        return self.ask("hello", versions=[PROTOCOL_VERSION])["counters"]

    def slot(self, key):
        result = self.ask("get", key=key)
        return result["slot"], result["count"]


@pytest.fixture
def ask(dealer):
    return Wire(dealer)


def told_by(daemon):
    """What a daemon of a test's own tells of its table."""
    import zmq  # noqa: PLC0415 - only this needs it

    with zmq.Context() as context, context.socket(zmq.DEALER) as dealer:
        dealer.linger = 0
        dealer.rcvtimeo = int(PATIENCE * 1000)
        dealer.connect(daemon.endpoint)
        return Wire(dealer).hello()


# What is told


def test_a_get_tells_the_slot_and_its_counter_and_a_change_changes_it(ask):
    mapped = Mapped(ask.hello())
    assert mapped.id.hex() == mapped.told["id"]
    assert mapped.lease_holds
    seen = set()
    for change in (
        lambda: None,
        lambda: ask.ask("set", key="a", value=1),
        lambda: ask.ask("set", key="a", value=1),
        lambda: ask.ask("remove", key="a"),
        lambda: ask.ask("setdefault", key="a", value=1),
        lambda: ask.ask("pop", key="a"),
        lambda: ask.ask("set_many", items={"a": 1, "b": 2}),
        lambda: ask.ask("remove_many", keys=["a"]),
        lambda: ask.ask("set_many", items={f"k{n}": n for n in range(3000)} | {"a": 1}),
        lambda: ask.ask("set_many", items={f"k{n}": n for n in range(10_000)} | {"a": 1}),
        lambda: ask.ask("popitem"),
        lambda: ask.ask("replace", items={"a": 1}),
        lambda: ask.ask("popitem"),
        lambda: ask.ask("purge"),
    ):
        change()
        slot, count = ask.slot("a")
        assert mapped.counter(slot) == count
        if change() is not None or not seen:
            assert ask.slot("a")[0] == slot
        seen.add((slot, count))
    assert len({slot for slot, _ in seen}) == 1
    # popitem took another key once, and a purge of nothing is one all the same
    assert len(seen) >= 13


def test_other_keys_and_reads_leave_a_counter_alone(ask):
    ask.ask("set", key="a", value=1)
    slot, count = ask.slot("a")
    others = [f"k{n}" for n in range(50)]
    others = [key for key in others if ask.slot(key)[0] != slot]
    assert len(others) > 40
    for key in others:
        ask.ask("set", key=key, value=1)
        ask.ask("remove", key=key)
    for op, args in {
        "get": {"key": "a"},
        "exists": {"key": "a"},
        "get_many": {"keys": ["a"]},
        "len": {},
        "all": {},
        "dump": {},
        "setdefault": {"key": "a", "value": 2},
        "save": {},
        "ping": {},
    }.items():
        ask.ask(op, **args)
    assert ask.slot("a") == (slot, count)


def test_without_a_table_no_slots_are_told(wired):
    assert wired.ask("hello", versions=[PROTOCOL_VERSION])["counters"] is None
    assert wired.ask("get", key="a") == {}
    wired.ask("set", key="a", value=1)
    assert wired.ask("get", key="a") == {"value": 1}


def test_by_tcp_alone_there_is_no_table(location):
    daemon = Daemon(location, "--bind", "tcp://127.0.0.1:*")
    assert told_by(daemon) is None
    daemon.check_and_stop()


# The file


@pytest.mark.parametrize("umask", [0, 0o077, 0o022])
def test_the_file_is_for_user_and_group_and_is_gone_after_a_stop(tmp_path, location, umask):
    before = os.umask(umask)
    try:
        daemon = Daemon(location, "--bind", f"ipc://{tmp_path}/s")
    finally:
        os.umask(before)
    path = tmp_path / f"s{layout.COUNTERS_SUFFIX}"
    assert told_by(daemon)["path"] == str(path)
    assert path.stat().st_mode & 0o7777 == 0o640
    assert list(tmp_path.glob(f"{path.name}*")) == [path]
    daemon.stop()
    assert not list(tmp_path.glob(f"{path.name}*"))


def test_a_file_that_is_another_s_by_now_is_left_there_at_the_stop(tmp_path, location):
    daemon = Daemon(location, "--bind", f"ipc://{tmp_path}/s")
    path = tmp_path / f"s{layout.COUNTERS_SUFFIX}"
    beside = tmp_path / "another"
    beside.write_text("another's")
    beside.replace(path)
    daemon.stop()
    assert path.read_text() == "another's"


def test_what_a_killed_daemon_left_is_replaced(tmp_path, location):
    bind = ("--bind", f"ipc://{tmp_path}/s")
    daemon = Daemon(location, *bind)
    first = Mapped(told_by(daemon))
    daemon.kill()
    assert os.path.samestat(os.stat(first.told["path"]), first.stat)
    assert not first.lease_holds
    daemon = Daemon(location, *bind)
    second = Mapped(told_by(daemon))
    assert second.told["path"] == first.told["path"]
    assert not os.path.samestat(second.stat, first.stat)
    assert second.id != first.id
    assert second.lease_holds
    assert not first.lease_holds
    daemon.check_and_stop()


@pytest.mark.parametrize(
    "left",
    [b"", b"junk", bytes(layout.TABLE_BYTES), b"x" * 2**21],
    ids=["empty", "short", "of its length", "long"],
)
def test_junk_in_its_place_is_replaced(tmp_path, location, left):
    path = tmp_path / f"s{layout.COUNTERS_SUFFIX}"
    path.write_bytes(left)
    daemon = Daemon(location, "--bind", f"ipc://{tmp_path}/s")
    assert Mapped(told_by(daemon)).lease_holds
    daemon.check_and_stop()


def test_a_link_in_its_place_is_replaced_and_what_it_leads_to_is_not_touched(tmp_path, location):
    path = tmp_path / f"s{layout.COUNTERS_SUFFIX}"
    precious = tmp_path / "precious"
    content = bytes(layout.MUTEX_BYTES) + layout.MAGIC + b"x" * 1000
    content = b"y" * layout.MUTEX_BYTES + content[layout.MUTEX_BYTES :]
    precious.write_bytes(content)
    path.symlink_to(precious)
    daemon = Daemon(location, "--bind", f"ipc://{tmp_path}/s")
    assert Mapped(told_by(daemon)).lease_holds
    assert not path.is_symlink()
    assert precious.read_bytes() == content
    daemon.check_and_stop()


def serves_without(daemon):
    """Check that it serves, has no table, and tell what it wrote."""
    try:
        assert told_by(daemon) is None
        with contextlib.closing(daemon.client()) as db:
            db.set("a", 1)
            assert db.get("a") == db.get("a") == 1
            db.set("a", 2)
            assert db.get("a") == 2
    except BaseException:
        daemon.kill()
        raise
    err = daemon.stop()
    assert err.count("no table at") == 1
    return err


def test_a_directory_in_its_place_costs_only_the_table(tmp_path, location):
    path = tmp_path / f"s{layout.COUNTERS_SUFFIX}"
    path.mkdir()
    daemon = Daemon(location, "--bind", f"ipc://{tmp_path}/s")
    assert "Is a directory" in serves_without(daemon)
    assert list(tmp_path.glob(f"{path.name}*")) == [path]


def test_a_full_disk_costs_only_the_table(tmp_path, location):
    disk = tmp_path / "disk"

    def work():
        daemon = Daemon(location, "--bind", f"ipc://{disk}/s")
        assert "No space left" in serves_without(daemon)
        assert os.listdir(disk) == []

    on_a_small_disk(disk, "512k", work)


def test_shared_memory_that_is_full_or_may_not_be_written_costs_only_the_table(location):
    folder = Path("/dev/shm")

    def work():
        assert "No space left" in serves_without(Daemon(location))
        subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        serves_without_a_word_or_elsewhere(location)

    on_a_small_disk(folder, "512k", work)


def serves_without_a_word_or_elsewhere(location):
    daemon = Daemon(location)
    try:
        told = told_by(daemon)
        if told is not None:  # beside the socket
            assert told["path"] == daemon.endpoint.removeprefix("ipc://") + layout.COUNTERS_SUFFIX
            assert Mapped(told).lease_holds
    finally:
        daemon.stop()


# The lease


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGABRT, signal.SIGSEGV]
)
def test_the_lease_ends_with_its_daemon(location, number):
    daemon = Daemon(location)
    mapped = Mapped(told_by(daemon))
    assert mapped.lease_holds
    daemon.process.send_signal(number)
    daemon.end()
    assert not mapped.lease_holds


def test_the_lease_lasts_while_its_daemon_is_halted(location):
    daemon = Daemon(location)
    mapped = Mapped(told_by(daemon))
    os.kill(daemon.pid, signal.SIGSTOP)
    try:
        os.waitid(os.P_PID, daemon.pid, os.WSTOPPED | os.WNOWAIT)
        assert mapped.lease_holds
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert mapped.lease_holds
    daemon.check_and_stop()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_the_lease_has_ended_before_anybody_else_can_have_the_data(location, number):
    """Whoever waits for the lock on the data never finds it free and the lease alive."""
    for _ in range(5):
        daemon = Daemon(location)
        mapped = Mapped(told_by(daemon))
        seen, say = os.pipe()

        with open(f"{location}.lock", "rb") as lock:

            def waits(lock=lock, say=say, mapped=mapped):
                signal.alarm(int(PATIENCE))
                os.write(say, b".")
                fcntl.flock(lock, fcntl.LOCK_EX)
                assert not mapped.lease_holds

            def kills(seen=seen, daemon=daemon):
                assert select.select([seen], [], [], PATIENCE)[0]
                os.kill(daemon.pid, number)  # Popen, in a fork, takes it to have ended

            pid = os.fork()
            if pid == 0:
                try:
                    kills()
                finally:
                    os._exit(0)
            assert in_fork(waits)
            os.waitpid(pid, 0)
        daemon.end()
        os.close(seen)
        os.close(say)


ENDS = """
import contextlib, ctypes, json, os, sys, threading
from pathlib import Path
from pickledbd.counters import Counters

counters = Counters()

def share():
    counters.share(lambda: Path(sys.argv[1]))
    print(json.dumps(counters.told), flush=True)
    sys.stdin.readline()

def main():
    share()
    {end}

main()
"""

WAYS_TO_END = {
    "an exception": "with contextlib.closing(counters): raise RuntimeError('on purpose')",
    "sys.exit": "with contextlib.closing(counters): sys.exit(3)",
    "os._exit": "os._exit(3)",
    "os.abort": "os.abort()",
    "a bad access": "ctypes.string_at(0)",
    "another program": "os.execv('/bin/cat', ['cat'])",
    "no memory left": "os.kill(os.getpid(), 9)",
    "its own end": "counters.close(); sys.stdin.readline()",
    "a new table": "Path(sys.argv[1]).unlink(); counters.keep_up(); sys.stdin.readline()",
}


@pytest.mark.parametrize("end", WAYS_TO_END.values(), ids=WAYS_TO_END)
def test_the_lease_ends_however_its_process_does(tmp_path, end):
    the_lease_ends(tmp_path, ENDS.format(end=end))


def test_the_lease_ends_with_the_thread_that_serves_though_the_process_lives_on(tmp_path):
    in_thread = "thread = threading.Thread(target=share); thread.start(); thread.join()"
    script = ENDS.replace("share()\n    {end}", in_thread + "\n    print(); sys.stdin.readline()")
    the_lease_ends(tmp_path, script)


def test_the_lease_ends_though_nobody_closed_the_table_at_the_interpreter_s_end(tmp_path):
    the_lease_ends(tmp_path, ENDS.format(end="sys.exit(3)"))


FAULTY = """
import os, sys
from pickledbd import cli, loop

turn = loop.Loop._turn

def faulty(self, *args, **options):
    if os.path.exists(sys.argv[1] + ".fault"):
        raise RuntimeError("on purpose")
    return turn(self, *args, **options)

loop.Loop._turn = faulty
sys.exit(cli.main(sys.argv[1:]))
"""


def test_the_lease_ends_with_a_fault_of_the_daemon_s(location):
    daemon = Daemon(location, wait=False)
    daemon.kill()
    daemon.process = subprocess.Popen(
        [sys.executable, "-c", FAULTY, location],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    daemon.wait_ready()
    mapped = Mapped(told_by(daemon))
    assert mapped.lease_holds
    Path(f"{location}.fault").touch()
    with socket.socket(socket.AF_UNIX) as knock:
        with contextlib.suppress(OSError):  # it may have woken up by itself
            knock.connect(daemon.endpoint.removeprefix("ipc://"))
        status, err = daemon.end()
    assert (status, "on purpose" in err) == (1, True)
    assert not mapped.lease_holds
    assert not os.path.exists(mapped.told["path"])


def the_lease_ends(folder, script):
    process = subprocess.Popen(
        [sys.executable, "-c", script, folder / "table"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with process:
        try:
            assert select.select([process.stdout], [], [], PATIENCE)[0]
            mapped = Mapped(json.loads(process.stdout.readline()))
            assert mapped.lease_holds
            process.stdin.write("\n")
            process.stdin.flush()
            wait_until(lambda: not mapped.lease_holds, "the lease to end", 10.0)
        finally:
            process.kill()
            process.stdin.close()
    assert not mapped.lease_holds


# Each change of the store is one of its counter

KEYS = [f"k{n}" for n in range(12)]
keys = st.sampled_from(KEYS)
values = st.binary(min_size=1, max_size=1)
contents = st.dictionaries(keys, values, max_size=12)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("set"), keys, values),
        st.tuples(st.just("remove"), keys),
        st.tuples(st.just("set_many"), contents),
        st.tuples(st.just("clear")),
        st.tuples(st.just("commit")),
        st.tuples(st.just("roll_back"), st.integers(0, 5)),
        st.tuples(st.just("adopt"), contents, st.booleans()),
        st.tuples(st.just("fold")),
    ),
    max_size=30,
)


@pytest.fixture(autouse=True, scope="module")
def _small_chunks():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "CHUNK", 3)
        patch.setattr(counters_module, "MANY", 6)
        yield


def table_of(content):
    made = Table()
    made.extend(list(content), list(content.values()))
    return made


class Stepped:
    """A store, and what may be done to it when."""

    def __init__(self, content):
        self.store = Store(table_of(content), Counters())
        self.store.counters.told = {}  # so that it tells the numbers
        self.folding = None

    def step(self, name, *args):
        store = self.store
        if name in ("set", "remove", "set_many"):
            getattr(store, name)(*args)
        elif name == "clear":
            if not store.folding:
                store.clear()
        elif name == "commit":
            store.commit()
        elif name == "roll_back":
            store.roll_back(min(args[0], store.logged()))
        elif name == "adopt":
            content, clear = args
            if content and not store.folding and not store.logged():
                store.adopt(table_of(content), clear=clear)
                self.folding = store.fold()
        elif self.folding is not None and not store.logged():  # it goes on between the turns
            next(self.folding, None)

    def seen(self):
        """Each key's counter and value."""
        for key in KEYS:
            told = self.store.counters.of(key)
            told = json.loads(b"{%s}" % told)
            yield key, (told["slot"], told["count"]), self.store.get(key)


@given(contents, steps)
def test_whenever_a_value_differs_so_does_its_counter(content, steps):
    """At any two moments, not just before and after a step: so nothing that was kept comes back."""
    stepped = Stepped(content)
    values = {}
    for step in [("commit",), *steps]:
        stepped.step(*step)
        for key, number, value in stepped.seen():
            assert values.setdefault((key, number), value) == value


@given(contents, steps, st.lists(st.tuples(keys, values), min_size=1, max_size=5))
def test_what_is_undone_has_another_counter_than_before_and_meanwhile(content, steps, undone):
    stepped = Stepped(content)
    store = stepped.store
    for step in steps:
        stepped.step(*step)
    store.commit()
    before = {key: number for key, number, _ in stepped.seen()}
    for key, value in undone:
        store.set(key, value)
    meanwhile = {key: number for key, number, _ in stepped.seen()}
    store.roll_back()
    after = {key: number for key, number, _ in stepped.seen()}
    for key in dict(undone):
        assert len({before[key], meanwhile[key], after[key]}) == 3


@given(st.integers(0, 20))
def test_of_many_changes_none_is_forgotten(count):
    """Some renew each key's counter, more of them every one."""
    store = Store(counters=Counters())
    store.counters.told = {}
    names = [f"key {n}" for n in range(count)]
    before = [store.counters.of(key) for key in names]
    store.counters.changed_many(iter(names), count)
    assert all(a != b for a, b in zip(before, map(store.counters.of, names), strict=True))


def test_a_new_table_has_no_number_of_the_one_before(tmp_path):
    """An answer that waited while the table was made anew must not fit the new one."""
    counters = Counters()
    counters.share(lambda: tmp_path / "table")
    before = [Mapped(counters.told).counter(slot) for slot in SOME_SLOTS]
    counters.changed("a")
    (tmp_path / "table").unlink()
    counters.keep_up()
    after = [Mapped(counters.told).counter(slot) for slot in SOME_SLOTS]
    assert min(after) > max(before) + 1
    counters.close()


SOME_SLOTS = (layout.FIRST_SLOT, layout.FIRST_SLOT + 7, layout.FIRST_SLOT + layout.SLOTS - 1)


@pytest.mark.parametrize("count", [counters_module.MANY - 1, counters_module.MANY])
def test_a_batch_that_went_in_is_kept_alive_by_nobody(count):
    store = Store()
    for _ in range(2):
        batch = Table()
        batch.extend([f"k{n}" for n in range(count)], [b"1"] * count)
        store.adopt(batch, clear=False)
        for _ in store.fold():
            pass
        assert not batch.viewed
        for _ in store.free():
            pass
    assert not store.garbage
