"""Who keeps a connection alive under asyncio."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import threading
from contextlib import AsyncExitStack, asynccontextmanager
from weakref import ref

import fix_references
import pytest
from helpers import until_async
from sqlalchemy import text
from sqlalchemy.ext.asyncio import (
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.pool import AsyncAdaptedQueuePool

taken = fix_references.taken
KEPT = {}
AWAITS = {"cr_code": "cr_await", "gi_code": "gi_yieldfrom", "ag_code": "ag_await"}
CURRENT = contextvars.ContextVar("current_session")


@pytest.fixture
async def engine(taken, tmp_path):
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path}/keepers.db",
        poolclass=AsyncAdaptedQueuePool,
        pool_size=10,
    )
    taken.watch(engine.sync_engine.pool)
    taken.task = asyncio.current_task
    yield engine
    KEPT.clear()
    await engine.dispose()


def awaited(task):
    """The files of the coroutines that a task is in, the outermost first."""
    files, following = [], [task.get_coro()]
    while following:
        inner = following.pop()
        for code, link in AWAITS.items():
            if hasattr(inner, code):
                files.append(getattr(inner, code).co_filename)
                following.append(getattr(inner, link))
                break
        else:  # the iterator of a coroutine, which has no attribute for it
            following += [
                each
                for each in gc.get_referents(inner)
                if any(hasattr(each, code) for code in AWAITS)
            ]
    return files


async def started(coroutine, name="job"):
    """A task that has come to the place where it waits for ever."""
    task = asyncio.create_task(coroutine, name=name)
    await asyncio.sleep(0)
    await until_async(lambda: not any("aiosqlite" in file for file in awaited(task)))
    return task


async def ended(*tasks):
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def look(taken):
    """Who keeps the only one; asked while the loop goes on."""
    result = await asyncio.to_thread(taken.look)
    assert result.unseen is None
    (found,) = result.paths.values()
    return found


async def test_waiting_task(taken, engine):
    """The frame that has the session, wherever the task has got to from there."""

    async def inner():
        await asyncio.Event().wait()

    async def handler():
        async with AsyncSession(engine) as session:
            await session.execute(text("select 1"))
            await inner()

    task = await started(handler())
    path = await look(taken)
    assert (path.kind, path.owner) == ("suspended frame", "job")
    assert (path.same_holder, path.is_user) == (True, True)
    assert (path.in_hand, path.near) == (True, True)
    assert path.frame.function == "handler"
    assert path.steps[0].startswith("local 'session' of test_waiting_task")
    assert path.steps[1:] == ("its connection",)
    await ended(task)


async def test_nameless_with(taken, engine):
    """A task shows also what it has given no name."""

    async def handler():
        async with engine.connect():
            await asyncio.Event().wait()

    task = await started(handler())
    path = await look(taken)
    assert (path.kind, path.in_hand) == ("suspended frame", True)
    assert path.frame.function == "handler"
    assert path.steps[0].startswith("a temporary of test_nameless_with")
    await ended(task)


async def test_running_task(taken, engine):
    """Asked from the task itself: its frame is running, and it is the task's."""
    async with engine.connect() as connection:
        path = taken.path()
    assert connection.closed
    assert path.kind == "running frame"
    assert path.owner == asyncio.current_task().get_name()
    assert path.same_holder
    assert "local 'connection' of test_running_task" in path.steps[0]


async def test_another_task(taken, engine):
    """Handed over to a task that lives on after the one that took it."""
    queue = asyncio.Queue()

    async def producer():
        await queue.put(await engine.connect())

    async def consumer():
        mine = await queue.get()
        try:
            await asyncio.Event().wait()
        finally:
            await mine.close()

    await asyncio.create_task(producer())
    task = await started(consumer(), "consumer")
    path = await look(taken)
    assert (path.kind, path.owner) == ("suspended frame", "consumer")
    assert (path.same_holder, path.in_hand, path.near) == (False, True, True)
    assert "local 'mine'" in path.steps[0]
    await ended(task)


async def test_in_run_sync(taken, engine):
    """Sync code in a greenlet that waits for the database."""
    entered, leave = asyncio.Event(), asyncio.Event()

    def in_sync(session):
        from sqlalchemy.util import await_only

        mine = session.connection()
        entered.set()
        await_only(leave.wait())
        mine.close()

    async def handler():
        async with AsyncSession(engine) as session:
            await session.run_sync(in_sync)

    task = await started(handler())
    await entered.wait()
    path = await look(taken)
    assert (path.kind, path.same_holder) == ("suspended frame", True)
    assert (path.in_hand, path.is_user, path.near) == (True, True, True)
    leave.set()
    await task


async def get_db(engine):
    """As a yield dependency is written."""
    async with AsyncSession(engine) as db:
        await db.execute(text("select 1"))
        yield db


async def test_yield_dependency(taken, engine):
    """Its generator waits, in the exit stack of a framework, for the request."""

    async def request():
        async with AsyncExitStack() as stack:
            await stack.enter_async_context(asynccontextmanager(get_db)(engine))
            await asyncio.Event().wait()

    task = await started(request())
    path = await look(taken)
    assert (path.kind, path.owner) == ("generator", "job")
    assert (path.in_hand, path.near, path.same_holder) == (True, True, True)
    assert path.steps[-2].startswith("local 'db' of suspended get_db")
    await ended(task)


