"""Look-alikes of leaks that are over the threshold: long they are, leaked they are not.

Each is in use. The function that took the connection is gone in most of them; who uses
it is running, and nearly always in SQL.
"""

from __future__ import annotations

import asyncio
import queue
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, Engine, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from zoo.app import PING, QUERY, ROWS
from zoo.models import Account
from zoo.registry import AIOSQLITE, fault


def use(connection: Any) -> None:
    while True:
        connection.execute(QUERY)


async def use_async(connection: Any) -> None:
    while True:
        await connection.execute(QUERY)


@fault("long_hold")
def report_over_the_threshold(zoo: Any) -> None:
    """A report that takes its time, statement after statement."""
    with zoo.engine.connect() as connection:  # site: report_over_the_threshold
        use(connection)


@fault("long_hold", at="computing")
def computes_meanwhile(zoo: Any) -> None:
    """Holds a connection and computes: slow, but neither idle nor forgotten."""
    with zoo.engine.connect() as connection:  # site: computing
        rows = connection.execute(QUERY).all()
        while rows:
            sum(number * number for number in range(10_000))


def get_connection(engine: Engine) -> Connection:
    connection = engine.connect()  # site: helper_returned_it
    connection.execute(PING)
    return connection


@fault("long_hold")
def helper_returned_it(zoo: Any) -> None:
    """A helper has returned the connection to a caller that uses it."""
    connection = get_connection(zoo.engine)
    try:
        use(connection)
    finally:
        connection.close()


class Repository:
    def __init__(self, session: Session) -> None:
        self.session = session

    def first(self) -> Account | None:
        return self.session.get(Account, 1)  # site: repository

    def load_all(self) -> None:
        use(self.session)


def make_repository(engine: Engine) -> Repository:
    return Repository(Session(engine))


@fault("long_hold", at="repository")
def repository_in_use(zoo: Any) -> None:
    """A factory made an object with a Session; one of its methods is running."""
    repository = make_repository(zoo.engine)
    repository.first()
    repository.load_all()


def producer(engine: Engine, pipe: queue.Queue[Connection]) -> None:
    connection = engine.connect()  # site: handed_to_a_thread
    connection.execute(PING)
    pipe.put(connection)


def consumer(pipe: queue.Queue[Connection]) -> None:
    connection = pipe.get()
    with connection:
        use(connection)


@fault("long_hold", at="handed_to_a_thread")
def handed_to_a_thread(zoo: Any) -> None:
    """Taken by a thread that has ended, in use by the one that it was handed to."""
    pipe: queue.Queue[Connection] = queue.Queue()
    threading.Thread(target=consumer, args=(pipe,), daemon=True).start()
    threading.Thread(target=producer, args=(zoo.engine, pipe)).start()
    zoo.go_on()


def rows_of(engine: Engine) -> Iterator[Any]:
    with engine.connect() as connection:  # site: generator_in_use
        yield from connection.execution_options(yield_per=5).execute(ROWS)


@fault("long_hold")
def generator_in_use(zoo: Any) -> None:
    """A generator is being consumed, row by row."""
    for _ in rows_of(zoo.engine):
        pass


def get_db(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        session.execute(PING)  # site: dependency_in_use
        yield session


@fault("long_hold")
def dependency_in_use(zoo: Any) -> None:
    """A yield dependency is suspended, its request is running."""
    dependency = get_db(zoo.engine)
    use(next(dependency))


@contextmanager
def transaction(make: Callable[[], Session]) -> Iterator[Session]:
    session = make()
    session.execute(PING)  # site: scope_in_use
    try:
        yield session
    finally:
        session.close()


@fault("long_hold", at="scope_in_use")
def scope_in_use(zoo: Any) -> None:
    """A contextmanager wraps the session; the body is running."""
    with transaction(sessionmaker(zoo.engine)) as session:
        use(session)


_db: dict[str, Any] = {}


def authenticate() -> None:
    _db["app"].execute(select(Account).limit(1)).all()  # site: scoped_in_use


def handler() -> None:
    while True:
        _db["app"].execute(QUERY)


@fault("long_hold", at="scoped_in_use")
def scoped_session_in_use(zoo: Any) -> None:
    """A global scoped_session, used by the request that is running: no local has it."""
    _db["app"] = scoped_session(sessionmaker(zoo.engine))
    authenticate()
    handler()


_connections: list[Connection] = []


def ensure_connected(engine: Engine) -> Connection:
    if not _connections:
        _connections.append(engine.connect())  # site: global_in_use
    return _connections[0]


@fault("long_hold", at="global_in_use")
def global_connection_in_use(zoo: Any) -> None:
    """A global connection of a script, which uses it all the time."""
    while True:
        ensure_connected(zoo.engine).execute(QUERY)


async def open_session(engine: AsyncEngine) -> AsyncSession:
    session = AsyncSession(engine)
    await session.execute(PING)  # site: async_helper
    return session


@fault("long_hold", at="async_helper", world=AIOSQLITE)
async def async_helper_returned_it(zoo: Any) -> None:
    """A coroutine has returned the session to the one that uses it."""
    session = await open_session(zoo.engine)
    await use_async(session)


async def accept(engine: AsyncEngine, pipe: asyncio.Queue[AsyncSession]) -> None:
    session = AsyncSession(engine)
    await session.execute(PING)  # site: handed_to_a_task
    await pipe.put(session)


async def work(pipe: asyncio.Queue[AsyncSession]) -> None:
    async with await pipe.get() as session:
        await use_async(session)


@fault("long_hold", at="handed_to_a_task", world=AIOSQLITE)
async def handed_to_a_task(zoo: Any) -> None:
    """Taken by a task that is done, in use by the one that it was handed to."""
    pipe: asyncio.Queue[AsyncSession] = asyncio.Queue()
    worker = asyncio.create_task(work(pipe))
    await asyncio.create_task(accept(zoo.engine, pipe))
    await worker


async def get_session(engine: AsyncEngine) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session:
        await session.execute(PING)  # site: async_dependency_in_use
        yield session


@fault("long_hold", world=AIOSQLITE)
async def async_dependency_in_use(zoo: Any) -> None:
    """An async generator dependency is suspended, its request is running."""
    dependency = get_session(zoo.engine)
    await use_async(await anext(dependency))  # type: ignore[arg-type]


@fault("long_hold", at="async_stream_in_use", world=AIOSQLITE)
async def async_stream_in_use(zoo: Any) -> None:
    """An async stream is being read."""
    async with zoo.engine.connect() as connection:  # site: async_stream_in_use
        result = await connection.stream(ROWS, execution_options={"yield_per": 5})
        async for _ in result:
            pass


def deep(connection: Connection, depth: int) -> None:
    if depth:
        deep(connection, depth - 1)
    use(connection)


@fault("long_hold", at="recursion")
def deep_recursion(zoo: Any) -> None:
    """The frame that took it is far below the one that runs."""
    connection = zoo.engine.connect()  # site: recursion
    deep(connection, 200)
