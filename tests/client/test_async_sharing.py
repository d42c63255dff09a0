"""One AsyncPickleDB for event loops, threads and forks; and the end of a process that has one."""

from __future__ import annotations

import asyncio
import concurrent.futures
import gc
import os
import signal
import subprocess
import sys
import threading

import pytest

from looped import async_client, each_gets_its_own, run, stopped
from pickledbd_client import AsyncPickleDB
from support import PATIENCE, in_fork, wait_until


def test_event_loops_in_threads_share_one_object(daemon):
    db = async_client(daemon, cache_bytes=0)
    together = threading.Barrier(8)

    def work(number):
        together.wait(PATIENCE)
        for turn in range(3):  # each in an event loop of its own, while others end
            run(each_gets_its_own(db, 100, f"{number} {turn} "))

    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        list(threads.map(work, range(8)))
    assert run(db.len()) == 0


def test_one_event_loop_after_the_other(daemon):
    db = async_client(daemon)
    run(db.set("a", 1))
    for _ in range(20):
        assert run(db.get_many("a")) == {"a": 1}
    assert len(db._link._lines) == 1, "those that have ended are given up"

    async def closes():
        await db.ping()
        await db.close()

    run(closes())
    assert not db._link._lines


def test_threads_that_find_the_loops_of_others_ended_do_not_trip_over_each_other(daemon):
    db = async_client(daemon)
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        for _ in range(20):
            together = threading.Barrier(8)

            def work(together=together):
                async def asks():
                    await db.ping()
                    together.wait(PATIENCE)

                try:
                    run(asks())  # 8 event loops that end unclosed
                    together.wait(PATIENCE)
                    return run(db.ping())
                except BaseException:
                    together.abort()  # nobody waits for who has failed
                    raise

            with concurrent.futures.ThreadPoolExecutor(8) as threads:
                assert all(each.result() for each in [threads.submit(work) for _ in range(8)])
    finally:
        sys.setswitchinterval(before)


def test_an_event_loop_that_ends_in_the_midst_of_requests_is_followed_by_the_next(daemon):
    db = async_client(daemon)

    async def gives_up():
        await db.ping()
        os.kill(daemon.pid, signal.SIGSTOP)
        for n in range(100):
            asyncio.ensure_future(db.set(f"{n}", n))  # noqa: RUF006 - to be forgotten is the point
        await asyncio.sleep(0)

    try:
        run(gives_up())
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    run(each_gets_its_own(db, 200, "then "))


def test_it_is_used_on_both_sides_of_a_fork(daemon):
    db = async_client(daemon, cache_bytes=0)

    async def parent():
        await db.set("before", 1)
        asking = asyncio.create_task(each_gets_its_own(db, 500, "parent "))
        await asyncio.sleep(0)  # its requests are about to be sent

        def child():
            signal.alarm(int(PATIENCE))  # a hang ends
            # what a fork inside a coroutine leaves is an event loop that is the parent's
            asyncio._set_running_loop(None)
            run(each_gets_its_own(db, 500, "child "))
            assert in_fork(lambda: run(db.set("grandchild", os.getpid())))

        assert in_fork(child)
        await asking
        await each_gets_its_own(db, 500, "parent again ")
        await db.close()

    run(parent())
    assert run(async_client(daemon).len()) == 2


def test_forks_beside_an_event_loop_that_is_at_it_get_their_own_replies(daemon):
    db = async_client(daemon, cache_bytes=0)
    over = threading.Event()

    async def asks():
        while not over.is_set():
            await each_gets_its_own(db, 50, "thread ")

    with concurrent.futures.ThreadPoolExecutor(1) as threads:
        asking = threads.submit(run, asks())
        for number in range(10):

            def child(number=number):
                signal.alarm(int(PATIENCE))
                run(each_gets_its_own(db, 50, f"fork {number} "))

            assert in_fork(child)
        over.set()
        asking.result(PATIENCE)
    assert run(db.len()) == 0


# Dropped, and the end of a process


def descriptors():
    gc.collect()
    return len(os.listdir("/proc/self/fd"))


async def drops(daemon, number):
    for _ in range(number):
        await async_client(daemon, timeout=1).ping()