async def test_async_for(taken, engine):
    """The frame of an async generator that is being waited for is the task's own."""

    async def rows():
        async with engine.connect() as connection:
            yield 1
            await connection.execute(text("select 1"))
            await asyncio.Event().wait()

    async def consumes():
        async for _ in rows():
            pass

    task = await started(consumes())
    path = await look(taken)
    assert (path.kind, path.in_hand) == ("suspended frame", True)
    assert path.frame.function == "rows"
    await ended(task)


async def test_finished_task(taken, engine):
    """A result that nobody fetches."""

    async def makes():
        return await engine.connect()

    KEPT["task"] = asyncio.create_task(makes())
    await asyncio.wait([KEPT["task"]])
    path = await look(taken)
    assert (path.kind, path.in_hand) == ("task result", False)
    assert path.steps[:3] == (
        f"global 'KEPT' of module {__name__}",
        "an entry of a dict",
        "the result of a task",
    )
    await KEPT.pop("task").result().close()


async def test_failed_task(taken, engine):
    """Its exception keeps the frames that have ended."""

    async def fails():
        connection = await engine.connect()
        raise ValueError(connection.closed)

    KEPT["task"] = asyncio.create_task(fails())
    await asyncio.wait([KEPT["task"]])
    path = await look(taken)
    assert (path.kind, path.in_hand) == ("exception", False)
    assert path.steps[-2].endswith(", which has ended")
    error = KEPT.pop("task").exception()
    await error.__traceback__.tb_frame.f_locals["connection"].close()
    del error


async def test_context_variable(taken, engine):
    """A session that a middleware put there and whose request went on without it."""

    async def job():
        session = AsyncSession(engine)
        await session.execute(text("select 1"))
        CURRENT.set(session)

    async def loop():
        await job()
        try:
            await asyncio.Event().wait()
        finally:
            await CURRENT.get().close()

    task = await started(loop())
    path = await look(taken)
    assert (path.kind, path.owner) == ("context variable", "job")
    assert not path.in_hand
    assert path.steps[0].startswith("context variable 'current_session' of")
    await ended(task)


async def test_async_scoped_session(taken, engine):
    """Its registry outlives the task that forgot to remove its session."""
    KEPT["registry"] = async_scoped_session(
        async_sessionmaker(engine), scopefunc=asyncio.current_task
    )

    async def job():
        await KEPT["registry"].execute(text("select 1"))

    await asyncio.create_task(job())
    path = await look(taken)
    assert (path.kind, path.in_hand) == ("global", False)
    assert path.steps[1:] == ("an entry of a dict", "its connection")
    (session,) = KEPT["registry"].registry.registry.values()
    await session.close()


async def test_scheduled_call(taken, engine):
    """The event loop will call something that has it."""
    connection = await engine.connect()
    handle = asyncio.get_running_loop().call_later(600, connection.close)
    handle, connection = ref(handle), ref(connection)
    path = await look(taken)
    assert not (path.in_hand and path.near and path.is_user)
    await connection().close()
    handle().cancel()


async def test_loop_in_another_thread(taken, engine):
    """Tasks of every loop that is seen on a thread, also if they hold nothing yet."""
    queue, stop = [], threading.Event()

    async def waits():
        mine = queue.pop()
        while not stop.is_set():  # noqa: ASYNC110 - that is another loop's event
            await asyncio.sleep(0.01)
        queue.append(mine)

    def loops():
        asyncio.run(waits())

    queue.append(await engine.connect())
    thread = threading.Thread(target=loops, name="loops")
    thread.start()
    await until_async(lambda: not queue)
    path = await look(taken)
    assert path.owner.startswith("Task-")
    assert not path.same_holder
    assert "local 'mine'" in path.steps[0]
    assert (path.in_hand, path.near) == (True, True)
    stop.set()
    await asyncio.to_thread(thread.join)
    await queue.pop().close()


async def test_prolongs_no_life(taken, engine):
    """What a task drops after a look is gone at once."""
    go_on, weak = asyncio.Event(), []

    class Canary:
        pass

    async def job():
        connection, mine = await engine.connect(), Canary()
        weak.append(ref(mine))
        await go_on.wait()
        del mine
        weak.append(weak[0]() is None)
        await connection.close()

    gc.collect()
    gc.disable()
    try:
        task = await started(job())
        for _ in range(2):
            await look(taken)
        done = ref(task)
        go_on.set()
        await task
        assert weak[1]
        del task
        await until_async(lambda: done() is None)
    finally:
        gc.enable()


async def test_many_tasks(taken, engine, capsys):
    """Ten thousand idle tasks: the takers' come first, the rest is said to be left."""

    async def idle():
        await asyncio.Event().wait()

    async def handler():
        async with engine.connect():
            await asyncio.Event().wait()

    tasks = [asyncio.create_task(idle()) for _ in range(10_000)]
    tasks.append(await started(handler()))
    await until_async(lambda: taken.holds)
    for _ in range(20):  # a busy machine may take the 50 ms away
        result = await asyncio.to_thread(taken.look, budget_s=0.05)
        if result.paths:
            break
    (path,) = result.paths.values()
    assert path.same_holder
    with capsys.disabled():
        print(f"\n10,000 tasks, budget 50 ms: left out: {result.left_out}")
    await ended(*tasks)
