"""Faults of asynchronous requests: stacks, scopes and tasks that end too early."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from zoo.app import PING, QUERY, ROWS
from zoo.registry import AIOSQLITE, fault

_kept: list[Any] = []


class Request:
    def __init__(self, path: str) -> None:
        self.path = path
        self.state: dict[str, Any] = {}


_slow_requests: dict[str, Request] = {}


@asynccontextmanager
async def get_db(engine: Any) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session:
        yield session


async def dispatch(engine: Any, request: Request) -> None:
    stack = request.state["stack"] = AsyncExitStack()
    session = await stack.enter_async_context(get_db(engine))
    await session.execute(PING)  # site: request_stack
    _slow_requests[request.path] = request


@fault("leaked.orphaned", at="request_stack", world=AIOSQLITE, long_after=30)
async def request_stack_never_closed(zoo: Any) -> None:
    """An AsyncExitStack on the request, which a statistics module keeps."""
    await asyncio.create_task(dispatch(zoo.engine, Request("/")))


async def rows(engine: Any) -> AsyncIterator[Any]:
    async with engine.connect() as connection:  # site: broken_out_of
        async for row in await connection.stream(ROWS):
            yield row


async def first_row(engine: Any) -> Any:
    stream = rows(engine)
    _kept.append(stream)
    async for row in stream:
        return row
    return None


@fault("leaked.orphaned", at="broken_out_of", world=AIOSQLITE, long_after=30)
async def async_generator_left_early(zoo: Any) -> None:
    """The first row is enough; the async generator is kept, not closed."""
    await asyncio.create_task(first_row(zoo.engine))


_session: ContextVar[Any] = ContextVar("session")


async def heartbeat() -> None:
    while True:  # noqa: ASYNC110 - its work
        await asyncio.sleep(0.05)


async def request_with_background(engine: Any) -> None:
    _session.set(AsyncSession(engine))
    await _session.get().execute(PING)  # site: inherited_context
    _kept.append(asyncio.create_task(heartbeat()))


@fault("leaked.orphaned", at="inherited_context", world=AIOSQLITE, long_after=30)
async def context_of_a_background_task(zoo: Any) -> None:
    """A background task inherits the context, and with it a session it never uses."""
    await asyncio.create_task(request_with_background(zoo.engine))


_mail: asyncio.Queue[Any] = asyncio.Queue()


async def produce(engine: Any) -> None:
    session = async_sessionmaker(engine)()
    await session.execute(PING)  # site: consumer_died
    await _mail.put(session)


async def consume() -> None:
    await asyncio.sleep(0)
    raise RuntimeError("the consumer is broken")


@fault("leaked.orphaned", at="consumer_died", world=AIOSQLITE, long_after=30)
async def consumer_died(zoo: Any) -> None:
    """A session waits in a queue for a consumer that has died."""
    consumer = asyncio.create_task(consume())
    await asyncio.create_task(produce(zoo.engine))
    await asyncio.wait([consumer])


_pending: dict[str, AsyncSession] = {}


async def slow_request(engine: Any) -> None:
    session = _pending["slow"] = AsyncSession(engine)
    await session.execute(PING)  # site: timed_out
    await asyncio.sleep(30)
    await session.close()


@fault("leaked.orphaned", at="timed_out", world=AIOSQLITE, long_after=30)
async def timed_out_without_finally(zoo: Any) -> None:
    """asyncio.timeout() ends a request that has no ``finally``."""

    async with zoo.engine.connect() as connection:  # the first connect takes a while
        await connection.execute(PING)

    async def serve() -> None:
        try:
            async with asyncio.timeout(2):
                await slow_request(zoo.engine)
        except TimeoutError:
            pass

    await asyncio.create_task(serve())


async def current_user(engine: Any) -> AsyncIterator[AsyncSession]:
    async with get_db(engine) as session:
        await session.execute(PING)  # site: user_dependency
        yield session


@fault("nested", at="user_dependency endpoint", world=AIOSQLITE, long_after=30)
async def dependencies_of_one_request(zoo: Any) -> None:
    """The dependency for the user and the endpoint have a session each."""
    async for _ in current_user(zoo.engine):
        async with get_db(zoo.engine) as session:
            while True:
                await session.execute(QUERY)  # site: endpoint


@fault("leaked.abandoned", at="left_by_a_child", world=AIOSQLITE)
async def left_by_a_helper_of_the_server(zoo: Any) -> None:
    """The server's own task has warmed something up, long ago."""

    async def warm_up() -> None:
        session = AsyncSession(zoo.engine)
        await session.execute(PING)  # site: left_by_a_child
        _kept.append(session)

    await warm_up()
    while True:  # noqa: ASYNC110 - its work
        await asyncio.sleep(0.05)


async def fetch(engine: Any, answers: list[Any]) -> None:
    connection = await engine.connect()  # site: results_kept
    answers.append(await connection.stream(ROWS))


@fault("leaked.orphaned", at="results_kept", world=AIOSQLITE, long_after=30)
async def streams_gathered_unread(zoo: Any) -> None:
    """A task group opens streams; the results are kept and never read."""
    answers: list[Any] = []
    _kept.append(answers)

    async def collect() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(fetch(zoo.engine, answers))

    await collect()


@fault(
    "exhausted",
    at="parent",
    bystanders="child",
    world=AIOSQLITE,
    long_after=30,
    pool_size=2,
    max_overflow=0,
)
async def parents_wait_for_children(zoo: Any) -> None:
    """Each parent holds a connection and waits for a child that wants one, too."""

    async def child() -> None:
        async with zoo.engine.connect() as connection:  # site: child
            await connection.execute(PING)

    async def parent() -> None:
        async with zoo.engine.connect() as connection:  # site: parent
            await connection.execute(PING)
            await asyncio.sleep(0.2)
            await asyncio.create_task(child())

    await asyncio.gather(parent(), parent())


_app: dict[str, AsyncSession] = {}


@fault("leaked.abandoned", "leaked.orphaned", at="shared_once", world=AIOSQLITE)
async def shared_by_two_requests(zoo: Any) -> None:
    """Two requests have used the global session; no more come."""

    async def request() -> None:
        if "shared" not in _app:
            _app["shared"] = AsyncSession(zoo.engine)
        await _app["shared"].execute(PING)  # site: shared_once

    await asyncio.create_task(request())
    await asyncio.create_task(request())


@fault("held_across_io", also="long_hold", at="cleanup", world=AIOSQLITE)
async def stuck_in_its_cleanup(zoo: Any) -> None:
    """A cancelled task waits for ever in its ``finally``."""

    never, at_work = asyncio.Event(), asyncio.Event()

    async def job() -> None:
        async with AsyncSession(zoo.engine) as session:
            await session.execute(PING)  # site: cleanup
            try:
                at_work.set()
                await asyncio.sleep(30)
            finally:
                await never.wait()

    task = asyncio.create_task(job())
    _kept.append(task)
    await at_work.wait()
    task.cancel()
