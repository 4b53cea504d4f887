"""Instrumented pools for tests, and snapshots of them."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers import Driver
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool

import poolwatch
from poolwatch.agent.instrument import agent, instrument_without_agent
from poolwatch.agent.watchdog import Watchdog
from poolwatch.ledger.pool import PoolLedger
from poolwatch.testing.owners import Owners


def null_pool_of(kind: type = QueuePool, **settings: Any) -> Any:
    """A pool without an engine, on a driver that does nothing."""
    return kind(Driver, **settings)


def book_of(target: Any) -> PoolLedger:
    """The books of an instrumented pool."""
    assert agent.pools is not None
    pool_id = agent.pools.id_of(target)
    assert pool_id is not None, f"{target} is not instrumented"
    return agent.ledger.pools[pool_id]


class Look:
    """A snapshot of this process, with accessors for tests."""

    def __init__(self) -> None:
        (self.process,) = poolwatch.snapshot().processes

    def pool(self, watch: poolwatch.Watch) -> Any:
        (found,) = [p for p in self.process.pools if p.id == watch._pool_id]
        return found

    def counters(self, watch: poolwatch.Watch) -> Any:
        return self.pool(watch).counters

    def holds(self, watch: poolwatch.Watch) -> list[Any]:
        return [h for h in self.process.holds if h.pool == watch._pool_id]

    def waits(self, watch: poolwatch.Watch) -> list[Any]:
        return [w for w in self.process.waits if w.pool == watch._pool_id]

    def sites(self, watch: poolwatch.Watch) -> dict[str, Any]:
        return {
            s.site.function: s for s in self.process.sites if s.pool == watch._pool_id
        }

    def kinds(self) -> list[str]:
        return [finding.kind for finding in self.process.findings]


@pytest.fixture
def socket_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The test's own socket directory, with a short path: a socket's is limited."""
    directory = Path(tempfile.mkdtemp(prefix="pw", dir="/tmp"))
    monkeypatch.setenv("POOLWATCH_DIR", str(directory))
    yield directory
    shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def instrument(socket_dir: Path) -> Iterator[Callable[..., poolwatch.Watch]]:
    """``poolwatch.instrument``, undone after the test."""
    poolwatch.uninstrument()
    yield poolwatch.instrument
    poolwatch.uninstrument()
    assert agent.ledger.pools == {}


@pytest.fixture
def owners(socket_dir: Path) -> Iterator[Owners]:
    """All pools are watched as in a run of tests: nobody can look from outside. Those
    who answer for what is taken; it is for the test to say who that is.
    """
    poolwatch.uninstrument()
    observer = Owners()
    agent.ledger.observers.append(observer)
    instrument_without_agent()
    yield observer
    agent.ledger.observers.remove(observer)
    poolwatch.uninstrument()
    agent.listens = True


@pytest.fixture
def sqlite(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Makes engines on one SQLite file, with a QueuePool unless told otherwise."""
    engines: list[Any] = []

    def make(**settings: Any) -> Any:
        settings.setdefault("poolclass", QueuePool)
        engine = create_engine(f"sqlite:///{tmp_path}/test.db", **settings)
        engines.append(engine)
        return engine

    yield make
    for engine in engines:
        engine.dispose()


@pytest.fixture
def watchdog(monkeypatch: pytest.MonkeyPatch) -> Watchdog:
    """A watchdog that looks only when the test says so. The agent's own stays quiet."""
    monkeypatch.setattr(agent._guard, "tripped", True)
    return Watchdog(agent.source, agent.ledger)
