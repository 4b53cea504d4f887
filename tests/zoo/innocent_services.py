"""Innocents: services, scopes and pipelines that do it right, in unusual ways."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import itertools
import queue
import threading
import time
import weakref
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, closing
from contextvars import ContextVar
from typing import Any, Self

from sqlalchemy import Connection, Engine, NullPool, StaticPool, event, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from zoo.app import PING, QUERY, ROWS
from zoo.models import Account
from zoo.registry import AIOSQLITE, innocent

import poolwatch


def start(target: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


class Handle:
    def __init__(self, engine: Engine) -> None:
        self.connection = engine.connect()
        self.connection.execute(PING)

    def __del__(self) -> None:
        self.connection.close()


@innocent(long_after=0.5, seen=0)
def closed_by_its_finalizer(zoo: Any) -> None:
    """__del__() closes what the object has opened; that is a close all the same."""
    while True:
        Handle(zoo.engine)
        time.sleep(0.01)


class Owner:
    pass


@innocent(long_after=0.5, seen=0)
def closed_by_weakref_finalize(zoo: Any) -> None:
    """weakref.finalize() closes the session of an object that is gone."""

    def job() -> None:
        owner, session = Owner(), Session(zoo.engine)
        weakref.finalize(owner, session.close)
        session.execute(QUERY)

    while True:
        job()


class UnitOfWork:
    def __init__(self, engine: Engine) -> None:
        self._factory = sessionmaker(engine)

    def __enter__(self) -> Self:
        self._stack = ExitStack()
        self.session = self._stack.enter_context(self._factory())
        self._stack.enter_context(self.session.begin())
        return self

    def __exit__(self, *error: object) -> bool | None:
        return self._stack.__exit__(*error)


@innocent(long_after=0.5)
def units_of_work(zoo: Any) -> None:
    """A unit of work is used again and again, some with errors."""
    work = UnitOfWork(zoo.engine)
    for number in itertools.count():
        with contextlib.suppress(ValueError), work:
            work.session.execute(QUERY)
            if number % 2:
                raise ValueError(number)


@innocent()
def stack_handed_on(zoo: Any) -> None:
    """pop_all() hands resources to the caller, which is using them."""

    def resources() -> ExitStack:
        with ExitStack() as stack:
            stack.enter_context(zoo.engine.connect()).execute(PING)
            return stack.pop_all()

    with resources():
        time.sleep(30)


@innocent(seen=2)
def two_engines_in_one_request(zoo: Any) -> None:
    """A connection to each of two databases, at the same time: not nested."""
    other = zoo.new_engine("other")
    with Session(zoo.engine) as one, Session(other) as two:
        while True:
            one.execute(QUERY)
            two.execute(QUERY)


class Stage(threading.Thread):
    """Takes connections from a queue; the next one waits there."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.jobs: queue.Queue[Connection] = queue.Queue()

    def run(self) -> None:
        while True:
            with self.jobs.get() as connection:
                for _ in range(100):
                    connection.execute(QUERY)


def feed(engine: Engine, stage: Stage) -> None:
    for _ in range(3):
        stage.jobs.put(engine.connect())


@innocent(seen=3)
def next_ones_in_the_queue(zoo: Any) -> None:
    """Handed over through the queue of a busy consumer, where the next ones wait."""
    stage = Stage()
    stage.start()
    start(feed, zoo.engine, stage).join()
    zoo.go_on()


@innocent(seen=1)
def handed_to_a_timer(zoo: Any) -> None:
    """A timer will close the connection that a thread, now ended, has opened."""

    def job() -> None:
        connection = zoo.engine.connect()
        connection.execute(PING)
        threading.Timer(20, connection.close).start()

    start(job).join()
    zoo.go_on()


@innocent(seen=1)
def returned_by_a_future(zoo: Any) -> None:
    """An executor's job has returned the connection; the main thread looks at it."""

    def opened() -> Connection:
        return zoo.engine.connect()

    with ThreadPoolExecutor(3) as executor:
        futures = [executor.submit(opened) for _ in range(3)]
    for future in as_completed(futures):
        with future.result() as connection:
            for _ in range(6):
                connection.execute(QUERY)
    zoo.go_on()


@innocent(seen=1)
def consumed_by_another_thread(zoo: Any) -> None:
    """A generator begun in one thread and consumed in another (as web servers do)."""

    def rows() -> Iterator[Any]:
        with zoo.engine.connect() as connection:
            yield from connection.execution_options(yield_per=5).execute(ROWS)

    stream = rows()
    start(next, stream).join()
    for _ in stream:
        pass


@innocent(long_after=0.5, poolclass=NullPool)
def cron_jobs(zoo: Any) -> None:
    """A scheduler runs jobs; between them there is no connection at all."""

    def job() -> None:
        with zoo.engine.begin() as connection:
            connection.execute(QUERY)

    while True:
        start(job).join()
        time.sleep(0.05)


