"""Random work of many threads and tasks: the ledger equals the truth, memory is flat.

    python tests/soaks/truth.py [LENGTH]

With LENGTH 1 (the default): 64 threads and 2,000 tasks that close, drop, invalidate and
detach connections at random, time out and are cancelled; 10,000 engines made and
disposed; 10,000 call sites; a million cycles. Exits with 1 if a figure is not right.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import random
import sys
import tempfile
import threading
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

from helpers import Driver, until
from sqlalchemy import create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

import poolwatch

MIB = 2**20
THREADS, TASKS = 64, 2000


def said_by(watch: poolwatch.Watch) -> dict[str, int]:
    """What the ledger says of a pool."""
    (process,) = poolwatch.snapshot().processes
    (pool,) = [each for each in process.pools if each.id == watch._pool_id]
    counters = pool.counters
    return {
        "holds": len(watch.holds()),
        "waits": sum(wait.pool == pool.id for wait in process.waits),
        "checkouts": counters.checkouts,
        "checkins": counters.checkins,
        "timeouts": counters.timeouts,
        "collected": counters.collected,
        "out": pool.checked_out or 0,
    }


def compare(what: str, said: dict[str, int], truth: dict[str, int]) -> bool:
    wrong = {key: said[key] for key in truth if said[key] != truth[key]}
    print(f"{what}: {truth}" + (f"; THE LEDGER SAYS {wrong}" if wrong else ", exactly"))
    return not wrong


# -- threads ---------------------------------------------------------------------------


def use(pool: QueuePool, chance: random.Random, done: Counter[str]) -> None:
    """Take a connection and end it in one of many ways."""
    try:
        connection: Any = pool.connect()
    except PoolTimeoutError:
        done["timeouts"] += 1
        return
    done["checkouts"] += 1
    way = chance.random()
    if way < 0.3:
        time.sleep(chance.random() * 0.03)
    if way < 0.7:
        connection.close()
    elif way < 0.8:
        del connection
        done["dropped"] += 1
    elif way < 0.9:
        connection.invalidate()
        connection.close()
    elif way < 0.95:
        connection.detach()
        connection.close()
    else:
        with suppress(ZeroDivisionError), connection:
            raise ZeroDivisionError


def threads(length: float) -> bool:
    """In rounds; at the end of each, every second thread holds a connection."""
    pool = QueuePool(Driver, pool_size=20, max_overflow=20, timeout=0.01)
    watch = poolwatch.instrument(pool, name="threads")
    counts = [Counter[str]() for _ in range(THREADS)]
    ready, go_on = threading.Barrier(THREADS + 1), threading.Barrier(THREADS + 1)
    rounds, each = max(2, int(10 * length)), max(10, int(200 * length))

    def work(number: int) -> None:
        chance = random.Random(number)
        for _ in range(rounds):
            for _ in range(each):
                use(pool, chance, counts[number])
            ready.wait()
            with pool.connect() if number % 2 else nullcontext():
                counts[number]["checkouts"] += number % 2
                ready.wait()
                go_on.wait()
            go_on.wait()

    workers = [threading.Thread(target=work, args=(n,)) for n in range(THREADS)]
    for worker in workers:
        worker.start()
    fine = True
    for number in range(rounds):
        ready.wait()
        gc.collect()
        ready.wait()
        truth = sum(counts, Counter())
        held = THREADS // 2
        fine &= compare(
            f"64 threads, round {number + 1}",
            said_by(watch),
            {
                "holds": held,
                "out": held,
                "waits": 0,
                "checkouts": truth["checkouts"],
                "checkins": truth["checkouts"] - held,
                "timeouts": truth["timeouts"],
                "collected": truth["dropped"],
            },
        )
        go_on.wait()
        go_on.wait()
    for worker in workers:
        worker.join()
    until(lambda: pool.checkedout() == 0, 10)
    said = said_by(watch)
    return fine and not said["holds"] and said["checkouts"] == said["checkins"]


# -- tasks -----------------------------------------------------------------------------


async def use_async(engine: Any, chance: random.Random, done: Counter[str]) -> None:
    """Take a connection; the task may be cancelled anywhere."""
    try:
        connection = await engine.connect()
    except PoolTimeoutError:
        done["timeouts"] += 1
        return
    try:
        done["checkouts"] += 1
        await connection.execute(text("SELECT 1"))
        way = chance.random()
        if way < 0.1:
            await asyncio.sleep(chance.random() * 0.05)
        if way > 0.9:
            await connection.invalidate()
    finally:
        await connection.close()


async def cancelled(engine: Any, length: float) -> Counter[str]:
    chance, done = random.Random(1), Counter[str]()
    limit = asyncio.Semaphore(200)

    async def one() -> None:
        async with limit:
            await use_async(engine, chance, done)

    for _ in range(max(1, int(3 * length))):
        tasks = [asyncio.create_task(one()) for _ in range(TASKS)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0.005)
            for task in chance.sample(tasks, 5):
                done["cancelled"] += task.cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        for result in results:
            if result is not None:
                done[type(result).__name__] += 1
    return done


def tasks(length: float) -> bool:
    with tempfile.TemporaryDirectory() as directory:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{directory}/soak.db",
            poolclass=AsyncAdaptedQueuePool,
            pool_size=10,
            max_overflow=10,
            pool_timeout=0.5,
        )
        watch = poolwatch.instrument(engine, name="tasks")

        async def main() -> tuple[Counter[str], dict[str, int], int]:
            done = await cancelled(engine, length)
            gc.collect()
            await asyncio.sleep(0.5)
            said, out = said_by(watch), engine.sync_engine.pool.checkedout()
            await engine.dispose()
            return done, said, out

        done, said, out = asyncio.run(main())
    print(f"2,000 tasks: {dict(done)}, the pool says {out} out")
    # a request that was cancelled may have been served: it counts as both
    return (
        compare(
            "2,000 tasks",
            said,
            {
                "holds": 0,
                "waits": 0,
                "timeouts": done["timeouts"],
                "checkins": said["checkouts"],
                "out": out,
            },
        )
        and out == 0
        and said["checkouts"] >= done["checkouts"]
    )


# -- memory ----------------------------------------------------------------------------


def memory() -> tuple[int, int]:
    """What Python has allocated, and the resident memory of the process; in bytes."""
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return tracemalloc.get_traced_memory()[0], pages * os.sysconf("SC_PAGE_SIZE")


def flat(
    what: str, step: Callable[[int], object], times: int, most: float = 0.5
) -> bool:
    """Whether the memory grows by at most so many MiB after the first fifth."""
    began = time.monotonic()
    tracemalloc.start()
    warm = times // 5
    for number in range(warm):
        step(number)
    before = memory()
    for number in range(warm, times):
        step(number)
    traced, resident = (b - a for a, b in zip(before, memory(), strict=True))
    tracemalloc.stop()
    fine = traced < most * MIB and resident < 8 * MIB
    print(
        f"{what}: {times}, from {warm} on {traced / 1024:+.0f} KiB traced, "
        f"{resident / 1024:+.0f} KiB resident ({time.monotonic() - began:.0f} s)"
        + ("" if fine else " NOT FLAT")
    )
    return fine


def engines(length: float) -> bool:
    poolwatch.instrument()

    def step(_: int) -> None:
        engine = create_engine("sqlite://", poolclass=QueuePool)
        with engine.connect():
            pass
        engine.dispose()

    return flat("engines made and disposed", step, int(10_000 * length))


def call_sites(length: float) -> bool:
    pool = QueuePool(Driver)
    poolwatch.instrument(pool, name="sites")

    def step(number: int) -> None:
        source = "\n" * (number % 500) + "def take(pool):\n    pool.connect().close()\n"
        names: dict[str, Any] = {}
        exec(compile(source, f"/app/module{number}.py", "exec"), names)
        names["take"](pool)

    # tables of code fill up and are emptied: 1 to 3.3 MiB, also after 25,000 of them
    return flat("call sites", step, int(10_000 * length), most=3.5)


def cycles(length: float) -> bool:
    pool = QueuePool(Driver)
    poolwatch.instrument(pool, name="cycles")

    def step(_: int) -> None:
        for _ in range(100):
            pool.connect().close()

    return flat("hundreds of cycles", step, int(10_000 * length))


def main() -> int:
    logging.getLogger("poolwatch").setLevel(logging.ERROR)  # connections are dropped
    length = float(sys.argv[1]) if len(sys.argv) > 1 else 1.0
    with tempfile.TemporaryDirectory(prefix="pw", dir="/tmp") as directory:
        os.environ["POOLWATCH_DIR"] = directory
        results = []
        for soak in (threads, tasks, cycles, call_sites, engines):
            results.append(soak(length))
            sys.stdout.flush()
            poolwatch.uninstrument()
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
