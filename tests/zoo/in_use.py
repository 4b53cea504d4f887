"""More look-alikes of leaks that are over the threshold, and in use all the same.

Unlike those in ``long_not_leaked`` they are in their own code most of the time, with no
statement under way, or use the connection from far away.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache, partial
from typing import Any

from sqlalchemy import Connection, Engine, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from zoo.app import PING, QUERY
from zoo.registry import AIOSQLITE, fault

NUMBERS = text(
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)"
    " SELECT i FROM n"
)


def compute() -> int:
    return sum(number * number for number in range(20_000))


def rows_of(engine: Engine) -> Iterator[Any]:
    with engine.connect() as connection:  # site: for_loop
        yield from connection.execute(NUMBERS)


@fault("long_hold", at="for_loop")
def computes_per_row(zoo: Any) -> None:
    """A ``for`` over a generator has it in no variable; its body computes."""
    for _ in rows_of(zoo.engine):
        compute()


def ids_of(engine: Engine) -> Iterator[int]:
    with Session(engine) as session:
        yield from session.execute(NUMBERS).scalars()  # site: wrapped_iterators


@fault("long_hold", at="wrapped_iterators")
def computes_over_wrapped_iterators(zoo: Any) -> None:
    """map(), filter() and islice() around the generator, and nothing has a name."""
    wanted = filter(None, ids_of(zoo.engine))
    for _ in map(str, itertools.islice(wanted, 90_000)):
        compute()


def lines_of(engine: Engine) -> Iterator[str]:
    with engine.connect() as connection:  # site: unnamed_pipeline
        for row in connection.execute(NUMBERS):
            yield str(row)


def chunks(lines: Iterator[str]) -> Iterator[list[str]]:
    while chunk := list(itertools.islice(lines, 10)):
        yield chunk


def export(write: Callable[[list[str]], None], engine: Engine) -> None:
    for chunk in chunks(lines_of(engine)):
        write(chunk)


@fault("long_hold", at="unnamed_pipeline")
def generator_of_generators(zoo: Any) -> None:
    """A report as a pipeline of generators, written out slowly."""
    export(lambda _: [compute() for _ in range(100)] and None, zoo.engine)


@contextmanager
def transaction(engine: Engine) -> Iterator[None]:
    with engine.begin() as connection:  # site: scope_without_name
        connection.execute(PING)
        yield


@fault("long_hold", at="scope_without_name")
def inside_an_unnamed_scope(zoo: Any) -> None:
    """A ``with`` of a scope whose value nobody needs; the body computes."""
    with transaction(zoo.engine):
        while True:
            compute()


class Repository:
    def __init__(self, engine: Engine) -> None:
        self.session = Session(engine)

    def touch(self) -> None:
        self.session.execute(PING)  # site: deep_repository


class Service:
    def __init__(self, repository: Repository) -> None:
        self.repository = repository


class Application:
    def __init__(self, service: Service) -> None:
        self.services = {"accounts": service}

    def run(self) -> None:
        while True:
            self.services["accounts"].repository.touch()
            for _ in range(5):
                compute()


@fault("long_hold", at="deep_repository", long_after=1.0)
def repository_far_from_its_loop(zoo: Any) -> None:
    """application.services[...].repository.session, used by the application's loop."""
    Application(Service(Repository(zoo.engine))).run()


_globals: dict[str, Any] = {}


def setup(engine: Engine) -> None:
    _globals["connection"] = engine.connect()  # site: global_of_a_daemon


def tick() -> None:
    _globals["connection"].execute(PING)
    _globals["connection"].rollback()


@fault("long_hold", "held_across_io", at="global_of_a_daemon", long_after=1.0)
def global_connection_of_a_daemon(zoo: Any) -> None:
    """A daemon opens its connection once and uses it at every tick."""
    setup(zoo.engine)
    while True:
        tick()
        time.sleep(0.1)


@cache
def database(engine: Engine) -> Connection:
    return engine.connect()  # site: cached_and_used


@fault("long_hold", "held_across_io", at="cached_and_used", long_after=1.0)
def cached_connection_of_a_script(zoo: Any) -> None:
    """A @cache around connect(), and a script that asks for it all the time."""
    while True:
        database(zoo.engine).execute(PING)
        time.sleep(0.05)


_registry: dict[str, Any] = {}


def poll_jobs() -> int:
    return int(_registry["session"]().execute(PING).scalar_one())  # site: scoped_worker


@fault("long_hold", "held_across_io", at="scoped_worker", long_after=1.0)
def scoped_session_of_a_worker(zoo: Any) -> None:
    """A worker's scoped_session, never removed, asked for jobs ten times a second."""
    _registry["session"] = scoped_session(sessionmaker(zoo.engine))
    while True:
        poll_jobs()
        time.sleep(0.1)


