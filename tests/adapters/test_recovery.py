"""Whatever ends a hook, and wherever: no wait, hold or count is left behind.

A trace function raises an exception in our code, at one line after the other: what an
interrupt, a full stack or an empty memory may do.
"""

from __future__ import annotations

import asyncio
import itertools
import linecache
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

import pytest
from adapters.kinds import (
    asyncpg_pools,
    psycopg2_pools,
    psycopg_pools,
    sqlalchemy_pools,
)
from fix_core import book_of, null_pool_of
from greenlet import GreenletExit

import poolwatch
from poolwatch.runtime.guard import Guard

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings(
        # what is left lying when a look at a socket is cut short
        "ignore:.*:ResourceWarning",
        "ignore::pytest.PytestUnraisableExceptionWarning",
    ),
]

HERE = str(Path(poolwatch.__file__).parent)
SIZE = 2
BRIEF, PATIENT = 0.01, 30.0
"""Seconds that a request waits for a connection."""
KINDS = [
    sqlalchemy_pools.Engine,
    sqlalchemy_pools.AsyncEngine,
    psycopg2_pools.Threaded,
    psycopg_pools.Kept,
    psycopg_pools.AsyncKept,
    asyncpg_pools.Plain,
]
FAULTS = [
    ValueError,
    RecursionError,
    MemoryError,
    KeyboardInterrupt,
    SystemExit,
    GreenletExit,
    asyncio.CancelledError,
]


ELSEWHERE = [
    ("sqlalchemy-asyncpg", GreenletExit),  # of the greenlet in which SQLAlchemy runs
    ("asyncpg", KeyboardInterrupt),  # of the loop: a release is a task of its own
    ("asyncpg", SystemExit),
]


class Fault:
    """Raises at the n-th line of ours that this thread runs."""

    def __init__(self, kind, at):
        self.kind = kind
        self.at = at
        self.where = None

    def trace(self, frame, event, arg):
        if not frame.f_code.co_filename.startswith(HERE) or _is_apart(frame):
            return None
        back = frame.f_back
        ours = back is not None and back.f_code.co_filename.startswith(HERE)
        return self.at_line if ours else self.at_the_door

    def at_the_door(self, frame, event, arg):
        """What is raised at the first line is raised before the library's call."""
        return self.at_line if event == "line" else self.at_the_door

    def at_line(self, frame, event, arg):
        if event == "line":
            self.at -= 1
            if not self.at:
                self.where = f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno}"
                raise self.kind("of the test")
        return self.at_line

    def __enter__(self):
        sys.settrace(self.trace)
        return self

    def __exit__(self, *_):
        sys.settrace(None)


class RealFault(Fault):
    """Only at lines that can be interrupted: Python looks for signals in calls and
    loops, not between the end of a call and an assignment, nor between the end of a
    with block and the release of its lock.
    """

    def at_line(self, frame, event, arg):
        line = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()
        if CANNOT_RAISE.match(line):
            return self.at_line
        return super().at_line(frame, event, arg)


CANNOT_RAISE = re.compile(r"try:|with [\w.]+:|[\w: ]+( = \w+)* = (0|None|True|False)\b")
APART = {"explain_timeout", "_dead", "_on_pool_collected", "forget", "_dropped"}
APART |= {"__del__"}
"""A timeout is explained by a whole look, which is no hook. The others are called by
the garbage collector, in the middle of anything: Python prints what is raised there,
and CPython 3.11 crashes if a trace function raises it for a weak reference.
"""


def _is_apart(frame):
    while frame is not None and frame.f_code.co_name not in APART:
        frame = frame.f_back
    return frame is not None


@pytest.fixture(params=KINDS, ids=lambda kind: kind.name)
def kind(request):
    driver = request.param()
    yield driver
    driver.end()


@pytest.fixture
def pool(kind, postgres):
    pool = kind.make(postgres, size=SIZE, timeout=BRIEF)
    kind.timeout = PATIENT  # asyncpg's is given at each request, and limits its return
    yield pool
    with suppress(Exception):
        kind.run(kind.close, pool)


@pytest.fixture(autouse=True)
def lenient(monkeypatch):
    """A failure switches nothing off: the next line is to be tried as well."""

    monkeypatch.setattr(Guard, "failed", lambda guard, error: None)


