"""`batch()` of PickleDB and of AsyncPickleDB as one kind of block, for the tests of both."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from looped import async_client


@contextlib.contextmanager
def as_sync(db):
    with db.batch() as batch:
        yield batch


@contextlib.contextmanager
def as_async(db):
    """A block of AsyncPickleDB.batch, in an event loop that is there for it alone."""
    with asyncio.Runner() as runner:
        theirs = async_client(db, timeout=db._route.options["timeout"])
        batch = runner.run(theirs.batch().__aenter__())
        try:
            yield batch
        except BaseException as error:
            runner.run(batch.__aexit__(type(error), error, None))
            raise
        else:
            runner.run(batch.__aexit__(None, None, None))
        finally:
            runner.run(theirs.close())


both = pytest.mark.parametrize("block", [as_sync, as_async])
