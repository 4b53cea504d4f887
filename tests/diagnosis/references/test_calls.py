"""Is the function on the stack still in the call that checked the connection out?"""

from __future__ import annotations

import asyncio
import sys
import threading

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool

from poolwatch.diagnosis.references.calls import Stacks
from poolwatch.stacks.capture import pairs_of, resolve
from poolwatch.stacks.compare import count_and_pair

KEPT = []
PING = text("select 1")


@pytest.fixture
def engine(tmp_path):
    engine = create_engine(
        f"sqlite:///{tmp_path}/calls.db",
        poolclass=QueuePool,
        connect_args={"check_same_thread": False},
    )
    yield engine
    while KEPT:
        KEPT.pop().close()
    engine.dispose()


class Look:
    """The stack at the first checkout, and the one at ``now()``."""

    def __init__(self, engine):
        self.exact = ()
        self.proxy = None
        self._frames_now = None
        from sqlalchemy import event

        event.listen(engine.pool, "checkout", self._on_checkout)

    def _on_checkout(self, connection, record, proxy):
        if not self.exact:
            self.exact = pairs_of(sys._getframe())
            self.proxy = proxy

    def now(self):
        """In the place of the work that a job does."""
        frame = sys._getframe(1)
        now = pairs_of(frame)
        frames = []
        while frame is not None:
            frames.append(frame)
            frame = frame.f_back
        pair = resolve(self.exact), resolve(now)
        stacks = Stacks(self.exact, *pair, count_and_pair(*pair)[1])
        if not stacks.are_of_one_thread():
            return None
        frames.reverse()
        return stacks.callers_moved_on(), stacks.variables_differ(frames, self.proxy)


def test_the_same_call(engine):
    """It computes after its statement."""
    look = Look(engine)

    def job():
        session = Session(engine)
        session.execute(PING)
        KEPT.append(session)
        return look.now()

    assert job() == (False, False)


def test_the_statement_itself(engine):
    """Nothing of its line need have a value yet."""
    look = Look(engine)

    def job():
        connection = keep(engine.connect(), look.now())
        return connection[1]

    def keep(connection, seen):
        KEPT.append(connection)
        return connection, seen

    assert job() == (False, False)


def test_a_variable_without_a_value(engine):
    """The next job goes another way."""
    look = Look(engine)

    def job(first):
        if first:
            session = Session(engine)
            session.execute(PING)
            KEPT.append(session)
            return None
        return look.now()

    def work():
        return [job(first) for first in (True, False)][1]

    assert work() == (False, True)


def test_a_variable_with_another_connection(engine):
    """The next job had a connection of its own, and has returned it."""
    look = Look(engine)

    def job(first):
        connection = engine.connect()
        if first:
            KEPT.append(connection)
            return None
        connection.close()
        return look.now()

    def work():
        return [job(first) for first in (True, False)][1]

    assert work() == (False, True)


@pytest.mark.skipif(sys.version_info >= (3, 13), reason="reading changes nothing")
def test_a_function_that_is_being_traced_is_not_read(engine):
    """The interpreter would write what was read back into its variables."""
    look = Look(engine)

    def tracer(frame, event, arg):
        return look.now()

    def job(first):
        connection = engine.connect()
        if first:
            KEPT.append(connection)
            return None
        connection.close()
        return tracer(None, "", None)

    def work():
        return [job(first) for first in (True, False)][1]

    assert work() == (False, False)


def test_the_turns_of_a_loop_are_one_call(engine):
    """Its variable has the next connection by now: it may use the first one all the
    same."""
    look = Look(engine)

    def job():
        for _ in range(2):
            connection = engine.connect()
            KEPT.append(connection)
        return look.now()

    assert job() == (False, False)


def test_a_deleted_variable(engine):
    look = Look(engine)

    def job():
        connection = engine.connect()
        KEPT.append(connection)
        del connection
        return look.now()

    assert job() == (False, False)


def test_a_variable_of_a_comprehension(engine):
    """It has no value afterwards."""
    look = Look(engine)

    def job():
        KEPT.extend([each.connect() for each in (engine,)])
        return look.now()

    assert job() == (False, False)


def test_a_registry_is_reached_without_a_variable(engine):
    """What a view has in no variable shows nothing."""
    look = Look(engine)
    registry = {}

    def view():
        registry["session"].execute(PING)
        return look.now()

    registry["session"] = Session(engine)
    KEPT.append(registry["session"])
    assert view() == (False, False)


def test_a_caller_that_has_moved_on(engine):
    look = Look(engine)

    def job(leave):
        if leave:
            KEPT.append(engine.connect())
        return look.now()

    def work():
        job(True)
        return job(False)

    assert work()[0]


def test_a_generator_is_resumed_from_another_line(engine):
    look = Look(engine)

    def rows():
        with engine.connect():
            yield None
            yield look.now()

    def work():
        stream = rows()
        next(stream)
        seen = next(stream)
        stream.close()
        return seen

    assert work() == (False, False)


def test_recursion_into_another_branch(engine):
    look = Look(engine)

    def crawl(path):
        if path == "ab":
            connection = engine.connect()
            KEPT.append(connection)
            return None
        if path == "ac":
            return look.now()
        return [crawl(path + each) for each in "bc"][1]

    assert crawl("a") == (False, True)


async def test_an_await_is_like_a_call(engine):
    """What is assigned after it has a value once it is over."""
    look = Look(engine)

    async def connect():
        await asyncio.sleep(0)
        return engine.connect()

    async def job(first):
        if first:
            connection = await connect()
            KEPT.append(connection)
            return None
        return look.now()

    async def work():
        return [await job(first) for first in (True, False)][1]

    assert await work() == (False, True)


def test_nothing_is_called(engine):
    """Neither the variables nor their classes run any code."""
    look = Look(engine)
    called = []

    class Evil(Session):
        def __getattribute__(self, name):
            called.append(name)
            return super().__getattribute__(name)

        def __eq__(self, other):
            raise RuntimeError

        __hash__ = None

    def job():
        session = Evil(engine)
        Session.execute(session, PING)
        KEPT.append(session)
        called.clear()
        seen = look.now()
        return seen, [*called]

    assert job() == ((False, False), [])


def test_a_deep_stack(engine):
    """Ten thousand frames: not read to the end, and nothing is shown."""
    look = Look(engine)
    seen = []

    def dive(depth):
        if depth:
            dive(depth - 1)
        else:
            connection = engine.connect()
            KEPT.append(connection)
            seen.append(look.now())

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(11_000)
    try:
        threading.stack_size(256 * 1024 * 1024)
        thread = threading.Thread(target=dive, args=(10_000,))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(0)
        sys.setrecursionlimit(limit)
    assert seen == [None]
