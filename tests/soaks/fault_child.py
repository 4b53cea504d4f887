"""What the workers of ``fault_forks.py`` do; multiprocessing imports it."""

from __future__ import annotations

from functools import cache

from helpers import Driver
from sqlalchemy.pool import QueuePool

import poolwatch


@cache
def new_pool() -> QueuePool:
    pool = QueuePool(Driver)
    poolwatch.instrument(pool)
    return pool


def work(_: int) -> list[int]:
    """Check out twice; holds, connections out and leaks afterwards."""
    pool = new_pool()
    with pool.connect(), pool.connect():
        pass
    (process,) = poolwatch.snapshot().processes
    mine = process.pools[-1]
    return [len(process.holds), pool.checkedout(), mine.counters.leaked]
