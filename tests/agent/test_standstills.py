"""Pools at a standstill: what is read of threads and tasks, and when."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from weakref import ref

import pytest
from fix_core import Look
from helpers import until, until_async
from sqlalchemy import text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.orm import Session

from poolwatch.agent.waiting import reading
from poolwatch.agent.waiting.reading import BlockedReading
from poolwatch.diagnosis.wait_graph import task_node, thread_node

ONE = text("SELECT 1")


@pytest.fixture
def engine(instrument, sqlite):
    engine = sqlite(pool_size=1, max_overflow=0, pool_timeout=6)
    instrument(engine, name="app")
    return engine


def deadlock():
    found = [f for f in Look().process.findings if f.kind == "pool_deadlock"]
    return found[0] if found else None


def job(engine, executor):
    """Holds the only connection and waits for a worker that wants one."""

    def part():
        with suppress(PoolTimeoutError), engine.connect() as connection:
            connection.execute(ONE)

    with engine.connect() as connection:
        connection.execute(ONE)
        executor.submit(part).result()


def test_a_deadlock_is_told_and_ends(engine):
    with ThreadPoolExecutor(1) as executor:
        thread = threading.Thread(target=job, args=(engine, executor))
        thread.start()
        until(deadlock)
        found = deadlock()
        assert "other threads or tasks" in found.text
        assert (len(found.holds), len(found.waits)) == (1, 1)
        thread.join()
    assert deadlock() is None


def test_the_note_of_a_timeout_tells_it(instrument, sqlite):
    """Its own request waits no more; the agent has seen it before."""
    engine = sqlite(pool_size=1, max_overflow=0, pool_timeout=3)
    instrument(engine, name="app")

    async def holds():
        with Session(engine) as session:
            session.execute(ONE)
            await asyncio.sleep(0.1)

    async def wants():
        await asyncio.sleep(0.05)
        with Session(engine) as session:
            session.execute(ONE)

    async def main():
        await asyncio.gather(holds(), wants())

    with pytest.raises(PoolTimeoutError) as caught:
        asyncio.run(main())
    (note,) = caught.value.__notes__
    assert "pool_deadlock" in note
    assert "event loop of thread MainThread" in note


def test_nothing_is_read_of_a_pool_that_moves(engine, monkeypatch):
    def read(_):
        raise AssertionError

    monkeypatch.setattr(reading, "blocked_in", read)
    with engine.connect():
        assert Look().process.left_out == ()


def test_what_was_not_read_is_left_out(engine, monkeypatch):
    """Then nobody is called stuck."""
    monkeypatch.setattr(reading, "_BUDGET_S", -1.0)
    with ThreadPoolExecutor(1) as executor:
        thread = threading.Thread(target=job, args=(engine, executor))
        thread.start()
        until(lambda: Look().process.left_out)
        assert deadlock() is None
        thread.join()


def test_a_failed_reading_is_told_and_harms_nobody(engine, monkeypatch):
    def fails(self, users):
        raise SystemError

    monkeypatch.setattr(BlockedReading, "read", fails)
    with ThreadPoolExecutor(1) as executor:
        thread = threading.Thread(target=job, args=(engine, executor))
        thread.start()
        (what,) = until(lambda: Look().process.left_out)
        assert "SystemError" in what
        assert deadlock() is None
        thread.join()


class Thing:
    pass


def test_no_frame_is_kept(engine):
    things = []

    def holds(executor):
        thing = Thing()
        things.append(ref(thing))
        job(engine, executor)

    with ThreadPoolExecutor(1) as executor:
        thread = threading.Thread(target=holds, args=(executor,))
        thread.start()
        until(deadlock)
        thread.join()
    gc.collect()
    assert things[0]() is None


def test_code_of_the_application_is_not_called(engine):
    """Tasks and variables of classes that raise whatever is asked."""

    class Hostile:
        def __getattribute__(self, name):
            raise SystemError

    class HostileTask(asyncio.Task):
        __hash__ = asyncio.Task.__hash__

        def __eq__(self, other):
            raise SystemError

        @property
        def _fut_waiter(self):
            raise SystemError

    async def holds(loop):
        hostile = Hostile()  # noqa: F841 - it is in a variable of the task
        with engine.connect() as connection:
            connection.execute(ONE)
            executor = ThreadPoolExecutor(1)
            await loop.run_in_executor(executor, wants)

    def wants():
        hostile = Hostile()  # noqa: F841
        with suppress(PoolTimeoutError):
            engine.connect()

    async def main():
        loop = asyncio.get_running_loop()
        await HostileTask(holds(loop), loop=loop)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    until(lambda: Look().process.waits and Look().process.waits[0].waited_s > 1.5)
    assert Look().process.left_out == ()
    thread.join()


async def read(task):
    """What a task waits for: the nodes that it needs besides its event loop."""

    def look():
        found = BlockedReading(())
        try:
            found.read([task_node(task)])
        finally:
            found.forget()
        return found.blocked

    await asyncio.sleep(0.05)
    blocked = await asyncio.to_thread(look)
    groups = blocked[task_node(task)].needs
    assert groups[0][0][0] == "event loop"
    return [set(group) for group in groups[1:]]


async def directly(inner):
    await inner[0]


async def gathered(inner):
    await asyncio.gather(*inner)


async def shielded(inner):
    await asyncio.shield(inner[0])


async def waited(inner):
    await asyncio.wait(inner)


async def in_a_generator(inner):
    async def numbers():
        await inner[0]
        yield 1

    async for _ in numbers():
        pass


@pytest.mark.parametrize(
    ("function", "number"),
    [(directly, 1), (gathered, 2), (shielded, 1), (waited, 2), (in_a_generator, 1)],
)
async def test_what_a_task_awaits(function, number):
    """Other tasks, directly or through asyncio's own futures."""
    inner = [asyncio.create_task(asyncio.Event().wait()) for _ in range(2)]
    task = asyncio.create_task(function(inner))
    assert await read(task) == [set(map(task_node, inner[:number]))]
    for each in (task, *inner):
        each.cancel()


