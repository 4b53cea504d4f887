"""Innocents under asyncio."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from sqlalchemy import text
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import Session
from zoo.app import PING, QUERY, ROWS
from zoo.registry import AIOSQLITE, innocent


async def use(connection: Any) -> None:
    while True:
        await connection.execute(QUERY)


async def handler(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await use(connection)


@innocent(world=AIOSQLITE, seen=2)
async def two_tasks(zoo: Any) -> None:
    """Two tasks with a connection each: not nested."""
    await asyncio.gather(handler(zoo.engine), handler(zoo.engine))


@innocent(world=AIOSQLITE, seen=5, pool_size=5, max_overflow=0)
async def full_to_the_brim(zoo: Any) -> None:
    """As many tasks as connections: the pool is empty, and nobody waits."""
    async with asyncio.TaskGroup() as group:
        for _ in range(5):
            group.create_task(handler(zoo.engine))


@innocent(world=AIOSQLITE, long_after=0.5, seen=0)
async def gathered(zoo: Any) -> None:
    """gather() of many short tasks, round after round."""

    async def job() -> None:
        async with zoo.engine.connect() as connection:
            await connection.execute(QUERY)

    while True:
        await asyncio.gather(*(job() for _ in range(10)))


@innocent(world=AIOSQLITE)
async def async_session_handed_over(zoo: Any) -> None:
    """A task hands its session to another running task and finishes."""
    pipe: asyncio.Queue[AsyncSession] = asyncio.Queue()

    async def accept() -> None:
        session = AsyncSession(zoo.engine)
        await session.execute(PING)
        await pipe.put(session)

    async def work() -> None:
        async with await pipe.get() as session:
            await use(session)

    worker = asyncio.create_task(work())
    await asyncio.create_task(accept())
    await worker


@innocent(world=AIOSQLITE)
async def opened_by_a_finished_task(zoo: Any) -> None:
    """gather() opens the connections; the one that gathers uses them."""

    async def open_connection() -> Any:
        return await zoo.engine.connect()

    (connection,) = await asyncio.gather(open_connection())
    try:
        await use(connection)
    finally:
        await connection.close()


async def get_session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session:
        yield session


@innocent(world=AIOSQLITE)
async def async_dependency_running(zoo: Any) -> None:
    """An async generator dependency is suspended, its request is running."""
    dependency = get_session(zoo.engine)
    await use(await anext(dependency))  # type: ignore[arg-type]


@innocent(world=AIOSQLITE, long_after=0.5, seen=0)
async def dependencies_exhausted(zoo: Any) -> None:
    """The same, request after request, and each one exhausted."""
    while True:
        async for session in get_session(zoo.engine):
            await session.execute(QUERY)


@innocent(world=AIOSQLITE, long_after=0.5, seen=0)
async def cancelled_and_cleaned_up(zoo: Any) -> None:
    """Tasks are cancelled in the middle; async with closes what they had."""

    async def serve() -> None:
        async with AsyncSession(zoo.engine) as session:
            while True:
                await session.execute(QUERY)

    while True:
        task = asyncio.create_task(serve())
        await asyncio.sleep(0.1)
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


@innocent(world=AIOSQLITE, long_after=0.5, seen=0)
async def timed_out_and_cleaned_up(zoo: Any) -> None:
    """asyncio.timeout() ends statements that take too long."""
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(0.1), zoo.engine.connect() as connection:
                await use(connection)


@innocent(world=AIOSQLITE)
async def async_stream_running(zoo: Any) -> None:
    """An async stream is being read."""
    async with zoo.engine.connect() as connection:
        result = await connection.stream(ROWS, execution_options={"yield_per": 5})
        async for _ in result:
            pass


@innocent(world=AIOSQLITE)
async def run_sync(zoo: Any) -> None:
    """Synchronous ORM code inside run_sync()."""

    def report(session: Session) -> None:
        while True:
            session.execute(QUERY)

    async with AsyncSession(zoo.engine) as session:
        await session.run_sync(report)


@innocent(world=AIOSQLITE)
async def child_uses_it(zoo: Any) -> None:
    """The parent waits for its child task, which is in SQL on the connection."""
    async with zoo.engine.connect() as connection, asyncio.TaskGroup() as group:
        group.create_task(use(connection))


@innocent(world=AIOSQLITE)
async def shielded(zoo: Any) -> None:
    """wait_for() and shield() put the statement into a task of its own."""
    async with zoo.engine.connect() as connection:
        while True:
            statement = connection.execute(QUERY)
            await asyncio.wait_for(asyncio.shield(statement), 10)


@innocent(world=AIOSQLITE, long_after=0.5, seen=0)
async def async_scoped_removed(zoo: Any) -> None:
    """async_scoped_session with remove()."""
    db = async_scoped_session(async_sessionmaker(zoo.engine), asyncio.current_task)

    async def job() -> None:
        try:
            await db.execute(QUERY)
        finally:
            await db.remove()

    while True:
        await asyncio.create_task(job())


@asynccontextmanager
async def unit_of_work(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session, session.begin():
        yield session


@innocent(world=AIOSQLITE)
async def unit_of_work_running(zoo: Any) -> None:
    """An asynccontextmanager around session and transaction."""
    async with unit_of_work(zoo.engine) as session, session.begin_nested():
        await use(session)


@innocent(world=AIOSQLITE, seen=0)
async def semaphore_guards_the_pool(zoo: Any) -> None:
    """A semaphore as large as the pool: tasks wait, but not for the pool."""
    room = asyncio.Semaphore(5)

    async def job() -> None:
        while True:
            async with room, zoo.engine.connect() as connection:
                await connection.execute(text("SELECT pg_sleep(0.03)"))

    await asyncio.gather(*(job() for _ in range(12)))
