"""The search for what keeps connections, beside large data.

    python -m pytest tests/benchmarks/test_search.py --benchmark-only

For each kind of data and number of holds, in use by a function that has the data as
well, or kept by nothing but a cache: how long the search takes, how long it stops
another thread at most (and a thread that only computes, for comparison), and whether it
has seen everything. Printed at the end and asserted nowhere: machines are noisy.
"""

from __future__ import annotations

import gc
import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any, Self
from weakref import ref

import pytest
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import Pool, QueuePool

from poolwatch.diagnosis.references.search import SearchResult, find_all
from poolwatch.runtime.gc_pause import undisturbed

CACHE: list[Any] = []
LOOKS = 3


class NullConnection:
    def rollback(self) -> None: ...

    def close(self) -> None: ...


class Node:
    def __init__(self, number: int = 0) -> None:
        self.number = number
        self.next: Any = None


class Column:
    """Like those of a data frame: slots, blocks of values, an index."""

    __slots__ = ("blocks", "index", "name")

    def __init__(self, number: int) -> None:
        self.name = str(number)
        self.index = {"at": [number]}
        self.blocks = [[float(number)] * 10]


class Base(DeclarativeBase):
    pass


class Entity(Base):
    __tablename__ = "entity"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


def nested_dicts() -> Any:
    data = []
    for number in range(300):
        inner: dict[str, Any] = {}
        for level in range(20):
            inner = {"inner": [inner, number], "more": {"levels": [level]}}
        data.append(inner)
    return data


def json_documents() -> Any:
    user = {
        "id": 1,
        "tags": ["a", "b"],
        "address": {"geo": [1.5, 2.5], "n": {"z": [1]}},
    }
    text = json.dumps({"users": [user] * 100})
    return [json.loads(text) for _ in range(100)]


def row_tuples() -> Any:
    return [(number, f"name {number}", None) for number in range(300_000)]


def list_of_dicts() -> Any:
    return [{"id": n, "name": str(n), "value": n / 2} for n in range(300_000)]


def floats() -> Any:
    return [float(number) for number in range(1_000_000)]


def linked_list() -> Any:
    first = last = Node()
    for number in range(100_000):
        last.next = last = Node(number)
    return first


def graph_with_cycles() -> Any:
    nodes = [Node(number) for number in range(50_000)]
    for node in nodes:
        node.next = random.choices(nodes, k=3)
    return nodes


def dict_of_instances() -> Any:
    return {number: Node(number) for number in range(300_000)}


def objects_of_slots() -> Any:
    return [Column(number) for number in range(50_000)]


def orm_entities() -> Any:
    return [Entity(id=number, name=str(number)) for number in range(50_000)]


DATA = [
    nested_dicts, json_documents, row_tuples, list_of_dicts, floats, linked_list,
    graph_with_cycles, dict_of_instances, objects_of_slots, orm_entities,
]  # fmt: skip


class Holding:
    """A thread that has data, and took connections."""

    def __init__(self, make: Callable[[], Any], holds: int, *, leaked: bool) -> None:
        self.holds: dict[str, Any] = {}
        self.takers: dict[str, Any] = {}
        self._make, self._number, self._leaked = make, holds, leaked
        self._ready, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._run, name="report")

    def _run(self) -> None:
        data = self._make()
        pool: Pool = QueuePool(NullConnection, pool_size=self._number)  # type: ignore[arg-type]
        mine: list[Any] = [pool.connect() for _ in range(self._number)]
        for number, proxy in enumerate(mine):
            self.holds[f"h{number}"] = ref(proxy)
            self.takers[f"h{number}"] = threading.get_ident(), None
        proxy = None
        if self._leaked:
            CACHE.extend(mine)
            mine = []
        self._ready.set()
        self._stop.wait()
        del data, mine
        CACHE.clear()

    def __enter__(self) -> Self:
        self._thread.start()
        self._ready.wait()
        gc.collect()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def longest_stop(work: Callable[[], Any]) -> float:
    """How long another thread waits at most while one more does ``work``."""
    over, gaps = threading.Event(), [0.0]

    def tick() -> None:
        while not over.is_set():
            began = time.perf_counter()
            time.sleep(0.0002)
            gaps.append(time.perf_counter() - began - 0.0002)

    ticker = threading.Thread(target=tick)
    worker = threading.Thread(target=lambda: undisturbed(work))
    ticker.start()
    worker.start()
    worker.join()
    over.set()
    ticker.join()
    return max(gaps)


def compute() -> None:
    until = time.thread_time() + 0.1
    while time.thread_time() < until:
        sum(range(100))


@pytest.mark.parametrize("make", DATA)
@pytest.mark.benchmark
def test_search(benchmark: Any, figure: Any, make: Callable[[], Any]) -> None:
    if make is DATA[0]:
        figure(
            "search beside data, of 3 looks each: CPU, longest stop, complete, right"
        )
        figure(f"    a thread that computes: stop {longest_stop(compute) * 1e3:.1f} ms")
    for holds in (1, 30, 1000):
        for leaked in (False, True):
            with Holding(make, holds, leaked=leaked) as holding:
                figure(_line(make, holding, leaked=leaked))
    benchmark.pedantic(lambda: None)


def _line(make: Callable[[], Any], holding: Holding, *, leaked: bool) -> str:
    results: list[SearchResult] = []
    costs: list[float] = []

    def look() -> None:
        began = time.thread_time()
        results.append(find_all(holding.holds, holding.takers))
        costs.append(time.thread_time() - began)

    stop = max(longest_stop(look) for _ in range(LOOKS))
    settled = [
        [keeper.in_hand and keeper.near for keeper in each.paths.values()]
        for each in results
    ]
    right = sum(sum(each) == (0 if leaked else len(holding.holds)) for each in settled)
    complete = sum(each.unseen is None for each in results)
    return (
        f"    {make.__name__:<18}{len(holding.holds):5}"
        f" {'in a cache' if leaked else 'in use':<10} {min(costs) * 1e3:7.1f} ms,"
        f" {stop * 1e3:5.1f} ms, {complete} of {LOOKS}, {right} of {LOOKS}"
    )
