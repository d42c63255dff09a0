"""The layout of the counter table, by which a client knows that a value it holds is current.

SPEC.md, The counter table, is its prose, and holds the argument why such a read is linearizable.
No I/O: the daemon and the client each map the file by themselves.
"""

from __future__ import annotations

COUNTERS_SUFFIX = ".counters"
"""What the table's name has after that of the socket that it belongs to."""

MUTEX_BYTES = 128
"""Room at the beginning for the daemon's mutex.

One byte of it is the lease: 0 as long as the daemon has this table. Which one, the daemon tells.
"""

MAGIC_AT = MUTEX_BYTES
MAGIC = b"pickledbd table1"

ID_AT = MAGIC_AT + len(MAGIC)
ID_BYTES = 16
"""Random bytes that tell this table from every other."""

COUNTER_BYTES = 8
"""A counter is one of so many."""

HEADER_BYTES = 4096
SLOTS = 2**17
"""Counters. Keys that share one only make each other be read anew."""

TABLE_BYTES = HEADER_BYTES + SLOTS * COUNTER_BYTES

FIRST_SLOT = HEADER_BYTES // COUNTER_BYTES
"""Slots are numbered as if counters stood from the beginning of the file on."""