@innocent(long_after=0.5)
def listeners_that_use_the_connection(zoo: Any) -> None:
    """Session events run statements on the session's own connection."""
    factory = sessionmaker(zoo.engine)

    @event.listens_for(factory, "before_commit")
    def check(session: Session) -> None:
        session.execute(PING)

    while True:
        with factory.begin() as session:
            session.get(Account, 1)
            session.execute(QUERY)


@innocent(long_after=0.5)
def generators_closed_early(zoo: Any) -> None:
    """Each stream is left after a row, and closed by closing()."""

    def rows() -> Iterator[Any]:
        with zoo.engine.connect() as connection:
            yield from connection.execution_options(yield_per=2).execute(ROWS)

    while True:
        with closing(rows()) as stream:
            for _ in stream:
                break


@innocent(long_after=0.6, seen=0)
def long_but_declared_in_part(zoo: Any) -> None:
    """A declared worker between undeclared short jobs."""

    def short() -> None:
        while True:
            with zoo.engine.connect() as connection:
                connection.execute(QUERY)

    start(short)
    with poolwatch.long_hold("outbox"), Session(zoo.engine) as session:
        while True:
            session.execute(PING)
            time.sleep(0.2)


@innocent(long_after=0.4, says="declared long: cache warmer")
def declared_by_a_decorator(zoo: Any) -> None:
    """long_hold() around a helper that returns the connection into a global."""

    def opened() -> Connection:
        with poolwatch.long_hold("cache warmer"):
            return zoo.engine.connect()

    _globals.append(opened())
    with poolwatch.label(endpoint="/warm"):
        zoo.go_on()


_globals: list[Any] = []


@innocent(long_after=0.5, seen=0)
def errors_with_everything_closed(zoo: Any) -> None:
    """Kept errors of every kind, whose frames hold closed sessions only."""
    errors: list[BaseException] = []

    def job(number: int) -> None:
        with Session(zoo.engine) as session:
            session.execute(QUERY)
            raise ValueError(number)

    def group() -> None:
        found = []
        for number in range(2):
            try:
                job(number)
            except ValueError as error:
                found.append(error)
        raise ExceptionGroup("both", found)

    while True:
        try:
            group()
        except ExceptionGroup as error:
            errors.append(error)
            del errors[:-10]


@innocent(long_after=0.5, seen=0)
def scoped_sessions_removed_in_a_pool(zoo: Any) -> None:
    """Executor threads use a scoped_session and remove it after each job."""
    sessions = scoped_session(sessionmaker(zoo.engine))

    def job(_: int) -> None:
        try:
            sessions.execute(QUERY)
        finally:
            sessions.remove()

    with ThreadPoolExecutor(4) as executor:
        while True:
            list(executor.map(job, range(8)))


@innocent(long_after=0.5, seen=0, poolclass=StaticPool)
def static_pool_of_sessions(zoo: Any) -> None:
    """One connection for all, by turns, as tests do."""
    while True:
        with Session(zoo.engine) as session, session.begin():
            session.execute(QUERY)


@innocent(long_after=0.5, seen=0)
def disposed_while_out(zoo: Any) -> None:
    """dispose() while a connection is out, which is closed soon after."""
    while True:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)
            zoo.engine.dispose()
            connection.execute(PING)


@innocent(seen=3)
def jobs_wait_in_an_executor(zoo: Any) -> None:
    """Connections are arguments of jobs that wait behind another one."""

    def job(connection: Connection) -> None:
        with connection:
            for _ in range(100):
                connection.execute(QUERY)

    executor = ThreadPoolExecutor(1)

    def submit() -> None:
        for _ in range(3):
            executor.submit(job, zoo.engine.connect())

    start(submit).join()
    zoo.go_on()


@innocent(long_after=0.4, seen=0)
def reports_with_pauses(zoo: Any) -> None:
    """Takes a connection per page of a report, and none in between."""
    while True:
        for _ in range(3):
            with Session(zoo.engine) as session:
                session.execute(QUERY)
        time.sleep(0.3)


@innocent(seen=2, pool_size=2, max_overflow=0)
def full_and_nobody_waits(zoo: Any) -> None:
    """All connections are out, in a list of one thread pool each; nobody waits."""

    def job() -> None:
        with zoo.engine.connect() as connection:
            while True:
                connection.execute(QUERY)

    for _ in range(2):
        start(job)
    zoo.go_on()


# -- asyncio ---------------------------------------------------------------------------


@asynccontextmanager
async def lifespan(engine: Any) -> AsyncIterator[AsyncSession]:
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(AsyncSession(engine))
        await session.execute(PING)
        yield session


@innocent(world=AIOSQLITE)
async def lifespan_of_a_server(zoo: Any) -> None:
    """A lifespan holds the session, as long as its server runs."""

    async def serve() -> None:
        while True:  # noqa: ASYNC110 - its work
            await asyncio.sleep(0.05)

    async with lifespan(zoo.engine):
        await asyncio.create_task(serve())