def test_what_was_dropped_without_close_is_gone_with_its_event_loop(daemon):
    run(drops(daemon, 50))
    before = descriptors()
    for _ in range(3):
        run(drops(daemon, 50))
    wait_until(lambda: descriptors() <= before + 25, "the connections to be dropped")


def test_what_was_dropped_without_close_is_gone_while_its_event_loop_goes_on(daemon):
    async def work():
        await drops(daemon, 50)
        before = descriptors()
        await drops(daemon, 50)
        for _ in range(40):  # longer than the timeout of the requests
            if descriptors() < before + 25:
                return True
            await asyncio.sleep(0.05)
        return False

    assert run(work())


def ended(script, daemon, **options):
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", script, str(daemon.location)],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
        **options,
    )


OPEN = """
import asyncio, logging, os, signal, sys
from pickledbd_client import AsyncPickleDB
# -X dev also tells how slow a busy machine is; what was never awaited or retrieved is told still
logging.getLogger("asyncio").setLevel(logging.ERROR)
db = AsyncPickleDB(sys.argv[1], timeout=None)
async def use():
    await db.set("a", 1)
    return await asyncio.gather(*(db.get("a") for _ in range(100)))
"""

ENDS = {
    "dropped": "assert asyncio.run(use()) == [1] * 100\ndel db",
    "kept": "asyncio.run(use())",
    "exit": "asyncio.run(use())\nsys.exit(0)",
    "several loops": "asyncio.run(use())\nasyncio.run(use())",
    "never used": "",
    "closed": """
async def closes():
    await use()
    await db.close()
asyncio.run(closes())
""",
    "a loop that is never closed": """
loop = asyncio.new_event_loop()
loop.run_until_complete(use())
import warnings
warnings.simplefilter("ignore")  # of the loop itself, which is this script's fault
""",
    "requests that nobody answers": """
async def leaves():
    await use()
    os.kill(int(sys.stdin.readline()), signal.SIGSTOP)
    tasks = [asyncio.create_task(db.set(str(n), n)) for n in range(100)]
    await asyncio.sleep(0.01)
asyncio.run(leaves())
""",
    "a connection that is being made": """
os.kill(int(sys.stdin.readline()), signal.SIGSTOP)
async def leaves():
    task = asyncio.create_task(use())
    await asyncio.sleep(0.01)
asyncio.run(leaves())
""",
}


@pytest.mark.parametrize("name", ENDS)
def test_nothing_hangs_or_warns_at_the_end_of_a_process(daemon, name):
    try:
        process = ended(OPEN + ENDS[name], daemon, input=f"{daemon.pid}\n")
    finally:
        os.kill(daemon.pid, signal.SIGCONT)
    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


@pytest.mark.parametrize("connected", [True, False])
def test_ctrl_c_ends_a_program_that_waits_for_a_daemon_that_says_nothing(daemon, connected):
    script = f"""
async def waits():
    if {connected}:
        await use()
    print("asking", flush=True)
    sys.stdin.readline()
    asyncio.get_running_loop().call_later(0.05, lambda: print("waiting", flush=True))
    await asyncio.gather(db.set("b", 1), db.get("c"), db.save())
asyncio.run(waits())
"""
    with subprocess.Popen(
        [sys.executable, "-X", "dev", "-c", OPEN + script, str(daemon.location)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as client:
        assert client.stdout.readline() == "asking\n"
        with stopped(daemon):
            client.stdin.write("\n")
            client.stdin.flush()
            assert client.stdout.readline() == "waiting\n"
            client.send_signal(signal.SIGINT)
            _, err = client.communicate(timeout=PATIENCE)
    assert client.returncode == -signal.SIGINT
    assert err.rstrip().endswith("KeyboardInterrupt")
    assert "never retrieved" not in err


def test_it_may_be_made_where_there_is_no_event_loop_and_costs_nothing_until_it_is_used(location):
    files = descriptors()
    made = [AsyncPickleDB(location, autostart=False) for _ in range(50)]
    assert descriptors() <= files  # ZeroMQ may still be closing those of the test before
    del made
