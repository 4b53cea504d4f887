"""Engines that were collected: they are in no picture, and in nobody's way."""

from __future__ import annotations

import gc
import threading
from contextlib import closing

import pytest
from fix_core import Look, null_pool_of
from sqlalchemy import create_engine, literal, select, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

import poolwatch
from poolwatch.adapters.connection_facts import connection_facts
from poolwatch.agent.instrument import agent
from poolwatch.agent.server_view import ServerView


def used(url, keep):
    engine = create_engine(url)
    with engine.connect() as connection:
        connection.execute(text("select 1"))
    return keep(engine)


@pytest.mark.parametrize(
    "keep",
    [lambda e: None, lambda e: e.dialect, lambda e: select(literal(1)).compile(e)],
    ids=["nothing", "its dialect", "a compiled statement"],
)
def test_a_collected_engine_is_gone(instrument, postgres, keep):
    instrument()
    others = {pool.id for pool in Look().process.pools}  # of other tests
    kept = used(postgres.url(), keep)
    gc.collect()
    assert {pool.id for pool in Look().process.pools} <= others
    assert set(agent.ledger.pools) <= others
    del kept


def test_the_servers_reader_survives_the_engine_it_began_with(instrument, postgres):
    instrument()
    others = {pool.id for pool in Look().process.pools}  # of other tests
    servers = ServerView(agent.ledger, connection_facts, agent.outages)

    def reading():
        (ours,) = [r for r in servers.readings(0.0) if not others.issuperset(r.pools)]
        return ours

    kept = [used(postgres.url(), lambda engine: engine)]
    reading()
    kept.append(used(postgres.url(), lambda engine: engine))
    assert len(reading().pools) == 2
    kept.pop(0)
    gc.collect()
    assert (len(reading().pools), reading().error) == (1, None)
    servers.close()
    kept.pop().dispose()


def test_a_mistake_of_ours_is_no_silence_of_the_server(
    instrument, postgres, monkeypatch, caplog
):
    """Nor does it reach the application's ``threading.excepthook``."""
    raised = []
    monkeypatch.setattr(threading, "excepthook", raised.append)
    watch = instrument(create_engine(postgres.url()))
    (book,) = agent.ledger.pools.values()
    monkeypatch.setattr(book, "find_dropped", lambda: 1 / 0)
    servers = ServerView(agent.ledger, connection_facts, agent.outages)
    (reading,) = servers.readings(0.0)
    assert reading.error == "the server view failed with ZeroDivisionError"
    assert reading.pools == (watch._pool_id,)
    assert reading.down is None
    assert not [each for each in caplog.messages if "does not answer" in each]
    assert raised == []


def test_pools_that_timed_out_and_are_gone(instrument):
    """What was said of them is not kept, however many an application makes."""
    instrument()
    for _ in range(70):
        pool = null_pool_of(pool_size=1, max_overflow=0, timeout=0.001)
        poolwatch.instrument(pool)
        with closing(pool.connect()), pytest.raises(PoolTimeoutError):
            pool.connect()
        pool.dispose()
    assert len(agent._timeout_notes._notes) <= 64
    assert len(agent._early_ticks) <= 64
