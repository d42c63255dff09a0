"""Which key was inserted last, where keys expire.

May live here: the search for it, which passes over keys that are due and still in the table. There
may be millions of them, so it can be made in steps, and knows where there is nothing else.
"""

from __future__ import annotations

from pickledbd.expiry import text_at
from pickledbd.table import Table


class LastKey:
    """Looks for the last key of a table that is not due.

    To be made anew when a change is undone: else what is due stays so, until it is removed.
    """

    def __init__(self, table: Table) -> None:
        self._table = table
        # All that the chunks of these numbers hold is due
        self._low = self._high = 0

    def find(self, now: int, most: float = float("inf")) -> tuple[bool, str | None]:
        """Whether a search among about `most` further keys came to its end; and the key, if any."""
        top = number = self._table.last_number
        looked = 0
        found: str | None = None
        while number >= 0 and looked < most:
            if self._low <= number < self._high:
                number = self._low - 1
                continue
            chunk = self._table.chunk(number)
            found = next((k for k in reversed(chunk) if text_at(chunk[k], now) is not None), None)
            if found is not None:
                break
            if number < top:  # that is looked at each time, or little would be found out
                looked += 1 + len(chunk)
            number -= 1
        if number < top:  # not the last chunk itself, into which new keys come
            self._low, self._high = number + 1, top
        return number < 0 or found is not None, found
