"""The cost contract: bare, instrumented and the hand-written recipe, side by side.

    python -m pytest tests/benchmarks --benchmark-only

Each way is timed over the same cycles in the same run; the ratios are printed at the
end and asserted nowhere, because machines are noisy.
"""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import time
import traceback
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from statistics import median
from typing import Any

import asyncpg
import pytest
from helpers import allocated, caller, deep
from psycopg2.pool import ThreadedConnectionPool
from psycopg_pool import ConnectionPool
from sqlalchemy import create_engine, event, text
from sqlalchemy.pool import Pool, QueuePool

import poolwatch
from poolwatch.protocol import document as wire
from poolwatch.runtime.gc_pause import undisturbed

DEPTH = 30
WAYS = ["bare", "instrumented", "recipe"]

Lend = Callable[[int, bool], None]
"""Takes and returns a connection so often, with a statement or without."""


class NullConnection:
    """A driver that does nothing."""

    def rollback(self) -> None: ...

    def close(self) -> None: ...


def recipe(pool: Any) -> None:
    """What people write by hand to find out who holds a connection."""
    holders: dict[int, str] = {}

    def checkout(dbapi_connection: Any, record: Any, proxy: Any) -> None:
        holders[id(record)] = "".join(traceback.format_stack())

    def checkin(dbapi_connection: Any, record: Any) -> None:
        holders.pop(id(record), None)

    event.listen(pool, "checkout", checkout)
    event.listen(pool, "checkin", checkin)


def prepare(way: str, target: Any) -> None:
    if way == "instrumented":
        poolwatch.instrument(target)
    elif way == "recipe":
        recipe(target)


@contextmanager
def traced(engine: Any) -> Iterator[None]:
    """What OpenTelemetry's instrumentor does: a span for each statement, kept nowhere.

    It refuses SQLAlchemy 2.1, which works all the same.
    """
    name = "opentelemetry.instrumentation.sqlalchemy"
    instrumentor = pytest.importorskip(name).SQLAlchemyInstrumentor()
    sdk = pytest.importorskip("opentelemetry.sdk.trace")
    instrumentor.instrument(
        engine=engine, tracer_provider=sdk.TracerProvider(), skip_dep_check=True
    )
    yield
    instrumentor.uninstrument()


@pytest.fixture(autouse=True)
def own_directory(tmp_path_factory: Any, monkeypatch: Any) -> Iterator[None]:
    monkeypatch.setenv("POOLWATCH_DIR", str(tmp_path_factory.mktemp("run")))
    yield
    poolwatch.uninstrument()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.benchmark(group="checkout + checkin, 30 frames deep, null driver")
def test_cycle(benchmark: Any, way: str) -> None:
    cycles = 2000
    pool: Pool = QueuePool(NullConnection)  # type: ignore[arg-type]
    prepare(way, pool)

    def cycle() -> None:
        for _ in range(cycles):
            pool.connect().close()

    benchmark.extra_info.update(way=way, cycles=cycles)
    benchmark.pedantic(deep, args=(DEPTH, cycle), rounds=40, warmup_rounds=3)


