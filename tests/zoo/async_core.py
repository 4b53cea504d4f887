"""Faults under asyncio."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from zoo.app import PING, QUERY, ROWS
from zoo.registry import AIOSQLITE, fault

_registry: dict[str, Any] = {}


async def serve_request(engine: AsyncEngine, begun: asyncio.Event) -> None:
    session = _registry["request"] = AsyncSession(engine)
    await session.execute(PING)  # site: cancelled
    begun.set()
    await asyncio.sleep(30)
    await session.close()


@fault(
    "leaked.orphaned",
    at="cancelled",
    also="held_across_io",
    long_after=30,
    world=AIOSQLITE,
)
async def cancelled_request(zoo: Any) -> None:
    """The client went away: the task is cancelled before it closes its session."""
    begun = asyncio.Event()
    task = asyncio.create_task(serve_request(zoo.engine, begun))
    await begun.wait()
    await asyncio.sleep(0.1)
    task.cancel()
    with suppress(asyncio.CancelledError):
        await task


async def connect_once(engine: AsyncEngine) -> None:
    _registry["main"] = connection = await engine.connect()  # site: finished
    await connection.execute(PING)


@fault("leaked.orphaned", at="finished", long_after=30, world=AIOSQLITE)
async def finished_task(zoo: Any) -> None:
    """A task has finished and left its connection in a registry."""
    await asyncio.create_task(connect_once(zoo.engine))


@fault("leaked.orphaned", at="finished", long_after=30, world=AIOSQLITE)
async def finished_startup(zoo: Any) -> None:
    """gather() at start-up: one of the tasks leaves its connection behind."""
    await asyncio.gather(asyncio.sleep(0), connect_once(zoo.engine))


async def refresh(engine: AsyncEngine, begun: asyncio.Event) -> None:
    connection = await engine.connect()  # site: fire_and_forget
    await connection.execute(PING)
    begun.set()
    await asyncio.get_running_loop().create_future()


@fault("leaked.collected", also="leaked.orphaned", long_after=30, world=AIOSQLITE)
async def fire_and_forget(zoo: Any) -> None:
    """A task held by nobody waits for something held by nobody: garbage."""
    begun = asyncio.Event()
    asyncio.create_task(refresh(zoo.engine, begun))  # noqa: RUF006 - that is the fault
    await begun.wait()
    await asyncio.sleep(0.1)
    gc.collect()


@fault("leaked.orphaned", at="finished", long_after=30, world=AIOSQLITE)
def loop_closed(zoo: Any) -> None:
    """asyncio.run() per job with a global engine: the loop is gone, the hold is not."""
    asyncio.run(connect_once(zoo.engine))
    zoo.go_on()


async def count(engine: AsyncEngine) -> Any:
    connection = await engine.connect()  # site: async_dropped
    return (await connection.execute(PING)).scalar()


@fault("leaked.collected", long_after=30, world=AIOSQLITE)
async def async_dropped(zoo: Any) -> None:
    """connect() without close(): the collector warns, but not where it was taken."""
    await count(zoo.engine)
    gc.collect()


async def find(make: Any) -> None:
    session = make()
    await session.execute(PING)  # site: async_session_dropped


@fault("leaked.collected", long_after=30, world=AIOSQLITE)
async def async_session_dropped(zoo: Any) -> None:
    """An AsyncSession without async with."""
    await find(async_sessionmaker(zoo.engine))
    gc.collect()


async def get_session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session:
        yield session


async def handle(engine: AsyncEngine) -> None:
    _registry["dependency"] = dependency = get_session(engine)
    session = await anext(dependency)  # type: ignore[arg-type]
    await session.execute(PING)  # site: async_dependency


@fault("leaked.abandoned", at="async_dependency", world=AIOSQLITE)
async def async_dependency_stored(zoo: Any) -> None:
    """An async yield dependency that is never exhausted; its task goes on."""
    await handle(zoo.engine)


async def consume(engine: AsyncEngine, jobs: asyncio.Queue[str]) -> None:
    while True:
        job = await jobs.get()
        await run_job(engine, job)


async def run_job(engine: AsyncEngine, job: str) -> None:
    _registry[job] = connection = await engine.connect()  # site: consumer
    await connection.execute(PING)


@fault("leaked.abandoned", at="consumer", world=AIOSQLITE)
async def consumer_goes_on(zoo: Any) -> None:
    """A consumer task forgot a connection in one job and waits for the next."""
    jobs: asyncio.Queue[str] = asyncio.Queue()
    _registry["consumer"] = asyncio.create_task(consume(zoo.engine, jobs))
    await jobs.put("a")


async def first_rows(engine: AsyncEngine) -> None:
    connection = await engine.connect()  # site: async_stream
    result = await connection.stream(ROWS)
    _registry["stream"] = connection, result
    await result.fetchmany(2)


@fault("leaked.abandoned", at="async_stream", world=AIOSQLITE)
async def async_stream_kept(zoo: Any) -> None:
    """A streaming result that is never read to its end."""
    await first_rows(zoo.engine)


async def failing(engine: AsyncEngine) -> None:
    session = AsyncSession(engine)
    await session.execute(PING)  # site: failed_task
    raise ValueError("no such order")


@fault("leaked.orphaned", at="failed_task", long_after=30, world=AIOSQLITE)
async def failed_task_kept(zoo: Any) -> None:
    """A task that failed is kept, its exception with it, and the session with that."""
    _registry["task"] = task = asyncio.create_task(failing(zoo.engine))
    await asyncio.wait([task])
    del task


async def scoped(db: Any) -> None:
    await db.execute(PING)  # site: async_scoped


@fault("leaked.orphaned", at="async_scoped", long_after=30, world=AIOSQLITE)
async def async_scoped_not_removed(zoo: Any) -> None:
    """async_scoped_session without remove(): it also keeps the task that is done."""
    _registry["db"] = db = async_scoped_session(
        async_sessionmaker(zoo.engine), asyncio.current_task
    )
    await asyncio.create_task(scoped(db))


async def outer(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:  # site: async_outer
        await connection.execute(PING)
        await inner(engine)


async def inner(engine: AsyncEngine) -> None:
    async with engine.connect() as own:  # site: async_inner
        while True:
            await own.execute(QUERY)


@fault("nested", at="async_outer async_inner", long_after=30, world=AIOSQLITE)
async def async_nested_held(zoo: Any) -> None:
    """A coroutine takes a second connection inside its caller's."""
    await outer(zoo.engine)


