"""The cost contract as the work grows: pools, holds, frames of a stack, threads.

    python -m pytest tests/benchmarks/test_growth.py --benchmark-only

A pool that is instrumented and one that is not are used in turns, in the same process:
the ratio is that of the shortest turns.
"""

from __future__ import annotations

import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from statistics import median
from typing import Any

import pytest
from helpers import Driver, allocated, caller, deep
from sqlalchemy.pool import QueuePool

import poolwatch
from poolwatch.protocol import document as wire

DEPTH = 30
CYCLES = 500
TURNS = 40
Figure = Callable[[str], None]


def null_pool(size: int = 5) -> QueuePool:
    return QueuePool(Driver, pool_size=size, timeout=60)  # type: ignore[arg-type]


def cycle(pool: QueuePool, cycles: int = CYCLES) -> None:
    for _ in range(cycles):
        pool.connect().close()


def in_turns(bare: Callable[[], None], ours: Callable[[], None], per: int) -> str:
    """The shortest turns of two ways, in µs of each of ``per`` cycles."""
    took: tuple[list[float], list[float]] = ([], [])
    for turn in range(TURNS + 2):
        for way, times in zip((bare, ours), took, strict=True):
            began = time.perf_counter()
            way()
            if turn > 1:
                times.append((time.perf_counter() - began) / per * 1e6)
    least = [min(each) for each in took]
    pairs = median([b / a for a, b in zip(*took, strict=True)])
    return (
        f"{least[1]:7.2f} / {least[0]:6.2f} µs = {least[1] / least[0]:.2f} "
        f"(median of the pairs {pairs:.2f})"
    )


def both(pool: QueuePool, frames: int = DEPTH) -> str:
    """A cycle of a pool, and of one like it that is not instrumented."""
    bare = null_pool()
    return in_turns(
        lambda: deep(frames, lambda: cycle(bare)),
        lambda: deep(frames, lambda: cycle(pool)),
        CYCLES,
    )


def looks(figure: Figure, what: str) -> None:
    """What a snapshot takes, and its document."""
    took: list[tuple[float, float]] = []
    for _ in range(5):
        began = time.perf_counter()
        snapshot = poolwatch.snapshot()
        taken = time.perf_counter()
        text = wire.to_json(snapshot, viewers=True, compact=True)
        took.append((taken - began, time.perf_counter() - taken))
    records, document = map(min, zip(*took, strict=True))
    figure(
        f"    {what}: snapshot {records * 1e3:7.1f} ms, "
        f"JSON {document * 1e3:6.1f} ms, {len(text) / 1024:.0f} KiB"
    )


@contextmanager
def out(pool: QueuePool, count: int) -> Iterator[None]:
    """So many holds, of up to 200 threads."""
    enough, threads = threading.Event(), min(200, count)
    ready = threading.Barrier(threads + 1)

    def hold(share: int) -> None:
        held = [pool.connect() for _ in range(share)]
        ready.wait()
        enough.wait()
        for each in held:
            each.close()

    shares = [count // threads + (n < count % threads) for n in range(threads)]
    running = [
        threading.Thread(target=deep, args=(25, lambda share=share: hold(share)))
        for share in shares
    ]
    for thread in running:
        thread.start()
    ready.wait()
    yield
    enough.set()
    for thread in running:
        thread.join()


@pytest.fixture(autouse=True)
def only_with_benchmarks(benchmark: Any, instrument: Any) -> None:
    benchmark.pedantic(lambda: None)


def test_frames(figure: Figure) -> None:
    pool = null_pool()
    poolwatch.instrument(pool)
    figure("checkout + checkin, instrumented / bare, by frames of the stack:")
    for frames in (10, 30, 50, 100, 200):
        figure(f"    {frames:5} frames: {both(pool, frames)}")


def test_call_sites(figure: Figure) -> None:
    figure("the same, by call sites that look alike, used in turn:")
    bare, ours = null_pool(), null_pool()
    poolwatch.instrument(ours)
    for count in (1, 10, 100, 500):
        callers = [caller(number) for number in range(count)]

        def use(pool: QueuePool, callers: list[Any] = callers) -> None:
            for turn in range(CYCLES):
                callers[turn % len(callers)](pool).close()

        took = in_turns(
            lambda use=use: deep(DEPTH, lambda: use(bare)),
            lambda use=use: deep(DEPTH, lambda: use(ours)),
            CYCLES,
        )
        figure(f"    {count:5} sites: {took}")


def test_pools(figure: Figure) -> None:
    figure("the same, by pools that are instrumented, each of them used:")
    pools: list[QueuePool] = []
    poolwatch.instrument(null_pool())
    for count in (1, 10, 100, 1000):
        tracemalloc.start(1)
        added = [null_pool() for _ in range(count - len(pools))]
        for pool in added:
            poolwatch.instrument(pool)
            cycle(pool, 1)
        each = allocated() / len(added)
        tracemalloc.stop()
        pools += added
        figure(f"    {count:5} pools: {both(pools[0])}, {each / 1024:.1f} KiB a pool")
        looks(figure, f"{count:5} pools")
        time.sleep(0.5)
        before = time.process_time()
        time.sleep(5)
        used = (time.process_time() - before) / 5
        figure(f"    {count:5} pools: nobody looks: {used:.3%} of a core")


def test_holds(figure: Figure) -> None:
    figure("the same, by holds of the pool that are open:")
    for count in (1, 10, 100, 1000, 10_000):
        pool = null_pool(count + 1)
        poolwatch.instrument(pool)
        with out(pool, count):
            figure(f"    {count:5} holds: {both(pool)}")
            looks(figure, f"{count:5} holds")
        poolwatch.uninstrument(pool)


def test_threads(figure: Figure) -> None:
    figure("the same, by threads that take and return at once:")
    for count in (1, 4, 16, 64):
        bare, ours = null_pool(count), null_pool(count)
        poolwatch.instrument(ours)
        with ExitStack() as stack:
            ways = [stack.enter_context(crowd(pool, count)) for pool in (bare, ours)]
            figure(f"    {count:5} threads: {in_turns(*ways, count * CYCLES // 5)}")
        poolwatch.uninstrument(ours)


@contextmanager
def crowd(pool: QueuePool, count: int) -> Iterator[Callable[[], None]]:
    """Threads that do their cycles when told to."""
    begin, end = threading.Barrier(count + 1), threading.Barrier(count + 1)
    over = threading.Event()

    def work() -> None:
        while begin.wait() >= 0 and not over.is_set():
            cycle(pool, CYCLES // 5)
            end.wait()

    def turn() -> None:
        begin.wait()
        end.wait()

    threads = [threading.Thread(target=deep, args=(DEPTH, work)) for _ in range(count)]
    for thread in threads:
        thread.start()
    yield turn
    over.set()
    begin.wait()
    for thread in threads:
        thread.join()
