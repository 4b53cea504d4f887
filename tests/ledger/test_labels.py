"""Labels and declared long holds are those of the code that asked."""

from __future__ import annotations

import asyncio
import contextvars
from contextlib import closing

import pytest
from fix_core import null_pool_of

from poolwatch.ledger.labels import current_context, label, long_hold


def test_labels_are_carried(instrument):
    """Labels and declared long holds are those of the code that asked."""
    pool = null_pool_of()
    watch = instrument(pool, long_after=1e-9)
    with label(endpoint="/orders", tenant=7), label(tenant=8), long_hold("LISTEN"):
        held = pool.connect()
    (hold,) = watch.holds()
    assert hold.labels == {"endpoint": "/orders", "tenant": "8"}
    assert (hold.verdict, hold.evidence) == ("ok", ("declared long: LISTEN",))
    held.close()
    with closing(pool.connect()):
        assert watch.holds()[0].labels == {}
        assert watch.holds()[0].verdict == "long"


def test_labels_are_bounded():
    """Sixteen labels of 200 characters, and a value that cannot be text is no error."""

    class Broken:
        def __str__(self):
            raise ZeroDivisionError

    with label(**{f"k{n}": "v" * 1000 for n in range(30)}):
        assert len(current_context.get().labels) == 16
        assert len(current_context.get().labels["k0"]) == 200
    with label(x=Broken()):
        assert current_context.get().labels == {"x": "(Broken)"}
    for reason in ("", " ", None):
        with pytest.raises(ValueError, match="needs a reason"), long_hold(reason):
            pass


def test_a_block_that_ends_in_another_context():
    """A dependency or fixture whose generator is ended elsewhere raises nothing."""

    def dependency():
        with label(endpoint="/x"), long_hold("because"):
            yield

    generator = dependency()
    contextvars.copy_context().run(next, generator)
    with pytest.raises(StopIteration):
        contextvars.copy_context().run(next, generator)

    async def asynchronous():
        other = dependency()
        await asyncio.create_task(asyncio.to_thread(next, other))
        other.close()

    asyncio.run(asynchronous())
