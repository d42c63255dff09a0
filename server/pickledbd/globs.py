"""Globs, as a shell has them, for keys: `*`, `?`, `[abc]`, `[a-z]`, `[!abc]`.

May live here: matching. Patterns come from clients, so they are not made into regular
expressions, some of which take for ever: whatever the glob, each character of a key takes one
step. What has been matched is a set of places in the glob, kept as the bits of a number, which
all move on at once (Baeza-Yates and Gonnet, "A New Approach to Text Searching", 1992). A
character that stands for itself is written in brackets: `[*]`. A bracket that is not closed stands
for itself.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable

KEY_MAX = 2**14
"""Characters of a key that may match a `?` or a set: these take a step each."""

Ranges = list[tuple[str, str]]

Part = tuple[bool, Ranges]
"""One character: whether one in these ranges matches, or any other one."""

_ANY: Part = (False, [])


def matcher(glob: str) -> Callable[[str], bool]:
    """Whether a key matches all of `glob`."""
    if not set(glob) & set("?["):
        return _pieces_matcher(glob)
    parts, stars = _parts(glob)
    firsts, matched = _matched(parts)
    end = 1 << len(parts)

    def matches(key: str) -> bool:
        if len(key) > KEY_MAX:
            return False
        places = 1
        for char in map(ord, key):
            by = matched[bisect_right(firsts, char) - 1]
            places = (places & by) << 1 | places & stars
            if not places:
                return False
        return places & end != 0

    return matches


def _pieces_matcher(glob: str) -> Callable[[str], bool]:
    """The same where there are but stars, and plain text between them."""
    first, *between = glob.split("*")
    if not between:
        return glob.__eq__
    last = between.pop()

    def matches(key: str) -> bool:
        if not key.startswith(first):
            return False
        place = len(first)
        for piece in between:
            found = key.find(piece, place)
            if found < 0:
                return False
            place = found + len(piece)
        return len(key) - place >= len(last) and key.endswith(last)

    return matches


def _matched(parts: list[Part]) -> tuple[list[int], list[int]]:
    """Code points, and which parts, as bits, the characters from each of them on match."""
    matched = [sum(1 << number for number, (among, _) in enumerate(parts) if not among)]
    changes: dict[int, int] = {}
    for number, (_, ranges) in enumerate(parts):
        over = 0
        for first, last in sorted(ranges):
            begin = max(ord(first), over)
            if begin <= ord(last):
                over = ord(last) + 1
                for at in (begin, over):
                    changes[at] = changes.get(at, 0) ^ 1 << number
    for _, bits in sorted(changes.items()):
        matched.append(matched[-1] ^ bits)
    return [0, *sorted(changes)], matched


def _parts(glob: str) -> tuple[list[Part], int]:
    """The characters to be matched, and before which of them there are stars, as bits."""
    parts: list[Part] = []
    stars = 0
    place = 0
    while place < len(glob):
        char = glob[place]
        place += 1
        if char == "*":
            stars |= 1 << len(parts)
        elif char == "?":
            parts.append(_ANY)
        elif char == "[" and (end := _end_of_set(glob, place)) > 0:
            parts.append(_set(glob[place:end]))
            place = end + 1
        else:
            parts.append((True, [(char, char)]))
    return parts, stars


def _end_of_set(glob: str, place: int) -> int:
    """Where the set that begins at `place` is closed; a bracket that comes first is one of it."""
    return glob.find("]", place + 1 + (glob[place : place + 1] == "!"))


def _set(text: str) -> Part:
    others = text.startswith("!")
    text = text[others:]
    ranges: Ranges = []
    while text:
        if len(text) > 2 and text[1] == "-":  # noqa: PLR2004 - a range has three characters
            ranges.append((text[0], text[2]))
            text = text[3:]
        else:
            ranges.append((text[0], text[0]))
            text = text[1:]
    return not others, ranges
