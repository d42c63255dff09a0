"""`python -m pickledbd_client.demo`: processes and threads share one file, and what they did.

Eight workers, two threads in each of four processes, empty one list of jobs: a job is taken by
`pop`, which is atomic, so each is done once whoever is first.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import tempfile
import threading
from collections import Counter
from pathlib import Path

from pickledbd_client.database import PickleDB

JOBS, PROCESSES, THREADS = 2000, 4, 2


def work(location: str) -> None:
    """One process: its threads share one PickleDB and take jobs until none is left."""
    db = PickleDB(location)  # finds the file's owner, or starts it

    def take_jobs() -> None:
        me = f"pid {os.getpid()}, {threading.current_thread().name}"
        for number in range(JOBS):
            job = db.pop(f"job {number}", None)
            if job is not None:
                db.set(f"done {number}", {"by": me, "result": job["n"] ** 2})

    workers = [threading.Thread(target=take_jobs, name=f"thread {n}") for n in range(THREADS)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def main() -> int:
    """Run the demonstration; 0 if every job was done once and is in the file."""
    with tempfile.TemporaryDirectory() as directory:
        location = os.path.join(directory, "demo.db")  # noqa: PTH118 - pickleDB takes a str
        print(f"{PROCESSES} processes of {THREADS} threads share {location}")
        db = PickleDB(location)
        db.set_many({f"job {n}": {"n": n} for n in range(JOBS)})
        print(f"  pid {os.getpid()} put {len(db):,} jobs into it")

        spawn = multiprocessing.get_context("spawn")
        processes = [spawn.Process(target=work, args=(location,)) for _ in range(PROCESSES)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()

        db.save()
        told = db.info()
        db.close()
        # The file is plain JSON: no client is needed to read it.
        content = json.loads(Path(location).read_bytes())
        done = Counter(entry["by"] for entry in content.values())
        for worker, count in sorted(done.items()):
            print(f"  {worker} did {count:4} jobs")
        right = len(content) == JOBS and all(
            content.get(f"done {n}", {}).get("result") == n**2 for n in range(JOBS)
        )
        print(f"  pid {told['pid']}, the daemon that owns the file, saved {told['keys']:,} keys")
        print(f"{sum(done.values()):,} of {JOBS:,} jobs done, each by one: {right}")
        return 0 if right else 1


if __name__ == "__main__":
    sys.exit(main())