@pytest.fixture
def one_core(postgres: Any) -> Iterator[None]:
    """Client and server on one core: waking up the other one takes 20 to 200 µs, now
    this, now that, and drowns what is measured."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    postmaster = int((postgres.directory / "postmaster.pid").read_text().split()[0])
    before = os.sched_getaffinity(0)
    for pid in (0, postmaster):  # new backends inherit it
        os.sched_setaffinity(pid, {max(before)})
    yield
    for pid in (0, postmaster):
        os.sched_setaffinity(pid, before)


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg"])
@pytest.mark.parametrize("way", [*WAYS, "OpenTelemetry"])
@pytest.mark.benchmark
def test_select(
    benchmark: Any, way: str, driver: str, postgres: Any, one_core: None
) -> None:
    cycles = 200
    engine = create_engine(postgres.url(driver))
    prepare(way, engine)
    statement = text("SELECT 1")

    def cycle() -> None:
        for _ in range(cycles):
            with engine.connect() as connection:
                connection.execute(statement)

    benchmark.group = f"connect, SELECT 1, close: {driver}, local PostgreSQL"
    benchmark.extra_info.update(way=way, cycles=cycles)
    with traced(engine) if way == "OpenTelemetry" else nullcontext():
        benchmark.pedantic(deep, args=(DEPTH, cycle), rounds=40, warmup_rounds=2)
    engine.dispose()


def lending_psycopg2(postgres: Any) -> Iterator[tuple[Any, Lend]]:
    pool = ThreadedConnectionPool(1, 2, postgres.dsn)
    yield pool, partial(lend, pool)
    pool.closeall()


def lending_psycopg_pool(postgres: Any) -> Iterator[tuple[Any, Lend]]:
    with ConnectionPool(postgres.dsn, min_size=1, max_size=2, open=True) as pool:
        pool.wait()
        yield pool, partial(lend, pool)


def lend(pool: Any, cycles: int, statement: bool) -> None:
    for _ in range(cycles):
        connection = pool.getconn()
        if statement:
            with connection.cursor() as cursor:
                cursor.execute("SELECT 1")
            connection.rollback()
        pool.putconn(connection)


def lending_asyncpg(postgres: Any) -> Iterator[tuple[Any, Lend]]:
    async def lend(pool: Any, cycles: int, statement: bool) -> None:
        for _ in range(cycles):
            async with pool.acquire() as connection:
                if statement:
                    await connection.execute("SELECT 1")

    async def opened() -> Any:
        dsn = postgres.url().replace("+psycopg2", "")
        return await asyncpg.create_pool(dsn, min_size=1, max_size=2)

    with asyncio.Runner() as runner:
        pool = runner.run(opened())
        yield pool, lambda *wanted: runner.run(lend(pool, *wanted))
        runner.run(pool.close())


@pytest.mark.parametrize("statement", [False, True], ids=["nothing", "select"])
@pytest.mark.parametrize(
    "lending", [lending_psycopg2, lending_psycopg_pool, lending_asyncpg]
)
def test_pool_of_a_driver(
    benchmark: Any,
    lending: Callable[[Any], Iterator[tuple[Any, Lend]]],
    statement: bool,
    postgres: Any,
    one_core: None,
    figure: Callable[[str], None],
) -> None:
    """The same pool, hooked and not hooked by turns: the hooks sit on its class."""
    cycles = 200
    took: dict[str, list[float]] = {"bare": [], "instrumented": []}

    def timed(way: str, lend: Lend) -> None:
        lend(10, statement)
        began = time.perf_counter()
        lend(cycles, statement)
        took[way].append((time.perf_counter() - began) / cycles * 1e6)

    def both(pool: Any, lend: Lend) -> None:
        timed("bare", lend)
        poolwatch.instrument(pool)
        timed("instrumented", lend)
        poolwatch.uninstrument(pool)

    with contextmanager(lending)(postgres) as (pool, lend):
        one_round = partial(deep, DEPTH, partial(both, pool, lend))
        benchmark.pedantic(one_round, rounds=60, warmup_rounds=2)
    did = "take, SELECT 1, return" if statement else "take, return"
    library = lending.__name__.removeprefix("lending_")
    figure(f"{did}: a pool of {library}, local PostgreSQL:")
    for what, of in (("minimum", min), ("median", median)):
        bare, ours = (of(each) for each in took.values())
        figure(
            f"    {what} {ours:.2f} / {bare:.2f} µs = {ours / bare:.3f} "
            f"(adds {ours - bare:.2f} µs)"
        )


@pytest.mark.parametrize("way", ["bare", "instrumented"])
@pytest.mark.benchmark(group="start of an interpreter: bare, and with import poolwatch")
def test_import(benchmark: Any, way: str) -> None:
    code = "import poolwatch" if way == "instrumented" else "pass"
    command = [sys.executable, "-c", code]
    benchmark.extra_info.update(way=way)
    benchmark.pedantic(
        subprocess.run, args=(command,), kwargs={"check": True}, rounds=30
    )


@pytest.fixture
def thousand_holds() -> Iterator[None]:
    """A pool of 1,000 with everything out, held by 200 threads 25 frames deep."""
    pool: Pool = QueuePool(NullConnection, pool_size=1000)  # type: ignore[arg-type]
    poolwatch.instrument(pool)
    enough = threading.Event()
    ready = threading.Barrier(201)

    def hold() -> None:
        held = [pool.connect() for _ in range(5)]
        ready.wait()
        enough.wait()
        for connection in held:
            connection.close()

    threads = [threading.Thread(target=deep, args=(25, hold)) for _ in range(200)]
    for thread in threads:
        thread.start()
    ready.wait()
    yield
    enough.set()
    for thread in threads:
        thread.join()


@pytest.mark.benchmark(group="snapshot of 1,000 holds")
def test_snapshot(benchmark: Any, thousand_holds: None) -> None:
    benchmark.extra_info.update(way="records")
    snapshot = benchmark.pedantic(poolwatch.snapshot, rounds=20, warmup_rounds=2)
    assert len(snapshot.processes[0].holds) == 1000


@pytest.mark.benchmark(group="snapshot of 1,000 holds")
def test_document(benchmark: Any, thousand_holds: None) -> None:
    benchmark.extra_info.update(way="JSON text")
    snapshot = poolwatch.snapshot()
    benchmark.pedantic(wire.to_json, args=(snapshot,), rounds=20, warmup_rounds=2)


@contextmanager
def longest_stop(figure: Any, of_what: str) -> Iterator[None]:
    """How long another thread is kept from running meanwhile."""
    longest = 0.0
    done = threading.Event()

    def run() -> None:
        nonlocal longest
        last = time.perf_counter()
        while not done.is_set():
            time.sleep(0.0002)
            now = time.perf_counter()
            longest, last = max(longest, now - last), now

    runner = threading.Thread(target=run)
    runner.start()
    try:
        yield
    finally:
        done.set()
        runner.join()
    figure(f"longest stop of another thread during {of_what}: {longest * 1e3:.1f} ms")


@pytest.mark.benchmark(group="snapshot of 1,000 holds")
def test_longest_stop(benchmark: Any, thousand_holds: None, figure: Any) -> None:
    benchmark.extra_info.update(way="both")
    with longest_stop(figure, "snapshots"):
        benchmark.pedantic(
            lambda: undisturbed(lambda: wire.to_json(poolwatch.snapshot())), rounds=10
        )


def test_memory_of_a_pool(benchmark: Any, figure: Any) -> None:
    """What is kept after 100,000 cycles from 100 call sites."""
    benchmark.pedantic(lambda: None)  # only to be run with the benchmarks
    poolwatch.instrument(QueuePool(NullConnection))  # type: ignore[arg-type]
    callers = [caller(number) for number in range(100)]
    pool: Pool = QueuePool(NullConnection)  # type: ignore[arg-type]
    tracemalloc.start(1)
    try:
        poolwatch.instrument(pool)
        for number in range(100_000):
            callers[number % 100](pool).close()
        gc.collect()
        kept = allocated()
    finally:
        tracemalloc.stop()
    figure(f"after 100,000 cycles from 100 call sites: {kept / 1024:.0f} KiB")


def test_memory_of_a_hold(benchmark: Any, figure: Any) -> None:
    """What 1,000 open holds add, the facts of their connections included."""
    benchmark.pedantic(lambda: None)
    pool: Pool = QueuePool(NullConnection, pool_size=1000)  # type: ignore[arg-type]
    poolwatch.instrument(pool)
    pool.connect().close()
    tracemalloc.start(1)
    try:
        held = [pool.connect() for _ in range(1000)]
        bytes_each = allocated() / len(held)
    finally:
        tracemalloc.stop()
    figure(f"memory of a hold and its connection: {bytes_each:.0f} bytes")


def test_idle_agent(benchmark: Any, figure: Any) -> None:
    """CPU time of the agent when nobody looks and the application does nothing."""
    benchmark.pedantic(lambda: None)
    pool: Pool = QueuePool(NullConnection)  # type: ignore[arg-type]
    poolwatch.instrument(pool)
    pool.connect().close()
    time.sleep(0.5)  # its thread is loading what it needs
    before = time.process_time()
    time.sleep(10)
    used = time.process_time() - before
    figure(f"CPU of an idle process with its agent: {used * 10:.4f} % of a core")
