"""Measure a lock-step `get` and `set` beside a bare ZeroMQ round trip.

The bare round trip is a pyzmq DEALER and a ROUTER that sends back what it gets: the same bytes
as the request that it stands beside, over ipc, in the same run, in turn.

    python benchmarks/bench_roundtrip.py [--rounds 30] [--count 1000] [--write]
"""

from __future__ import annotations

import argparse
import functools
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import zmq
from harness import ECHO, interleave, machine, started, table, write_section

from pickledbd_client import PickleDB, calls
from pickledbd_protocol import encode_request

KEY, VALUE = "user:1234", {"name": "Ann", "age": 31, "tags": ["a", "b"], "active": True}


def echo(dealer: zmq.Socket[bytes], body: bytes) -> bytes:
    dealer.send(body)
    return dealer.recv()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--count", type=int, default=1000, help="round trips a round")
    parser.add_argument("--write", action="store_true", help="put the table into README.md")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as directory,
        zmq.Context() as context,
        context.socket(zmq.DEALER) as dealer,
    ):
        folder = Path(directory)
        echo_endpoint = f"ipc://{folder}/echo.sock"
        ours_endpoint = f"ipc://{folder}/ours.sock"
        daemon = [sys.executable, "-m", "pickledbd", f"{folder}/my.db", "--bind", ours_endpoint]
        with started([sys.executable, "-c", ECHO, echo_endpoint]), started(daemon):
            dealer.linger = 0
            dealer.connect(echo_endpoint)
            db = PickleDB(ours_endpoint, cache_bytes=0)  # each get asks the daemon
            db.set(KEY, VALUE)
            contenders: dict[str, Callable[[], object]] = {}
            baselines: dict[str, str] = {}
            for name, operation, call in (
                ("get", functools.partial(db.get, KEY), calls.get(KEY)),
                ("set", functools.partial(db.set, KEY, VALUE), calls.set_(KEY, VALUE)),
            ):
                # as long as the request that PickleDB sends
                body = encode_request(call.op, 12345, "c" * 32, 5000, call.args)
                baseline = f"bare echo of a {name}'s {len(body)} bytes"
                contenders[baseline] = functools.partial(echo, dealer, body)
                contenders[f"{name}()"] = operation
                baselines |= {baseline: baseline, f"{name}()": baseline}
            rows = interleave(contenders, baselines, rounds=options.rounds, count=options.count)
            db.close()
    told = (
        f"{table(rows, 'bare echo')}\n\n{options.rounds} rounds of {options.count:,}; {machine()}."
    )
    print(told)
    if options.write:
        write_section("roundtrip", told)
    return 0


if __name__ == "__main__":
    sys.exit(main())