@fault(
    "nested",
    at="async_outer async_inner",
    also="pool_deadlock exhausted",
    long_after=30,
    world=AIOSQLITE,
    pool_size=1,
    max_overflow=0,
)
async def async_nested_waiting(zoo: Any) -> None:
    """With a pool of one the task waits for itself."""
    await outer(zoo.engine)


async def transfer(engine: AsyncEngine, meet: asyncio.Barrier) -> None:
    async with AsyncSession(engine) as session:
        await session.execute(PING)  # site: task_holds
        await meet.wait()
        await audit(engine)


async def audit(engine: AsyncEngine) -> None:
    async with AsyncSession(engine) as session:
        await session.execute(PING)  # site: task_wants


@fault(
    "pool_deadlock",
    at="task_holds task_wants",
    also="nested exhausted",
    long_after=30,
    world=AIOSQLITE,
    pool_size=3,
    max_overflow=0,
)
async def deadlock_of_tasks(zoo: Any) -> None:
    """As many tasks as connections, and each wants a second one."""
    meet = asyncio.Barrier(3)
    await asyncio.gather(*(transfer(zoo.engine, meet) for _ in range(3)))


async def with_timeout(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:  # site: timeout_outer
        await connection.execute(PING)
        async with asyncio.timeout(30), engine.connect() as own:  # site: timeout_inner
            while True:
                await own.execute(QUERY)


@fault("nested", at="timeout_outer timeout_inner", long_after=30, world=AIOSQLITE)
async def nested_inside_a_timeout(zoo: Any) -> None:
    """The second one is taken below asyncio.timeout()."""
    await with_timeout(zoo.engine)
