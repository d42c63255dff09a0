"""Names that are tied to an owner, as what a connection asked for is to that connection.

May live here: that index. What is tied to one owner is found without a look at that of others, so
that the end of each of very many connections takes no longer than that of one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Generic, TypeVar

Name = TypeVar("Name", bound=Hashable)
Owner = TypeVar("Owner", bound=Hashable)


class Ties(Generic[Name, Owner]):
    """Names, each tied to one owner."""

    def __init__(self) -> None:
        self._owners: dict[Name, Owner] = {}
        self._names: dict[Owner, dict[Name, None]] = {}  # never empty ones

    def __len__(self) -> int:
        return len(self._owners)

    def __contains__(self, name: Name) -> bool:
        return name in self._owners

    def owner(self, name: Name) -> Owner | None:
        return self._owners.get(name)

    def of(self, owner: Owner) -> list[Name]:
        """What is tied to `owner`, what was tied first before the rest."""
        return list(self._names.get(owner, ()))

    def count(self, owner: Owner) -> int:
        """How many are tied to `owner`."""
        return len(self._names.get(owner, ()))

    def firsts(self) -> Iterator[tuple[Owner, Name]]:
        """Of each owner what was tied first."""
        return ((owner, next(iter(names))) for owner, names in self._names.items())

    def tie(self, name: Name, owner: Owner) -> None:
        """Tie `name` to `owner`, and to no other any more."""
        self.untie(name)
        self._owners[name] = owner
        self._names.setdefault(owner, {})[name] = None

    def untie(self, name: Name) -> None:
        """Have `name` tied to nobody."""
        if name in self._owners:
            owner = self._owners.pop(name)
            names = self._names[owner]
            del names[name]
            if not names:
                del self._names[owner]
