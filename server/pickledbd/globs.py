"""Globs, as a shell has them, for keys: `*`, `?`, `[abc]`, `[a-z]`, `[!abc]`.

May live here: matching, in steps that no pattern makes long. Patterns come from clients, so they
are not made into regular expressions, some of which take for ever: a `*` is tried again only as
long as no further one was reached, which takes at most the length of the pattern times that of
the key (Kirk Krauss, "Matching Wildcards", 2008). A character that stands for itself is written
in brackets: `[*]`. A bracket that is not closed stands for itself.
"""

from __future__ import annotations

from collections.abc import Callable

_ANY = None
_STAR = ""

Part = str | None | tuple[bool, list[tuple[str, str]]]
"""One character, any, a star, or a set: whether those in its ranges match, or all others."""


def matcher(glob: str) -> Callable[[str], bool]:
    """Whether a key matches all of `glob`."""
    head, star, tail = glob.partition("*")
    if star and not set(head + tail) & set("*?["):  # what most are: a prefix, perhaps a suffix
        least = len(head) + len(tail)
        return lambda key: len(key) >= least and key.startswith(head) and key.endswith(tail)
    parts = _parts(glob)
    return lambda key: _matches(parts, key)


def _parts(glob: str) -> list[Part]:
    parts: list[Part] = []
    place = 0
    while place < len(glob):
        char = glob[place]
        place += 1
        if char == "*":
            if not parts or parts[-1] != _STAR:
                parts.append(_STAR)
        elif char == "?":
            parts.append(_ANY)
        elif char == "[" and (end := _end_of_set(glob, place)) > 0:
            parts.append(_set(glob[place:end]))
            place = end + 1
        else:
            parts.append(char)
    return parts


def _end_of_set(glob: str, place: int) -> int:
    """Where the set that begins at `place` is closed; a bracket that comes first is one of it."""
    return glob.find("]", place + 1 + (glob[place : place + 1] == "!"))


def _set(text: str) -> Part:
    others = text.startswith("!")
    text = text[others:]
    ranges = []
    while text:
        if len(text) > 2 and text[1] == "-":  # noqa: PLR2004 - a range has three characters
            ranges.append((text[0], text[2]))
            text = text[3:]
        else:
            ranges.append((text[0], text[0]))
            text = text[1:]
    return not others, ranges


def _matches(parts: list[Part], key: str) -> bool:
    place = part = 0
    star = retry = -1  # the last star, and what of the key is tried next behind it
    while place < len(key):
        wanted = parts[part] if part < len(parts) else _STAR
        if part < len(parts) and wanted == _STAR:
            star, retry = part, place
            part += 1
        elif part < len(parts) and _fits(wanted, key[place]):
            part += 1
            place += 1
        elif star >= 0:
            retry += 1
            part, place = star + 1, retry
        else:
            return False
    return all(wanted == _STAR for wanted in parts[part:])


def _fits(wanted: Part, char: str) -> bool:
    if wanted is _ANY:
        return True
    if isinstance(wanted, str):
        return wanted == char
    among, ranges = wanted
    return any(first <= char <= last for first, last in ranges) == among