def open_shard(engine: Engine, name: str) -> tuple[str, Connection]:
    return name, engine.connect()  # site: shards


class Cluster:
    def __init__(self, engine: Engine) -> None:
        with ThreadPoolExecutor(3) as executor:
            self.shards = dict(executor.map(partial(open_shard, engine), "abc"))

    def query(self, name: str) -> None:
        self.shards[name].execute(PING)


@fault("long_hold", at="shards", long_after=1.0)
def shards_opened_in_parallel(zoo: Any) -> None:
    """Opened by the threads of an executor that has ended, used by turns."""
    cluster = Cluster(zoo.engine)
    while True:
        for name in "abc":
            cluster.query(name)
            compute()


class Reader(threading.Thread):
    """Reads ahead, in a thread; its connection is an attribute."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(daemon=True)
        self.connection = engine.connect()  # site: thread_with_attribute
        self.ahead: queue.Queue[Any] = queue.Queue(2)

    def run(self) -> None:
        for row in self.connection.execute(NUMBERS):
            self.ahead.put(row)


@fault("long_hold", "held_across_io", at="thread_with_attribute")
def read_ahead(zoo: Any) -> None:
    """The connection is taken in __init__(), used in run() of another thread."""
    reader = Reader(zoo.engine)
    reader.start()
    while True:
        reader.ahead.get()
        compute()


def entered(stack: ExitStack, engine: Engine) -> None:
    stack.enter_context(Session(engine)).execute(PING)  # site: on_a_stack


@fault("long_hold", at="on_a_stack")
def only_on_an_exit_stack(zoo: Any) -> None:
    """Only an ExitStack has the session; its body is running."""
    with ExitStack() as stack:
        entered(stack, zoo.engine)
        while True:
            compute()


def with_connection(engine: Engine, do: Callable[[Connection], None]) -> None:
    with engine.connect() as connection:  # site: callback
        do(connection)


@fault("long_hold", at="callback")
def callback_in_use(zoo: Any) -> None:
    """A helper opens the connection and calls what it was given."""

    def job(connection: Connection) -> None:
        connection.execute(PING)
        while True:
            compute()

    with_connection(zoo.engine, job)


class Cursor:
    """A class iterator around a result."""

    def __init__(self, engine: Engine) -> None:
        self._connection = engine.connect()  # site: class_iterator
        self._rows = iter(self._connection.execute(NUMBERS))

    def __iter__(self) -> Cursor:
        return self

    def __next__(self) -> Any:
        return next(self._rows)


@fault("long_hold", at="class_iterator")
def class_iterator_in_use(zoo: Any) -> None:
    """An iterator of one's own, with the connection in it, in a ``for``."""
    for _ in Cursor(zoo.engine):
        compute()


@fault("long_hold", at="comprehension")
def comprehension_in_use(zoo: Any) -> None:
    """All in one expression: nothing has a name at all."""

    def rows() -> Iterator[Any]:
        with zoo.engine.connect() as connection:  # site: comprehension
            yield from connection.execute(NUMBERS)

    sum(compute() for _ in rows())


class Transaction:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def __enter__(self) -> None:
        self.connection = self.engine.connect()  # site: class_scope
        self.connection.execute(PING)

    def __exit__(self, *error: object) -> None:
        self.connection.close()


@fault("long_hold", at="class_scope")
def inside_a_scope_of_a_class(zoo: Any) -> None:
    """A context manager class, whose value has no name."""
    with Transaction(zoo.engine):
        while True:
            compute()


_scoped: dict[str, Any] = {}


@contextmanager
def removing() -> Iterator[None]:
    try:
        yield
    finally:
        _scoped["app"].remove()


def load_user() -> None:
    _scoped["app"].execute(PING)  # site: scoped_in_scope


def handler() -> None:
    load_user()
    while True:
        compute()


@fault("long_hold", at="scoped_in_scope")
def scoped_session_inside_its_scope(zoo: Any) -> None:
    """The request computes after a helper has used the scoped_session; it is removed
    when the request ends."""
    _scoped["app"] = scoped_session(sessionmaker(zoo.engine))
    with removing():
        handler()


_current: ContextVar[Session] = ContextVar("current")


@contextmanager
def request_scope(engine: Engine) -> Iterator[None]:
    with Session(engine) as session:
        token = _current.set(session)
        try:
            yield
        finally:
            _current.reset(token)


def authenticate() -> None:
    _current.get().execute(PING)  # site: context_in_scope


def endpoint() -> None:
    authenticate()
    while True:
        compute()


