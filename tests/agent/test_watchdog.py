"""The log: a leak once, and once more if it comes back."""

from __future__ import annotations

import gc
import logging
import threading
from contextlib import closing

import pytest
from fix_core import null_pool_of
from helpers import until
from sqlalchemy.exc import TimeoutError  # noqa: A004

import poolwatch
from poolwatch.agent.instrument import agent

KEPT = {}


@pytest.fixture(autouse=True)
def no_agent(socket_dir, caplog):
    caplog.set_level(logging.INFO, "poolwatch")
    agent.close()
    yield
    poolwatch.uninstrument()


def said(caplog):
    return [
        (r.levelname, r.getMessage()) for r in caplog.records if r.name == "poolwatch"
    ]


def test_a_leak_is_said_once_and_once_more_when_it_returns(watchdog, caplog):
    """WARNING with the call site and the stack, then INFO "returned after"."""
    pool = null_pool_of()
    poolwatch.instrument(pool, name="orders")

    def forget():
        KEPT["connection"] = pool.connect()

    thread = threading.Thread(target=forget, name="boot")
    thread.start()
    thread.join()
    until(lambda: watchdog.tick() or said(caplog))
    ((level, text),) = said(caplog)
    assert level == "WARNING"
    assert (
        "leak on pool 'orders': connection checked out at agent/test_watchdog.py:"
        in text
    )
    assert "thread boot checked it out and has ended" in text
    assert "in forget" in text
    KEPT.pop("connection").close()
    watchdog.tick()
    assert said(caplog)[1][0] == "INFO"
    assert "returned after" in said(caplog)[1][1]
    watchdog.tick()
    assert len(said(caplog)) == 2


def test_a_dropped_connection_is_said(watchdog, caplog):
    """It came back by itself, which nobody would notice."""
    pool = null_pool_of()
    poolwatch.instrument(pool, name="orders")
    pool.connect()
    gc.collect()
    watchdog.tick()
    watchdog.tick()
    ((level, text),) = said(caplog)
    assert level == "WARNING"
    assert "returned by garbage collection only" in text


def test_many_leaks_of_one_place_are_one_line(watchdog, caplog):
    """Hundreds at once do not flood the log; each is told once all the same."""
    pool = null_pool_of(pool_size=320)
    poolwatch.instrument(pool)

    def forget(number):
        KEPT[number] = pool.connect()

    def leak(numbers):
        for number in numbers:
            forget(number)

    for numbers in (range(300), range(300, 303)):
        thread = threading.Thread(target=leak, args=(numbers,))
        thread.start()
        thread.join()
        told = len(said(caplog)) + 1
        agent.source.forget()  # what the last search cost
        until(lambda told=told: watchdog.tick() or len(said(caplog)) == told)
    first, second = [text for _, text in said(caplog)]
    assert "(and 299 more there)" in first
    assert "(and 2 more there)" in second
    for connection in KEPT.values():
        connection.close()
    KEPT.clear()
    watchdog.tick()
    assert "303 connections leaked at" in said(caplog)[2][1]


def test_nothing_is_said_of_honest_holds(watchdog, caplog):
    """Not of a short one, not of a declared one, not of one in use."""
    pool = null_pool_of()
    poolwatch.instrument(pool, long_after=1e-9)
    with poolwatch.long_hold("LISTEN loop"):
        declared = pool.connect()
    in_use = pool.connect()
    watchdog.tick()
    assert said(caplog) == []
    declared.close()
    in_use.close()


def full(caplog):
    return [each for each in said(caplog) if "is full for the first time" in each[1]]


def test_a_full_pool_is_said_once(watchdog, caplog):
    """The first request that finds no free connection: who holds them, by call site."""
    pool = null_pool_of(pool_size=2, max_overflow=0, timeout=0.01)
    poolwatch.instrument(pool, name="orders")
    held = [pool.connect() for _ in range(2)]
    watchdog.tick()
    assert said(caplog) == []  # both are out, and nobody wants a third
    with pytest.raises(TimeoutError):
        pool.connect()
    for each in held:
        each.close()
    watchdog.tick()
    ((level, text),) = full(caplog)
    assert level == "WARNING"
    assert text.startswith(
        "pool 'orders' is full for the first time: 2 connections out, and another one "
        "was requested; held by agent/test_watchdog.py:"
    )
    assert " (2) (logged once" in text
    held = [pool.connect() for _ in range(2)]
    with pytest.raises(TimeoutError):
        pool.connect()
    watchdog.tick()
    assert len(full(caplog)) == 1


def test_a_pool_is_full_when_its_overflow_is_used_up(watchdog, caplog):
    pool = null_pool_of(pool_size=1, max_overflow=1)
    poolwatch.instrument(pool, name="orders")
    with closing(pool.connect()):
        watchdog.tick()
        assert said(caplog) == []
        with closing(pool.connect()):
            watchdog.tick()
    ((_, text),) = full(caplog)
    assert "2 connections out, the overflow included; held by" in text


def test_a_tick_reads_the_gauges_of_a_pool_once(watchdog):
    poolwatch.instrument(null_pool_of(), name="orders")
    (ledger,) = agent.ledger.pools.values()
    read, reads = ledger.gauges, []
    ledger.gauges = lambda: reads.append(1) or read()
    watchdog.tick()
    assert len(reads) == 1


def test_gauges_that_fail_do_not_end_a_tick(watchdog, caplog):
    """Those of a pool class of the application, for example."""
    poolwatch.instrument(null_pool_of(), name="orders")
    (ledger,) = agent.ledger.pools.values()
    ledger.gauges = lambda: 1 / 0
    watchdog.tick()
    assert said(caplog) == []
