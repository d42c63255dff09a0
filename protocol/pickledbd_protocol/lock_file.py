"""The lock file's name and content. SPEC.md, The lock file, is its prose. No I/O."""

from __future__ import annotations

from typing import Any

import orjson

_START = b'{"pid":'  # how each begins

LOCK_SUFFIX = ".lock"
"""What its name has after that of what is owned: a data file, or a socket."""

BEING_STARTED = b'{"pid":null,"state":"starting"}'
"""What it tells while a client starts the owner."""


def may_be_written(content: bytes) -> bool:
    """Whether a lock file of this content is ours (Pipfile's is Pipfile.lock), or holds nothing.

    A power cut can leave NULs.
    """
    found = content.strip(b"\0")
    return found.startswith(_START[: len(found)])


def owner_told(content: bytes) -> dict[str, Any]:
    """What a lock file tells of its owner; {} if nothing, or while it is being written."""
    try:
        told = orjson.loads(content)
    except orjson.JSONDecodeError:
        return {}
    return told if isinstance(told, dict) else {}
