"""What PickleDB and AsyncPickleDB are made with: a location and options."""

from __future__ import annotations

import os
from functools import partial
from typing import Any
from weakref import WeakValueDictionary

from pickledbd_client.calls import Call
from pickledbd_client.curve import CurveFiles
from pickledbd_client.locks import Locks
from pickledbd_client.route import Location, Route
from pickledbd_client.watching import BaseWatch

TIMEOUT = 5.0
CACHE_BYTES = 32 * 2**20


class Handle:
    """A database by its location. A pickled one is made anew, with the same options."""

    def __init__(
        self,
        location: Location = None,
        *,
        timeout: float | None = TIMEOUT,
        cache_bytes: int = CACHE_BYTES,
        autostart: bool = True,
        curve: CurveFiles | None = None,
    ) -> None:
        self._route = Route(
            location, timeout=timeout, cache_bytes=cache_bytes, autostart=autostart, curve=curve
        )
        self._cache = self._route.cache
        self._locks = Locks(self._route)
        self._watches: WeakValueDictionary[int, BaseWatch[Any]] = WeakValueDictionary()
        self._open()

    def _open(self) -> None:
        """Have a link by `_route`."""
        raise NotImplementedError

    def _end_watches(self) -> list[Call[bool]]:
        """Have all iterations end; what is to be asked for those that are waited for."""
        # Its references are copied at once: meanwhile other threads may add some
        watches = [watch for ref in self._watches.valuerefs() if (watch := ref()) is not None]
        ended = [watch._end() for watch in watches]  # noqa: SLF001 - close() would ask
        return [call for call in ended if call is not None]

    def __reduce__(self) -> Any:
        return partial(type(self), **self._route.options), (os.fspath(self._route.target),)
