"""Adoption, on every kind of pool: what was out, or waited, before the hooks came."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
from contextlib import suppress

import pytest
from fix_core import Look
from helpers import until

import poolwatch
from poolwatch.agent import attached
from poolwatch.agent.instrument import agent


@pytest.fixture
def pool(kind, postgres):
    server = postgres.as_role("postgres", "hunter2")
    made = kind.make(server, size=2, timeout=60.0)
    yield made
    with suppress(Exception):
        kind.run(kind.close, made)


@pytest.fixture
def attach(instrument):
    """Attaches, and undoes it after the test; returns the watch of the pool."""

    def attach(pool):
        told = []
        attached.obey({"undo": False, "directory": None}, told.append)
        assert told[0]["said"] == "attached", told
        return poolwatch.Watch(lambda: agent.source, agent.pools.id_of(pool))

    yield attach
    told = []
    attached.obey({"undo": True}, told.append)
    assert told[0]["said"] in ("undone", "not attached")
    assert agent.pools is None


def test_out_before(kind, pool, attach):
    """Nothing is guessed of it; its backend and what has it are known at once, and its
    return is counted."""
    connection = kind.run(kind.take, pool)
    backend = kind.run(kind.query, connection, "select pg_backend_pid()")
    watch = attach(pool)
    (hold,) = Look().holds(watch)
    assert (hold.held_s, hold.waited_s, hold.site) == (None, None, None)
    assert (hold.thread, hold.task, hold.stack) == (None, None, ())
    assert hold.adopted_s >= 0
    assert hold.backend_pid == backend
    assert "unknown" in hold.evidence[0]
    assert hold.verdict == "ok"
    stats = Look().pool(watch)
    assert (stats.checked_out, stats.unrecorded, stats.lost_slots) == (1, 0, 0)
    kind.run(kind.give, pool, connection)
    stats = Look().pool(watch)
    assert (stats.checked_out, stats.hold_s.count) == (0, 0)
    assert (stats.counters.checkouts, stats.counters.checkins) == (1, 1)
    again = kind.run(kind.take, pool)
    (hold,) = Look().holds(watch)
    assert hold.site is not None
    kind.run(kind.give, pool, again)
    assert Look().kinds() == []


def is_waiting(kind):
    """Whether the thread or task beside has come to its wait."""
    tasks = [o for o in gc.get_objects() if issubclass(type(o), asyncio.Task)]
    if any(task._fut_waiter and task.get_name() in kind.beside for task in tasks):
        return True
    frames = sys._current_frames()
    return any(
        frames[each.ident].f_code.co_name == "wait"
        for each in threading.enumerate()
        if each.name in kind.beside and each.ident in frames
    )


def test_waiting_before(kind, pool, attach):
    """It is a wait with its line; once it is served it is a hold."""
    if not kind.waits:
        pytest.skip("it raises at once")
    held = [kind.run(kind.take, pool) for _ in range(2)]
    request = kind.begin(kind.take, pool)
    until(lambda: is_waiting(kind))
    watch = attach(pool)
    (wait,) = until(lambda: Look().waits(watch))
    assert (wait.thread if wait.task is None else wait.task) in kind.beside
    assert wait.site.function == "take"
    assert wait.waited_s is None
    kind.run(kind.give, pool, held.pop())
    served = request.result(60)
    until(lambda: len(Look().holds(watch)) == 2)
    assert Look().waits(watch) == []
    kind.run(kind.give, pool, served)
    kind.run(kind.give, pool, held.pop())
    counters = Look().counters(watch)
    assert counters.checkouts == counters.checkins
