"""A snapshot of a pool at a standstill: 1,000 holds, 500 waits, 1,500 threads.

    python -m pytest tests/benchmarks/test_standstill.py --benchmark-only

The first snapshot searches for the users of all connections and reads what they wait
for. Printed, asserted nowhere but for what was found: machines are noisy.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from sqlalchemy.pool import QueuePool

import poolwatch
from poolwatch.agent.instrument import agent
from poolwatch.agent.snapshots import LedgerSource

HOLDS, WAITS = 1000, 500
HELD: list[Any] = []


class NullConnection:
    def rollback(self) -> None: ...

    def close(self) -> None: ...


@pytest.fixture
def standstill() -> Iterator[None]:
    """Holders wait for a lock, whose owner waits for the pool, as many others do."""
    pool: Any = QueuePool(NullConnection, pool_size=HOLDS, max_overflow=0, timeout=600)  # type: ignore[arg-type]
    poolwatch.instrument(pool)
    lock, ready = threading.Lock(), threading.Barrier(HOLDS + 2)
    locked = threading.Event()

    def own() -> None:
        with lock:
            locked.set()
            ready.wait()
            wait()

    def hold() -> None:
        connection = pool.connect()
        HELD.append(connection)
        ready.wait()
        with lock:
            connection.close()

    def wait() -> None:
        pool.connect().close()

    before = threading.stack_size(256 * 1024)
    owner = threading.Thread(target=own)
    threads = [owner, *(threading.Thread(target=hold) for _ in range(HOLDS))]
    owner.start()
    locked.wait()
    for thread in threads[1:]:
        thread.start()
    ready.wait()
    threads += [threading.Thread(target=wait) for _ in range(WAITS - 1)]
    for thread in threads[HOLDS + 1 :]:
        thread.start()
    threading.stack_size(before)
    time.sleep(1.5)
    yield
    HELD[0].close()  # what nobody could have done from outside
    for thread in threads:
        thread.join()
    HELD.clear()


@pytest.mark.benchmark(group="snapshot of 1,000 holds and 500 waits at a standstill")
def test_standstill(benchmark: Any, standstill: None, figure: Any) -> None:
    benchmark.extra_info.update(way="first")

    def first() -> Any:
        return LedgerSource(agent.ledger).process()

    process = benchmark.pedantic(first, rounds=3)
    assert (len(process.holds), len(process.waits)) == (HOLDS, WAITS)
    began = time.thread_time()
    process = LedgerSource(agent.ledger).process()
    spent = time.thread_time() - began
    kinds = [finding.kind for finding in process.findings]
    figure(
        f"snapshot at a standstill: {spent * 1e3:.0f} ms of computing; said: "
        f"{', '.join(kinds)}; left out: {', '.join(process.left_out) or 'nothing'}"
    )
