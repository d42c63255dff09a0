"""The layout of a data file, which lets it be read in blocks. SPEC.md, The data file, is its prose.

May live here: that layout, and how a file's bytes are taken apart by it. No I/O.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

HEAD, SEPARATOR, TAIL, EMPTY = b"{\n", b",\n", b"\n}\n", b"{}\n"


class NotThisLayoutError(Exception):
    """Not entries on lines of their own; it may still be JSON."""


def blocks(chunks: Iterable[bytes]) -> Iterator[bytes]:
    """What a file in this layout holds, as texts of JSON objects of some of its entries each.

    `chunks`: the file's bytes. NotThisLayoutError if they do not begin like one; the caller raises
    it where a block is no object, or an empty one.

    A cut at a line's end between two entries is safe whatever the file: no JSON string holds a
    raw newline, and the first block starts inside the outermost object, so as long as each
    block is an object when put into braces, each cut was between two of that object's members.
    """
    pending = bytearray()
    head = len(HEAD)
    for chunk in chunks:
        start = max(0, len(pending) - 1)
        pending += chunk
        if head and len(pending) >= head:
            if not pending.startswith(HEAD):
                raise NotThisLayoutError
            del pending[:head]
            head = start = 0
        cut = -1 if head else pending.rfind(SEPARATOR, start)
        if cut >= 0:
            yield b"{%s}" % pending[:cut]
            del pending[: cut + len(SEPARATOR)]
    if head:
        raise NotThisLayoutError
    yield b"{%s" % pending