@fault("long_hold", at="context_in_scope")
def context_variable_inside_its_scope(zoo: Any) -> None:
    """The same with a ContextVar, in a thread of a server."""

    def serve() -> None:
        with request_scope(zoo.engine):
            endpoint()

    threading.Thread(target=serve, daemon=True).start()
    zoo.go_on()


def amounts(engine: Engine) -> Iterator[int]:
    with engine.connect() as connection:  # site: in_c
        yield from connection.execute(NUMBERS).scalars()


@fault("long_hold", at="in_c")
def consumed_in_c(zoo: Any) -> None:
    """sum() and map() consume a generator that only C code has."""

    def price(number: int) -> int:
        return compute() + number

    sum(map(price, amounts(zoo.engine)))


def get_db(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        session.execute(PING)  # site: dependency_in_threads
        yield session


@fault("long_hold", "held_across_io", at="dependency_in_threads")
async def dependency_of_a_sync_endpoint(zoo: Any) -> None:
    """The dependency is entered in one worker thread, the endpoint runs in another."""

    def view(db: Session) -> None:
        while True:
            compute()

    dependency = get_db(zoo.engine)
    db = await asyncio.to_thread(next, dependency)
    await asyncio.to_thread(view, db)


class Poller:
    """A poller with an attribute, idle between two polls."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.wake = threading.Event()

    def open(self) -> None:
        self.session = Session(self.engine)
        self.session.execute(PING)  # site: poller

    def run(self) -> None:
        while True:
            self.session.execute(PING)
            self.wake.wait(5)


@fault("held_across_io", also="long_hold", at="poller")
def poller_between_polls(zoo: Any) -> None:
    """A poller keeps its session on itself, and waits in between."""
    poller = Poller(zoo.engine)
    poller.open()
    thread = threading.Thread(target=poller.run, daemon=True)
    thread.start()
    thread.join()


# -- asyncio ---------------------------------------------------------------------------


async def stream_of(engine: Any) -> AsyncIterator[Any]:
    async with engine.connect() as connection:  # site: async_for
        async for row in await connection.stream(NUMBERS):
            yield row


@fault("long_hold", "held_across_io", at="async_for", world=AIOSQLITE)
async def sleeps_per_row(zoo: Any) -> None:
    """An ``async for`` has its generator in no variable; its body sleeps."""
    async for _ in stream_of(zoo.engine):
        await asyncio.sleep(0.05)


class Worker:
    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self.session: AsyncSession | None = None

    async def start(self) -> None:
        self.session = AsyncSession(self.engine)
        await self.session.execute(PING)  # site: async_worker

    async def run(self) -> None:
        assert self.session is not None
        while True:
            await self.session.execute(PING)
            await asyncio.sleep(0.1)


@fault("long_hold", "held_across_io", at="async_worker", world=AIOSQLITE)
async def worker_with_one_session(zoo: Any) -> None:
    """A worker object with one session for life, started by a task that has ended."""
    worker = Worker(zoo.engine)
    await asyncio.create_task(worker.start())
    await asyncio.create_task(worker.run())


async def child(session: AsyncSession) -> None:
    while True:
        await session.execute(QUERY)


@fault("long_hold", at="waits_for_a_child", world=AIOSQLITE)
async def child_under_a_timeout(zoo: Any) -> None:
    """Waits, through wait_for() and a queue, for a child that uses its session."""
    async with AsyncSession(zoo.engine) as session:
        await session.execute(PING)  # site: waits_for_a_child
        task = asyncio.create_task(child(session))
        answers: asyncio.Queue[int] = asyncio.Queue()
        await asyncio.wait_for(answers.get(), 30)
        task.cancel()


def csv_of(engine: Engine) -> Iterator[str]:
    with engine.connect() as connection:  # site: streamed
        for row in connection.execute(NUMBERS):
            yield str(row)


@fault("long_hold", "held_across_io", at="streamed")
async def streaming_response(zoo: Any) -> None:
    """A server pulls a synchronous generator through its worker threads."""
    stream = csv_of(zoo.engine)

    async def chunks() -> AsyncIterator[str]:
        while True:
            yield await asyncio.to_thread(next, stream)

    async for _ in chunks():
        await asyncio.sleep(0.1)


_app: dict[str, AsyncSession] = {}


async def one_tick(engine: Any) -> None:
    if "session" not in _app:
        _app["session"] = AsyncSession(engine)
    await _app["session"].execute(PING)  # site: tick


@fault(
    "long_hold", "held_across_io", at="tick", also="leaked.orphaned", world=AIOSQLITE
)
async def a_task_per_tick(zoo: Any) -> None:
    """A scheduler makes a task of each tick; they share a global session."""
    while True:
        await asyncio.create_task(one_tick(zoo.engine))
        await asyncio.sleep(0.05)