async def test_a_task_that_will_go_on_by_itself():
    """It sleeps, has a timeout, or waits for something that nobody is known for."""
    inner = asyncio.create_task(asyncio.Event().wait())

    async def sleeps():
        await asyncio.sleep(60)

    async def in_time():
        async with asyncio.timeout(60):
            await asyncio.shield(inner)

    async def waits_for():
        await asyncio.wait_for(asyncio.shield(inner), 60)

    async def waits_a_while():
        await asyncio.wait([inner], timeout=60)

    async def queue():
        await asyncio.Queue().get()

    for function in (sleeps, in_time, waits_for, waits_a_while, queue):
        task = asyncio.create_task(function())
        assert await read(task) == [], function.__name__
        task.cancel()
    inner.cancel()


async def test_a_task_that_waits_for_a_thread():
    go_on = threading.Event()
    idents = []

    def work():
        idents.append(threading.get_ident())
        go_on.wait(60)

    task = asyncio.create_task(asyncio.to_thread(work))
    found = await read(task)
    go_on.set()
    await task
    assert found == [{thread_node(idents[0])}]


async def test_tasks_of_anyio():
    """A limiter, its lock, its task group and its threads."""
    import anyio.to_thread

    limiter, lock = anyio.CapacityLimiter(1), anyio.Lock()
    go_on = threading.Event()
    idents = []

    def work():
        idents.append(threading.get_ident())
        go_on.wait(60)

    async def first():
        async with lock:
            await anyio.to_thread.run_sync(work, limiter=limiter)

    async def queued():
        await anyio.to_thread.run_sync(work, limiter=limiter)

    async def locked():
        async with lock:
            pass

    async def grouped():
        async with anyio.create_task_group() as group:
            group.start_soon(queued)

    async def in_time():
        with anyio.fail_after(60):
            await queued()

    tasks = [asyncio.create_task(first())]
    await until_async(lambda: idents)
    tasks += [asyncio.create_task(each()) for each in (queued, locked, grouped)]
    late = asyncio.create_task(in_time())
    found = [await read(task) for task in tasks]
    assert await read(late) == []
    go_on.set()
    await asyncio.gather(*tasks, late)
    assert found[0] == [{thread_node(idents[0])}]
    assert [kind for ((kind, _),) in found[1]] == ["limiter"]
    assert [kind for ((kind, _),) in found[2]] == ["lock"]
    assert len(found[3][0]) == 1
