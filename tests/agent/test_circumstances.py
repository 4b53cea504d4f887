"""The circumstances that the agent collects, in the remedies of real findings."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from helpers import until
from sqlalchemy import text
from sqlalchemy.orm import Session

import poolwatch
from poolwatch.agent import circumstances
from poolwatch.agent.instrument import agent
from poolwatch.model import Finding

PING = text("SELECT 1")
kept: dict[str, Any] = {}


@pytest.fixture
def engine(
    instrument: Callable[..., object], sqlite: Callable[..., Any]
) -> Iterator[Any]:
    engine = sqlite()
    instrument(engine, long_after=0.001)
    yield engine
    kept.clear()


def finding(kind: str) -> Finding:
    """The finding of that kind, once further snapshots have confirmed it."""
    found: list[Finding] = []

    def is_there() -> bool:
        (process,) = poolwatch.snapshot().processes
        found[:] = [each for each in process.findings if each.kind == kind]
        return bool(found)

    until(is_there)
    return found[0]


def forget(engine: Any) -> None:
    kept["connection"] = engine.connect()


def test_nothing_special(engine: Any) -> None:
    forget(engine)
    assert finding("leaked.abandoned").remedy.startswith("Use a with block")


def end_of_the_transaction(engine: Any) -> None:
    kept["connection"] = connection = engine.connect()
    with connection.begin():
        connection.execute(PING)


def test_the_source_of_the_call_site(engine: Any) -> None:
    end_of_the_transaction(engine)
    assert "ends the transaction" in finding("leaked.abandoned").remedy


@contextmanager
def unit_of_work(engine: Any) -> Iterator[Session]:
    kept["session"] = session = Session(engine)
    yield session


def ineffective_block(engine: Any) -> None:
    with unit_of_work(engine) as session:
        session.execute(PING)


def test_a_block_that_has_ended(engine: Any) -> None:
    ineffective_block(engine)
    assert "has not returned the connection" in finding("leaked.abandoned").remedy


def rows(engine: Any) -> Iterator[Any]:
    with engine.connect() as connection:
        kept["connection"] = connection  # so that the path does not show the generator
        yield from connection.execute(PING)


def left_early(engine: Any) -> None:
    kept["rows"] = stream = rows(engine)
    next(stream)


def test_a_block_in_a_generator_may_not_have_ended(engine: Any) -> None:
    left_early(engine)
    remedy = finding("leaked.abandoned").remedy
    assert "generator" in remedy
    assert "has not returned the connection" not in remedy


def test_a_dropped_connection(engine: Any) -> None:
    def drop() -> None:
        cycle = [engine.connect()]
        cycle.append(cycle)

    drop()
    gc.collect()
    assert "no close() reached the pool" in finding("leaked.collected").proof


def test_a_task_that_is_known_to_have_been_cancelled(engine: Any) -> None:
    async def job() -> None:
        forget(engine)
        await asyncio.sleep(30)

    async def main() -> str:
        task = asyncio.create_task(job())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.wait([task])
        return finding("leaked.orphaned").remedy

    assert "The task was cancelled" in asyncio.run(main())


def outer_and_inner(engine: Any, connect: Callable[[], Any]) -> str:
    outer = connect()
    with engine.connect() as inner:
        inner.execute(PING)
        remedy = finding("nested").remedy
    outer.close()
    return remedy


def test_an_outer_connection_without_a_statement(engine: Any) -> None:
    assert "No statement was seen" in outer_and_inner(engine, engine.connect)


def test_statements_of_a_raw_connection_are_not_seen(engine: Any) -> None:
    remedy = outer_and_inner(engine, engine.raw_connection)
    assert "No statement was seen" not in remedy


def test_no_source_is_parsed_in_the_applications_thread(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The note of a timeout is written there, perhaps by an event loop's thread."""
    forget(engine)
    finding("leaked.abandoned")
    calls: list[object] = []
    monkeypatch.setattr(circumstances, "_of_source", lambda *_: calls.append(_) or ())
    agent.source.process(search=False)
    assert calls == []
    agent.source.process()
    assert calls != []


def test_a_failure_costs_only_the_words(
    engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError

    monkeypatch.setattr(circumstances, "_of_source", fail)
    forget(engine)
    assert finding("leaked.abandoned").remedy.startswith("Use a with block")