class Pipeline:
    """Sessions wait in a queue for the one worker."""

    def __init__(self, engine: Any) -> None:
        self.make = async_sessionmaker(engine)
        self.ready: asyncio.Queue[AsyncSession] = asyncio.Queue()

    async def produce(self) -> None:
        session = self.make()
        await session.execute(PING)
        await self.ready.put(session)

    async def work(self) -> None:
        while True:
            async with await self.ready.get() as session:
                for _ in range(100):
                    await session.execute(QUERY)


@innocent(world=AIOSQLITE, seen=3)
async def sessions_in_a_pipeline(zoo: Any) -> None:
    """Tasks that have ended put sessions into the queue of a busy worker."""
    pipeline = Pipeline(zoo.engine)
    worker = asyncio.create_task(pipeline.work())
    await asyncio.gather(*(pipeline.produce() for _ in range(3)))
    await worker


@innocent(world=AIOSQLITE)
async def one_failing_with_cleanup(zoo: Any) -> None:
    """In a TaskGroup one child fails, the others are cancelled and return theirs."""

    async def steady() -> None:
        async with AsyncSession(zoo.engine) as session:
            while True:
                await session.execute(QUERY)

    async def failing() -> None:
        async with AsyncSession(zoo.engine) as session:
            await session.execute(QUERY)
            raise ValueError("no")

    while True:
        with contextlib.suppress(BaseExceptionGroup):
            async with asyncio.TaskGroup() as group:
                group.create_task(steady())
                group.create_task(failing())


_current: ContextVar[AsyncSession] = ContextVar("current")


@innocent(world=AIOSQLITE, long_after=0.6)
async def session_of_the_request(zoo: Any) -> None:
    """A middleware puts the session into a ContextVar and closes it afterwards."""

    async def endpoint() -> None:
        await _current.get().execute(QUERY)

    async def middleware() -> None:
        async with AsyncSession(zoo.engine) as session:
            token = _current.set(session)
            try:
                await endpoint()
            finally:
                _current.reset(token)

    while True:
        await asyncio.gather(*(asyncio.create_task(middleware()) for _ in range(3)))


@innocent(world=AIOSQLITE)
async def stream_answered_by_another_task(zoo: Any) -> None:
    """The endpoint's task has ended; the server's task sends its streaming response."""

    async def endpoint() -> AsyncIterator[Any]:
        session = AsyncSession(zoo.engine)
        result = await session.stream(ROWS)

        async def body() -> AsyncIterator[Any]:
            try:
                async for row in result:
                    yield row
            finally:
                await session.close()

        return body()

    async for _ in await asyncio.create_task(endpoint()):
        await asyncio.sleep(0.05)


@innocent(world=AIOSQLITE, long_after=0.5)
async def generators_closed_by_aclosing(zoo: Any) -> None:
    """Async generators are left early, inside aclosing()."""

    async def rows() -> AsyncIterator[Any]:
        async with zoo.engine.connect() as connection:
            async for row in await connection.stream(ROWS):
                yield row

    while True:
        async with contextlib.aclosing(rows()) as stream:
            async for _ in stream:
                break


@innocent(long_after=30)
async def sync_code_in_a_coroutine(zoo: Any) -> None:
    """A coroutine calls synchronous code, which is in the middle of its work."""

    def job() -> None:
        with zoo.engine.connect() as connection:
            connection.execute(PING)
            time.sleep(30)

    async def endpoint() -> None:
        job()

    await asyncio.create_task(endpoint())


@innocent(long_after=30)
async def sync_session_in_an_executor(zoo: Any) -> None:
    """A dependency is entered in one executor job and used in another one."""

    def enter() -> Session:
        session = Session(zoo.engine)
        session.execute(PING)
        return session

    loop = asyncio.get_running_loop()
    session = await loop.run_in_executor(None, enter)
    while True:
        await loop.run_in_executor(None, session.execute, QUERY)
        await asyncio.sleep(0.1)


@innocent(long_after=0.5, seen=0)
async def collected_cycles_of_closed_sessions(zoo: Any) -> None:
    """Closed sessions in reference cycles, for the garbage collector."""

    def job() -> None:
        with Session(zoo.engine) as session:
            session.info["self"] = session
            session.scalars(select(Account).limit(1)).all()

    while True:
        job()
        gc.collect()
        await asyncio.sleep(0.01)


@innocent(world=AIOSQLITE)
async def closed_by_a_task_later(zoo: Any) -> None:
    """A short task opens it; a task that waits a while will close it."""

    async def close_later(connection: Any) -> None:
        await asyncio.sleep(20)
        await connection.close()

    async def opened() -> None:
        connection = await zoo.engine.connect()
        await connection.execute(PING)
        _globals.append(asyncio.create_task(close_later(connection)))

    await asyncio.create_task(opened())


@innocent()
async def closed_by_a_call_later(zoo: Any) -> None:
    """loop.call_later() will close what a task that has ended has opened."""

    async def opened() -> None:
        session = Session(zoo.engine)
        session.execute(PING)
        asyncio.get_running_loop().call_later(20, session.close)

    await asyncio.create_task(opened())
