"""``instrument(engine, trace_waits=True)``: a long wait is an event on the span."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest
from fix_core import book_of
from helpers import Driver, until, until_async
from opentelemetry.sdk.trace import TracerProvider
from sqlalchemy import event, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, QueuePool

import poolwatch
from poolwatch.agent.instrument import agent

tracer = TracerProvider(shutdown_on_exit=False).get_tracer("tests")


def full_pool() -> Any:
    return QueuePool(Driver, pool_size=1, max_overflow=0)


def wait_for(pool: Any) -> Any:
    """A wait of more than a millisecond in a span: returns the span's events."""
    held, waits = pool.connect(), book_of(pool).waits

    def give_back() -> None:
        until(lambda: waits)
        time.sleep(0.01)
        held.close()

    giver = threading.Thread(target=give_back)
    giver.start()
    with tracer.start_as_current_span("request") as span:
        pool.connect().close()
    giver.join()
    return span.events  # type: ignore[attr-defined]


def test_a_wait_is_an_event(instrument: Any) -> None:
    pool = full_pool()
    instrument(pool, name="orders", trace_waits=True)
    (found,) = wait_for(pool)
    assert found.name == "db.client.connection.wait"
    assert found.attributes["db.client.connection.pool.name"] == "orders"
    assert found.attributes["poolwatch.waited_s"] > 0.01
    assert "poolwatch.loop_lag_s" not in found.attributes


def test_no_wait_no_span_no_event(instrument: Any) -> None:
    pool = full_pool()
    instrument(pool, trace_waits=True)
    wait = pool.connect()
    wait.close()
    with tracer.start_as_current_span("request") as span:
        pool.connect().close()
    assert not span.events  # type: ignore[attr-defined]


def test_off_by_default(instrument: Any) -> None:
    pool = full_pool()
    instrument(pool)
    assert agent.ledger.observers.checked_out is None
    assert not wait_for(pool)


def test_other_pools_are_left_alone(instrument: Any) -> None:
    pool, other = full_pool(), full_pool()
    instrument(pool, trace_waits=True)
    instrument(other)
    assert not wait_for(other)
    instrument(pool)  # without it, again
    assert not wait_for(pool)


def test_nothing_is_left(instrument: Any) -> None:
    instrument(full_pool(), trace_waits=True)
    poolwatch.uninstrument()
    assert agent.ledger.observers.checked_out is None


async def test_the_lag_of_the_loop_is_told_apart(
    instrument: Any, tmp_path: Any
) -> None:
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path}/a.db",
        poolclass=AsyncAdaptedQueuePool,
        pool_size=1,
        max_overflow=0,
    )
    instrument(engine, trace_waits=True)
    events: Any = ()

    async def request() -> None:
        nonlocal events
        with tracer.start_as_current_span("request") as span:
            async with engine.connect() as connection:
                await connection.execute(text("SELECT 1"))
        events = span.events  # type: ignore[attr-defined]

    async with engine.connect():
        task = asyncio.create_task(request())
        ledger = next(iter(agent.ledger.pools.values()))
        await until_async(lambda: ledger.waits)
        await asyncio.sleep(0.02)
        loop = asyncio.get_running_loop()

        @event.listens_for(engine.sync_engine, "checkin", once=True)
        def be_late(*_: Any) -> None:
            loop.call_soon(time.sleep, 0.2)

    await task
    (found,) = events
    lag, waited = (found.attributes[f"poolwatch.{k}"] for k in LAG_AND_WAIT)
    assert 0.2 <= lag < waited
    await engine.dispose()


LAG_AND_WAIT = ("loop_lag_s", "waited_s")


def test_without_opentelemetry(apps: Any) -> None:
    done = apps.run(
        """
        import sys
        sys.modules["opentelemetry"] = None
        import poolwatch
        try:
            poolwatch.instrument(trace_waits=True)
        except poolwatch.PoolwatchError as error:
            print(error)
        """
    )
    assert done.stdout == (
        "trace_waits needs OpenTelemetry; install it with: "
        "python -m pip install 'poolwatch[otel]'\n"
    ), done.stderr


@pytest.mark.parametrize("value", [1, "yes", None])
def test_bad_values(value: Any) -> None:
    with pytest.raises(TypeError, match="trace_waits must be True or False"):
        poolwatch.instrument(trace_waits=value)