class Trial:
    """One pool, and what is tried on it."""

    def __init__(self, kind, pool, book):
        self.kind = kind
        self.pool = pool
        self.book = book
        self.seen = set()
        """Where an exception was raised that the application has seen."""

    def _called(self, function, *args):
        """What it returns or raises. It runs where the kind runs everything."""
        if not self.kind.is_async:
            try:
                return function(*args), None
            except BaseException as error:
                return None, error

        async def call():
            try:
                return await function(*args), None
            except BaseException as error:
                return None, error

        return self.kind.run(call)

    def faulty(self, function, *args, fault):
        """The same with a fault on the way."""
        if not self.kind.is_async:
            with fault:
                return self._called(function, *args)

        async def call():
            try:
                with fault:
                    return await function(*args), None
            except BaseException as error:
                return None, error

        return self.kind.run(call)

    def give(self, connection):
        """As often as it takes: it may have been given back."""
        with suppress(Exception):
            self.kind.run(self.kind.give, self.pool, connection)

    def take_and_give(self, fault):
        connection, error = self.faulty(self.kind.take, self.pool, fault=fault)
        self.note(error, fault)
        if connection is None:
            return
        _, error = self.faulty(self.kind.give, self.pool, connection, fault=fault)
        self.note(error, fault)
        if error is not None:
            self.give(connection)

    def refused(self, fault):
        held = [self.take() for _ in range(SIZE)]
        self.kind.timeout = BRIEF
        connection, error = self.faulty(self.kind.take, self.pool, fault=fault)
        self.kind.timeout = PATIENT
        assert connection is None
        self.note(error, fault)
        for each in held:
            self.give(each)

    def nested(self, fault):
        held = self.take()
        self.take_and_give(fault)
        self.give(held)

    def note(self, error, fault):
        """The application sees the fault, or the pool's own word that it is empty."""
        if error is not None and not isinstance(error, self.kind.exhausted):
            assert type(error) is fault.kind, fault.where
            self.seen.add(fault.where)

    def check(self, where):
        """Nothing is left, and the pool is what it was."""
        if self.left():
            self.kind.collect()
        assert not self.left(), where
        held = [self.take(where) for _ in range(SIZE)]
        assert len(self.book.holds) == SIZE, where
        for each in held:
            self.kind.run(self.kind.give, self.pool, each)
        assert not self.left(), where

    def take(self, where="the beginning"):
        """One, as soon as there is one: psycopg_pool takes them back in a thread."""
        for _ in range(3000):
            connection, error = self._called(self.kind.take, self.pool)
            if error is None:
                return connection
        raise AssertionError(f"{where}: {error!r}")

    def left(self):
        book = self.book
        out = {hold.holder.hold_count for hold in self.samples}
        tables = book.waits, book.holds, book.blamed
        return [each for each in tables if each] or out != {0} or book.leaked


@pytest.fixture
def trial(kind, pool, instrument):
    instrument(pool)
    book = book_of(getattr(pool, "sync_engine", pool))
    trial = Trial(kind, pool, book)
    connection = trial.take()
    trial.samples = list(book.holds.values())
    kind.run(kind.give, pool, connection)
    return trial


WAYS = {
    "take_and_give": FAULTS,
    "refused": [MemoryError, KeyboardInterrupt],
    "nested": [MemoryError, KeyboardInterrupt],
}


@pytest.mark.parametrize(
    ("way", "fault"),
    [(way, fault) for way, faults in WAYS.items() for fault in faults],
)
def test_nothing_is_left(trial, way, fault):
    """At whichever line of ours it is raised.

    Each line meets at least one of the faults; all of them with POOLWATCH_EVERY_LINE=1.
    """
    if (trial.kind.name, fault) in ELSEWHERE:
        pytest.skip("it ends what runs the hook, rather than being raised out of it")
    step = 1 if os.environ.get("POOLWATCH_EVERY_LINE") else min(3, len(WAYS[way]))
    tried = 0
    for at in range(1 + WAYS[way].index(fault) % step, 1000, step):
        raised = Fault(fault, at)
        getattr(trial, way)(raised)
        if raised.where is None:
            break
        trial.check(f"{fault.__name__} at {raised.where}")
        tried += step
    assert tried > 10


def test_an_interrupted_return_is_one_return(instrument):
    """Two in the pool's queue would be lent to two threads."""
    pool = null_pool_of(pool_size=3)
    instrument(pool)
    for at in itertools.count():  # the first one, of no line, fills the caches
        connection, fault = pool.connect(), RealFault(KeyboardInterrupt, at)
        with suppress(KeyboardInterrupt), fault:
            connection.close()
        del connection
        queued = list(pool._pool.queue)
        assert len(queued) == len(set(map(id, queued))) == 1, fault.where
        if at and fault.where is None:
            break
    assert at > 10
