"""The same kinds of work in tasks."""

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from shopd.jobs import LONG_S, PING


@asynccontextmanager
async def session_of(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session:
        await session.execute(PING)
        yield session


async def handler(engine: AsyncEngine) -> None:
    async with session_of(engine) as session:
        await asyncio.sleep(LONG_S)
        await session.execute(PING)


async def load(engine: AsyncEngine) -> None:
    async with engine.connect() as connection:
        await connection.execute(PING)
        await asyncio.sleep(0.05)


async def one_after_the_other(engine: AsyncEngine) -> None:
    await load(engine)
    await load(engine)


async def of_a_helper(engine: AsyncEngine) -> None:
    """A subtask uses the connection of the task that waits for it."""
    async with engine.connect() as connection:
        await connection.execute(PING)
        await asyncio.create_task(asyncio.sleep(LONG_S))


async def again_and_again(
    job: Callable[[AsyncEngine], Awaitable[None]],
    engine: AsyncEngine,
    over: threading.Event,
) -> None:
    while not over.is_set():
        await job(engine)


async def serve(engine: AsyncEngine, over: threading.Event) -> None:
    async with asyncio.TaskGroup() as group:
        for job in (handler, one_after_the_other, of_a_helper):
            group.create_task(again_and_again(job, engine, over), name=job.__name__)
    await engine.dispose()


def start(engine: AsyncEngine, over: threading.Event) -> list[threading.Thread]:
    thread = threading.Thread(target=lambda: asyncio.run(serve(engine, over)))
    thread.start()
    return [thread]
