"""Everything hangs although no pool call is wrong: who could move waits for the pool.

The circle is closed by something that is no connection: the threads of a server, an
event loop, the workers of an executor, a lock.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Engine, select, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from zoo.app import PING, QUERY
from zoo.models import Account
from zoo.registry import AIOSQLITE, fault
from zoo.web import serve, start, visit

LONGER = text("SELECT pg_sleep(0.3)")
"""Lasts until all clients have come."""


def tokens(number: int) -> Any:
    """The lifespan of a server with so many threads; the default is 40."""

    @asynccontextmanager
    async def lifespan(app: Any) -> AsyncIterator[None]:
        import anyio.to_thread

        anyio.to_thread.current_default_thread_limiter().total_tokens = number
        yield

    return lifespan


def session_of(engine: Engine) -> Any:
    """get_db() of every tutorial."""

    def get_db() -> Iterator[Session]:
        with Session(engine) as db:
            yield db

    return get_db


@fault(
    "pool_deadlock",
    at="validated_in_a_thread",
    also="exhausted",
    long_after=30,
    pool_size=2,
    max_overflow=0,
)
def response_validated_in_a_thread(zoo: Any) -> None:
    """Sync endpoints, a session from Depends(), and a response model.

    The session is closed after the response was validated, which needs a thread; all
    of them wait for the pool (fastapi/fastapi #3205, #12066).
    """
    from fastapi import Depends, FastAPI
    from pydantic import BaseModel, create_model

    engine = zoo.engine
    model: type[BaseModel] = create_model("Account", id=(int, ...), owner=(str, ...))
    app = FastAPI(lifespan=tokens(4))
    get_db = Depends(session_of(engine))

    @app.get("/", response_model=list[model])
    def accounts(db: Session = get_db) -> Any:
        db.execute(LONGER)  # site: validated_in_a_thread
        return db.scalars(select(Account)).all()

    visit(serve(app), 12)
    zoo.go_on()


@fault(
    "pool_deadlock",
    at="user_of_the_request",
    also="exhausted",
    long_after=30,
    pool_size=2,
    max_overflow=0,
)
def dependency_takes_it_before_the_endpoint(zoo: Any) -> None:
    """One dependency has queried; the endpoint is still to get a thread.

    (vipyrsec/dragonfly-mainframe #235)
    """
    from fastapi import Depends, FastAPI

    engine = zoo.engine
    app = FastAPI(lifespan=tokens(3))
    get_db = Depends(session_of(engine))

    def get_user(db: Session = get_db) -> int:
        db.execute(LONGER)  # site: user_of_the_request
        return 1

    user_of = Depends(get_user)

    @app.get("/")
    def home(user: int = user_of, db: Session = get_db) -> int:
        db.execute(PING)
        return user

    visit(serve(app), 12)
    zoo.go_on()


def load(engine: Engine) -> None:
    with Session(engine) as session:
        session.execute(PING)  # site: stops_the_loop


@fault(
    "pool_deadlock",
    at="task_of_the_loop stops_the_loop",
    also="exhausted",
    long_after=30,
    pool_size=1,
    max_overflow=0,
)
async def checkout_stops_the_loop(zoo: Any) -> None:
    """A synchronous checkout in the loop whose other task has the last connection.

    (xorbitsai/xagent #935)
    """

    engine = zoo.engine

    async def has_it() -> None:
        with Session(engine) as session:
            session.execute(PING)  # site: task_of_the_loop
            await asyncio.sleep(0.2)

    async def wants_one() -> None:
        await asyncio.sleep(0.1)
        load(engine)

    await asyncio.gather(has_it(), wants_one())


@fault(
    "pool_deadlock",
    at="async_endpoint",
    also="exhausted",
    long_after=30,
    pool_size=1,
    max_overflow=0,
)
def sync_session_in_async_endpoints(zoo: Any) -> None:
    """async def endpoints with a sync session (fastapi/fastapi #3205).

    The second request stops the loop that the first one needs to go on.
    """
    from fastapi import FastAPI

    engine = zoo.engine
    app = FastAPI()

    @app.get("/")
    async def home() -> int:
        with Session(engine) as session:
            session.execute(PING)  # site: async_endpoint
            await asyncio.sleep(0.3)
        return 1

    visit(serve(app), 4)
    zoo.go_on()


def part(engine: Engine) -> None:
    with engine.connect() as connection:  # site: part_of_a_job
        connection.execute(QUERY)


@fault(
    "pool_deadlock",
    at="whole_job part_of_a_job",
    also="exhausted",
    long_after=30,
    pool_size=1,
    max_overflow=0,
)
def job_waits_for_its_parts(zoo: Any) -> None:
    """The job holds the last connection and waits for workers who want one.

    (Normation/rudder #3219, in Python)
    """
    engine = zoo.engine
    executor = ThreadPoolExecutor(2)
    with engine.connect() as connection:  # site: whole_job
        connection.execute(PING)
        list(executor.map(part, [engine] * 2))


def parent(engine: Engine, executor: Any, begun: threading.Barrier) -> None:
    with engine.connect() as connection:  # site: parent_of_a_child
        connection.execute(PING)
        begun.wait()
        executor.submit(child).result()


def child() -> None:
    time.sleep(0.01)


@fault(
    "pool_deadlock",
    at="parent_of_a_child",
    bystanders="behind_the_parents",
    also="exhausted",
    long_after=30,
    pool_size=2,
    max_overflow=0,
)
def children_in_the_executor_of_their_parents(zoo: Any) -> None:
    """Every worker waits for a child that no worker is left to run.

    (palantir/atlasdb #1566, CorfuDB/CorfuDB #1689, in Python)
    """
    engine = zoo.engine
    executor = ThreadPoolExecutor(2)
    begun = threading.Barrier(3)
    for _ in range(2):
        executor.submit(parent, engine, executor, begun)
    begun.wait()
    with engine.connect() as connection:  # site: behind_the_parents
        connection.execute(PING)


@fault(
    "pool_deadlock",
    at="opened_in_a_worker",
    also="exhausted",
    long_after=30,
    pool_size=2,
    max_overflow=0,
)
async def steps_in_the_default_executor(zoo: Any) -> None:
    """Each step of a request runs in asyncio.to_thread(): open, query, close.

    The last steps wait behind the first steps of others, which wait for the pool
    (vert-x3/vertx-jdbc-client #12, hatchet-dev/hatchet #4803).
    """
    engine = zoo.engine
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(3))

    def begin() -> Session:
        session = Session(engine)
        session.execute(QUERY)  # site: opened_in_a_worker
        return session

    async def request() -> None:
        session = await asyncio.to_thread(begin)
        await asyncio.to_thread(session.execute, PING)
        await asyncio.to_thread(session.close)

    await asyncio.gather(*[request() for _ in range(8)])


_registry = threading.Lock()


def holds_and_locks(
    engine: Engine, begun: threading.Event, locked: threading.Event
) -> None:
    with engine.connect() as connection:  # site: holder_wants_the_lock
        connection.execute(PING)
        begun.set()
        locked.wait()
        with _registry:
            connection.execute(PING)


@fault(
    "pool_deadlock",
    at="holder_wants_the_lock lock_wants_the_pool",
    also="exhausted",
    long_after=30,
    pool_size=1,
    max_overflow=0,
)
def connection_and_lock(zoo: Any) -> None:
    """One has the connection and wants the lock, the other one the other way round.

    (brettwooldridge/HikariCP #1775, qoretechnologies/qore #3352, sleuthkit #2402)
    """
    engine = zoo.engine
    begun, locked = threading.Event(), threading.Event()
    start(holds_and_locks, engine, begun, locked)
    begun.wait()
    with _registry:
        locked.set()
        with engine.connect() as connection:  # site: lock_wants_the_pool
            connection.execute(PING)


class Cache:
    """Fills itself under a lock of its own."""

    def __init__(self, engine: Engine) -> None:
        self.lock = threading.RLock()
        self.engine = engine

    def get(self) -> None:
        self.lock.acquire()
        try:
            with Session(self.engine) as session:
                session.execute(PING)  # site: fills_the_cache
        finally:
            self.lock.release()


@fault(
    "pool_deadlock",
    at="asks_the_cache fills_the_cache",
    also="exhausted",
    long_after=30,
    pool_size=2,
    max_overflow=0,
)
def cache_with_a_lock(zoo: Any) -> None:
    """Requests with a connection ask a cache, which loads itself under an RLock.

    (coleifer/peewee #3047, coleifer/peewee #2874)
    """
    engine = zoo.engine
    cache = Cache(engine)
    meet = threading.Barrier(3)

    def request() -> None:
        with Session(engine) as session:
            session.execute(PING)  # site: asks_the_cache
            meet.wait()
            time.sleep(0.1)
            cache.get()

    for _ in range(2):
        start(request)
    meet.wait()
    cache.get()


@fault(
    "pool_deadlock",
    at="from_one to_the_other from_the_other to_one",
    also="exhausted",
    long_after=30,
    pool_size=1,
    max_overflow=0,
)
def two_pools_crosswise(zoo: Any) -> None:
    """From the first database to the second one, and back at the same time.

    (authgear/authgear-server #3058)
    """
    engine = zoo.engine
    other = zoo.new_engine("other")
    meet = threading.Barrier(2)

    def export() -> None:
        with engine.connect():  # site: from_one
            meet.wait()
            with other.connect():  # site: to_the_other
                pass

    def load_back() -> None:
        with other.connect():  # site: from_the_other
            meet.wait()
            with engine.connect():  # site: to_one
                pass

    start(export)
    start(load_back)
    zoo.go_on()


@fault(
    "pool_deadlock",
    at="sensitive_thread",
    also="exhausted",
    long_after=30,
    pool_size=1,
    max_overflow=0,
)
async def thread_sensitive(zoo: Any) -> None:
    """sync_to_async() has one thread: a checkout that waits stops each return.

    (django/asgiref #249, #348)
    """
    from asgiref.sync import sync_to_async

    engine = zoo.engine

    def begin() -> Session:
        session = Session(engine)
        session.execute(QUERY)  # site: sensitive_thread
        return session

    async def view() -> None:
        session = await sync_to_async(begin)()
        await asyncio.sleep(0.1)
        await sync_to_async(session.close)()

    await asyncio.gather(view(), view())


@fault(
    "pool_deadlock",
    at="in_the_transaction with_the_lock",
    also="exhausted",
    world=AIOSQLITE,
    long_after=30,
    pool_size=1,
    max_overflow=0,
)
async def connection_and_asyncio_lock(zoo: Any) -> None:
    """The same with an asyncio.Lock and tasks (mozilla-ai/clawbolt #1139)."""
    engine = zoo.engine
    lock = asyncio.Lock()

    async def locks_later() -> None:
        async with engine.connect() as connection:  # site: in_the_transaction
            await connection.execute(PING)
            await asyncio.sleep(0.2)
            async with lock:
                await connection.execute(PING)

    async def locks_first() -> None:
        await asyncio.sleep(0.1)
        async with lock, engine.connect() as connection:  # site: with_the_lock
            await connection.execute(PING)

    await asyncio.gather(locks_later(), locks_first())


async def item(engine: Any) -> None:
    async with engine.connect() as connection:  # site: each_item
        await connection.execute(PING)


@fault(
    "pool_deadlock",
    at="all_items each_item",
    also="exhausted",
    world=AIOSQLITE,
    long_after=30,
    pool_size=1,
    max_overflow=0,
)
async def gathers_in_its_transaction(zoo: Any) -> None:
    """A task gathers children that want connections of the same pool.

    (aio-libs/aiopg #113, #126)
    """
    engine = zoo.engine
    async with engine.connect() as connection:  # site: all_items
        await connection.execute(PING)
        await asyncio.gather(*[item(engine) for _ in range(3)])


@fault(
    "pool_deadlock",
    at="joins_a_thread joined",
    also="exhausted",
    long_after=30,
    pool_size=1,
    max_overflow=0,
)
def joins_a_thread(zoo: Any) -> None:
    """Starts a thread for some rows and joins it, in its own transaction.

    (Activiti/Activiti #90, in Python)
    """

    engine = zoo.engine

    def rows() -> None:
        with Session(engine) as session:
            session.execute(PING)  # site: joined

    with engine.begin() as connection:  # site: joins_a_thread
        connection.execute(PING)
        thread = threading.Thread(target=rows)
        thread.start()
        thread.join()


@fault(
    "pool_deadlock",
    at="middleware behind_the_middleware",
    also="exhausted",
    long_after=30,
    pool_size=2,
    max_overflow=0,
)
def middleware_around_the_endpoint(zoo: Any) -> None:
    """A middleware has a session open while the endpoint wants one of its own.

    (fastapi/fastapi #726, #2691)
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    engine = zoo.engine

    def audit(session: Session) -> None:
        session.execute(LONGER)  # site: middleware

    def load(request: Any) -> PlainTextResponse:
        with Session(engine) as session:
            session.execute(QUERY)  # site: behind_the_middleware
        return PlainTextResponse("loaded")

    async def with_session(request: Any, call_next: Any) -> Any:
        with Session(engine) as session:
            await run_in_threadpool(audit, session)
            return await call_next(request)

    app = Starlette(
        routes=[Route("/", load)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=with_session)],
    )
    visit(serve(app), 8)
    zoo.go_on()


@fault(
    "pool_deadlock",
    at="thread_asks_the_loop task_for_the_thread",
    also="exhausted",
    world=AIOSQLITE,
    long_after=30,
    pool_size=1,
    max_overflow=0,
)
async def thread_asks_the_loop(zoo: Any) -> None:
    """A task waits for a thread, which waits for a coroutine of the same pool.

    (xorbitsai/xagent #935, empicano/aiomqtt #174)
    """
    engine = zoo.engine
    loop = asyncio.get_running_loop()

    async def find() -> None:
        async with engine.connect() as connection:  # site: task_for_the_thread
            await connection.execute(PING)

    def work() -> None:
        asyncio.run_coroutine_threadsafe(find(), loop).result()

    async with engine.begin() as connection:  # site: thread_asks_the_loop
        await connection.execute(PING)
        await asyncio.to_thread(work)


@fault(
    "pool_deadlock",
    at="view_wants_to_schedule scheduler_looks",
    also="exhausted",
    long_after=30,
    pool_size=1,
    max_overflow=0,
)
def scheduler_and_view(zoo: Any) -> None:
    """A scheduler looks for jobs under its lock, a view adds one in its transaction.

    (agronholm/apscheduler #250)
    """
    from flask import Flask

    engine = zoo.engine
    locked, begun = threading.Event(), threading.Event()

    class Scheduler:
        def __init__(self) -> None:
            self._jobstores_lock = threading.RLock()

        def process_jobs(self) -> None:
            with self._jobstores_lock:
                locked.set()
                begun.wait()
                with Session(engine) as session:
                    session.execute(PING)  # site: scheduler_looks

        def add_job(self) -> None:
            with self._jobstores_lock:
                pass

    app, scheduler = Flask(__name__), Scheduler()
    sessions = scoped_session(sessionmaker(engine))

    @app.teardown_appcontext
    def remove(error: object) -> None:
        sessions.remove()

    @app.get("/")
    def view() -> str:
        sessions().execute(PING)  # site: view_wants_to_schedule
        begun.set()
        scheduler.add_job()
        return "added"

    start(scheduler.process_jobs)
    locked.wait()
    app.test_client().get("/")
