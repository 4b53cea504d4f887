"""Pools whose connection proxies are known, and a look at who keeps them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import ref

import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.pool import QueuePool

from poolwatch.diagnosis.references.path import ReferencePath
from poolwatch.diagnosis.references.search import SearchResult, find_paths


class Taken:
    """What was taken from the pools of a test: weak references to proxies."""

    def __init__(self) -> None:
        self.holds: dict[str, Any] = {}
        self.takers: dict[str, Any] = {}
        self.task: Callable[[], Any] | None = None

    def watch(self, pool: Any) -> Any:
        event.listen(pool, "checkout", self._on_checkout)
        return pool

    def _on_checkout(self, dbapi_connection: Any, record: Any, proxy: Any) -> None:
        hold = f"h{len(self.holds) + 1}"
        self.holds[hold] = ref(proxy)
        self.takers[hold] = threading.get_ident(), self.task and ref(self.task())

    def look(self, **settings: Any) -> SearchResult:
        """A look as the agent takes it: from a thread of its own."""
        results: list[SearchResult] = []

        def agent() -> None:
            settings.setdefault("budget_s", 5.0)  # the heap of a long test run is large
            settings.setdefault("nodes", 20_000_000)
            results.append(find_paths(self.holds, holders=self.takers, **settings))

        thread = threading.Thread(target=agent, name="agent")
        thread.start()
        thread.join()
        return results[0]

    def path(self, **settings: Any) -> ReferencePath:
        """Who keeps the only connection that is out."""
        (found,) = self.look(**settings).paths.values()
        return found


@pytest.fixture
def taken() -> Taken:
    return Taken()


@pytest.fixture
def pooled(taken: Taken, tmp_path: Any) -> Iterator[Any]:
    """An engine on a SQLite file; all that is taken from it is known to ``taken``."""
    engine = create_engine(
        f"sqlite:///{tmp_path}/keepers.db",
        poolclass=QueuePool,
        pool_size=20,
        connect_args={"check_same_thread": False},
    )
    taken.watch(engine.pool)
    yield engine
    engine.dispose()


@contextmanager
def running(function: Callable[..., Any], name: str = "worker") -> Iterator[None]:
    """``function(ready, stop)`` in a thread, as long as the block lasts."""
    ready, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=function, args=(ready, stop), name=name)
    thread.start()
    try:
        assert ready.wait(60)
        yield
    finally:
        stop.set()
        thread.join(60)
