"""What the comparisons store, and which of it they ask for."""

from __future__ import annotations

import itertools
import random
from typing import Any

SCALAR = 42
FLAT = {"name": "Ann", "age": 31, "city": "Zürich", "active": True, "score": 4.5}
NESTED = {
    "name": "Ann",
    "age": 31,
    "tags": ["admin", "beta"],
    "address": {"street": "Main Street 1", "city": "Zürich"},
}

SKEW = 0.99
"""How much the zipfian choice of YCSB prefers what is popular."""


def key(n: int) -> str:
    """The name of record `n`, as YCSB forms it."""
    return f"user{n:08d}"


def record(n: int, visits: int = 0) -> dict[str, Any]:
    """A small document: 100 to 150 bytes of JSON."""
    return {
        "id": n,
        "name": f"user {n}",
        "mail": f"user{n}@example.org",
        "tags": ["a", "b"],
        "at": {"x": n % 7, "y": 1.5},
        "visits": visits,
    }


def by_popularity(count: int) -> list[str]:
    """All keys, the most popular first; the popular ones lie scattered among the others."""
    names = [key(n) for n in range(count)]
    random.Random(1).shuffle(names)  # noqa: S311 - no secret
    return names


def zipfian(names: list[str], picks: int, seed: int) -> list[str]:
    """`picks` of the `names`, those that stand first far more often."""
    weights = list(itertools.accumulate(1 / rank**SKEW for rank in range(1, len(names) + 1)))
    dice = random.Random(seed)  # noqa: S311 - no secret
    return dice.choices(names, cum_weights=weights, k=picks)
