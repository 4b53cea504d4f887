"""Full pools and long waits, and yet somebody can move: no deadlock.

What is true of them, a busy or a small pool, may be said; ``also`` names it.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Engine, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from zoo.app import PING, QUERY
from zoo.graph import session_of, tokens
from zoo.models import Account
from zoo.registry import AIOSQLITE, fault, innocent
from zoo.web import serve, start, visit

SLOW = text("SELECT pg_sleep(0.7)")
"""Makes the others wait for more than a second."""


@innocent(
    also="held_across_io",
    bystanders="enough_of_them",
    lasts=3.0,
    pool_size=6,
    max_overflow=0,
)
def more_connections_than_threads(zoo: Any) -> None:
    """The same endpoints, with a connection for each thread and one more.

    (fastapi/fastapi #3205: what helped)
    """
    from fastapi import Depends, FastAPI

    engine = zoo.engine
    app = FastAPI(lifespan=tokens(4))

    get_db = Depends(session_of(engine))

    @app.get("/")
    def accounts(db: Session = get_db) -> list[int]:
        db.execute(QUERY)  # site: enough_of_them
        return [account.id for account in db.scalars(select(Account))]

    visit(serve(app), 6, again=True)
    zoo.go_on()


@innocent(
    also="exhausted undersized",
    bystanders="overloaded",
    lasts=4.0,
    seen=3,
    pool_size=3,
    max_overflow=0,
    pool_timeout=60,
)
def overloaded_but_moving(zoo: Any) -> None:
    """40 threads, 3 connections, slow queries: waits of many seconds, and progress.

    (fastapi/full-stack-fastapi-template #104)
    """
    from fastapi import FastAPI

    engine = zoo.engine
    app = FastAPI()

    @app.get("/")
    def accounts() -> int:
        with Session(engine) as db:
            db.execute(SLOW)  # site: overloaded
        return 1

    visit(serve(app), 40, again=True)
    zoo.go_on()


@innocent(
    also="exhausted undersized",
    bystanders="async_overloaded",
    world=AIOSQLITE,
    lasts=4.0,
    seen=2,
    pool_size=2,
    max_overflow=0,
    pool_timeout=60,
)
def async_engine_under_load(zoo: Any) -> None:
    """The same with tasks: they wait without stopping the loop (#3205: what helped)."""
    from fastapi import FastAPI

    engine = zoo.engine
    app = FastAPI()

    @app.get("/")
    async def accounts() -> int:
        async with AsyncSession(engine) as db:
            await db.execute(SLOW)  # site: async_overloaded
        return 1

    visit(serve(app), 12, again=True)
    zoo.go_on()


def work(engine: Engine, begun: threading.Event) -> None:
    with engine.connect() as connection:  # site: thread_that_works
        connection.execute(PING)
        begun.set()
        until = time.monotonic() + 20
        while time.monotonic() < until:
            sum(number * number for number in range(10_000))


@innocent(
    also="exhausted",
    bystanders="thread_that_works stopped_for_a_while",
    lasts=4.0,
    pool_size=1,
    max_overflow=0,
)
async def loop_waits_for_a_thread(zoo: Any) -> None:
    """The loop is stopped by a synchronous checkout; who has it is a thread, and works.

    (alibaba/ROCK #1210)
    """
    engine = zoo.engine
    begun = threading.Event()
    start(work, engine, begun)
    begun.wait()
    with Session(engine) as session:
        session.execute(PING)  # site: stopped_for_a_while


@innocent(
    also="exhausted held_across_io",
    bystanders="asks_a_service part_of_it whole_thing",
    lasts=4.0,
    seen=2,
    pool_size=2,
    max_overflow=0,
)
def one_of_the_holders_asks_a_service(zoo: Any) -> None:
    """Parts of a job wait for the pool, as does their parent; somebody is in HTTP.

    (pallets-eco/flask-sqlalchemy #930, fritz-marshal/fritz #234)
    """

    engine = zoo.engine

    def asks(begun: threading.Event) -> None:
        with engine.connect() as connection:  # site: asks_a_service
            connection.execute(PING)
            begun.set()
            urllib.request.urlopen(zoo.slow_url).read()

    def part(engine: Engine) -> None:
        with engine.connect() as connection:  # site: part_of_it
            connection.execute(QUERY)

    begun = threading.Event()
    start(asks, begun)
    begun.wait()
    executor = ThreadPoolExecutor(2)
    with engine.connect() as connection:  # site: whole_thing
        connection.execute(PING)
        list(executor.map(part, [engine] * 2))


_registry = threading.Lock()


@innocent(
    also="exhausted held_across_io",
    bystanders="will_return wants_the_lock has_the_lock",
    lasts=4.0,
    seen=2,
    pool_size=2,
    max_overflow=0,
)
def lock_and_a_third_one(zoo: Any) -> None:
    """Connection and lock crosswise, but a third holder will return its connection."""

    engine = zoo.engine

    def sleeps(begun: threading.Event) -> None:
        with engine.connect() as connection:  # site: will_return
            connection.execute(PING)
            begun.set()
            time.sleep(20)

    def holds_and_locks(begun: threading.Event) -> None:
        with engine.connect() as connection:  # site: wants_the_lock
            connection.execute(PING)
            begun.set()
            time.sleep(0.2)
            with _registry:
                connection.execute(PING)

    for target in (sleeps, holds_and_locks):
        begun = threading.Event()
        start(target, begun)
        begun.wait()
    with _registry, engine.connect() as connection:  # site: has_the_lock
        connection.execute(PING)


_turn = threading.Lock()


@innocent(
    also="exhausted held_across_io",
    bystanders="wants_its_turn beside_them",
    lasts=4.0,
    pool_size=1,
    max_overflow=0,
)
def lock_of_somebody_else(zoo: Any) -> None:
    """The lock is somebody's who writes a file; the others wait for the pool.

    (brettwooldridge/HikariCP #1775, without its circle)
    """

    engine = zoo.engine

    def writes(begun: threading.Event) -> None:
        with _turn:
            begun.set()
            time.sleep(20)

    def holds(begun: threading.Event) -> None:
        with engine.connect() as connection:  # site: wants_its_turn
            connection.execute(PING)
            begun.set()
            with _turn:
                pass

    for target in (writes, holds):
        begun = threading.Event()
        start(target, begun)
        begun.wait()
    with engine.connect() as connection:  # site: beside_them
        connection.execute(PING)


@innocent(
    also="exhausted held_across_io",
    bystanders="export import_again waits_there waits_here sleeps_there",
    lasts=4.0,
    seen=3,
    pool_size=1,
    max_overflow=0,
)
def crosswise_with_a_spare_one(zoo: Any) -> None:
    """Two pools crosswise; the second one has another holder, who sleeps.

    (authgear/authgear-server #3058, with a pool of 2)
    """
    engine = zoo.engine
    other = zoo.new_engine("other", pool_size=2)
    meet = threading.Barrier(2)

    def sleeps(begun: threading.Event) -> None:
        with other.connect() as connection:  # site: sleeps_there
            connection.execute(PING)
            begun.set()
            time.sleep(20)

    def export() -> None:
        with engine.connect():  # site: export
            meet.wait()
            with other.connect():  # site: waits_there
                pass

    def load_back() -> None:
        with other.connect():  # site: import_again
            meet.wait()
            with engine.connect():  # site: waits_here
                pass

    begun = threading.Event()
    start(sleeps, begun)
    begun.wait()
    start(export)
    start(load_back)
    zoo.go_on()


@innocent(
    also="exhausted held_across_io",
    bystanders="gives_up child_of_it",
    world=AIOSQLITE,
    lasts=3.0,
    pool_size=1,
    max_overflow=0,
)
async def will_give_up(zoo: Any) -> None:
    """A task waits for a child that wants its connection, but not for long.

    (psycopg/psycopg #1401: asyncio.wait_for() around it)
    """

    engine = zoo.engine

    async def child() -> None:
        async with engine.connect() as connection:  # site: child_of_it
            await connection.execute(PING)

    async with engine.connect() as connection:  # site: gives_up
        await connection.execute(PING)
        task = asyncio.create_task(child())
        await asyncio.wait([task], timeout=10)


@innocent(
    also="exhausted undersized",
    bystanders="starving",
    lasts=4.0,
    seen=2,
    pool_size=2,
    max_overflow=0,
)
def threads_that_starve_others(zoo: Any) -> None:
    """Threads that come back at once overtake those that wait (sqlalchemy #7679)."""

    engine = zoo.engine

    def loop() -> None:
        while True:
            with engine.connect() as connection:  # site: starving
                connection.execute(QUERY)

    for _ in range(12):
        start(loop)
    zoo.go_on()


@innocent(
    also="exhausted undersized",
    bystanders="many_tasks",
    world=AIOSQLITE,
    lasts=4.0,
    seen=2,
    pool_size=2,
    max_overflow=0,
    pool_timeout=60,
)
async def more_tasks_than_connections(zoo: Any) -> None:
    """Workers in a task group hold a connection for a while, each (asyncpg #1247)."""

    engine = zoo.engine

    async def worker() -> None:
        while True:
            async with engine.connect() as connection:  # site: many_tasks
                await connection.execute(SLOW)

    async with asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(worker())


@innocent(
    also="exhausted held_across_io",
    bystanders="idle_worker_is_left",
    lasts=4.0,
    seen=1,
    pool_size=1,
    max_overflow=0,
)
async def another_worker_is_free(zoo: Any) -> None:
    """One worker waits for the pool; who holds waits for a job in another worker.

    (hatchet-dev/hatchet #4803, with a thread to spare)
    """
    engine = zoo.engine
    asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(2))

    def begin() -> Session:
        session = Session(engine)
        session.execute(PING)  # site: idle_worker_is_left
        return session

    begun = asyncio.Event()

    async def first() -> None:
        session = await asyncio.to_thread(begin)
        begun.set()
        await asyncio.to_thread(time.sleep, 20)
        session.close()

    async def second() -> None:
        await begun.wait()
        await asyncio.to_thread(begin)

    await asyncio.gather(first(), second())


@fault(
    "held_across_io",
    at="job_over_http",
    also="exhausted",
    long_after=30,
    pool_size=2,
    max_overflow=0,
)
def jobs_over_http(zoo: Any) -> None:
    """Threads of a server wait for HTTP with a connection: not undersized.

    (pallets-eco/flask-sqlalchemy #930, fritz-marshal/fritz #234)
    """
    from flask import Flask
    from werkzeug.serving import make_server

    engine = zoo.engine

    def brief(environ: Any, respond: Any) -> list[bytes]:
        time.sleep(0.25)
        respond("200 OK", [])
        return [b"done"]

    jobs = make_server("127.0.0.1", 0, brief, threaded=True)
    start(jobs.serve_forever)
    app = Flask(__name__)

    @app.get("/")
    def order() -> str:
        with Session(engine) as session:
            session.execute(PING)  # site: job_over_http
            urllib.request.urlopen(f"http://127.0.0.1:{jobs.server_port}").read()
        return "ordered"

    server = make_server("127.0.0.1", 0, app, threaded=True)
    start(server.serve_forever)
    visit(f"http://127.0.0.1:{server.server_port}", 8, again=True)
    zoo.go_on()


@innocent(
    also="exhausted",
    bystanders="waits_for_a_result wants_one_meanwhile",
    lasts=4.0,
    pool_size=1,
    max_overflow=0,
)
def result_of_a_queue(zoo: Any) -> None:
    """Who holds waits for a queue, which a thread fills that computes.

    (pallets-eco/flask-sqlalchemy #930: somebody goes on, if slowly)
    """
    engine = zoo.engine
    results: queue.Queue[int] = queue.Queue()

    def compute() -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            sum(number * number for number in range(10_000))
        results.put(1)

    def holds(begun: threading.Event) -> None:
        with engine.connect() as connection:  # site: waits_for_a_result
            connection.execute(PING)
            begun.set()
            results.get()

    start(compute)
    begun = threading.Event()
    start(holds, begun)
    begun.wait()
    with engine.connect() as connection:  # site: wants_one_meanwhile
        connection.execute(PING)


@innocent(
    also="exhausted",
    bystanders="waits_for_its_worker behind_the_worker",
    lasts=4.0,
    pool_size=1,
    max_overflow=0,
)
def worker_that_computes(zoo: Any) -> None:
    """Who holds waits for a future; its worker computes, another one wants the pool.

    (Normation/rudder #3219, without its circle)
    """
    engine = zoo.engine
    executor = ThreadPoolExecutor(2)

    def compute() -> None:
        until = time.monotonic() + 20
        while time.monotonic() < until:
            sum(number * number for number in range(10_000))

    def wants() -> None:
        with engine.connect() as connection:  # site: behind_the_worker
            connection.execute(PING)

    with engine.connect() as connection:  # site: waits_for_its_worker
        connection.execute(PING)
        executor.submit(wants)
        executor.submit(compute).result()


@innocent(
    also="exhausted",
    bystanders="waits_for_an_event beside_the_event",
    world=AIOSQLITE,
    lasts=4.0,
    pool_size=1,
    max_overflow=0,
)
async def event_of_a_timer(zoo: Any) -> None:
    """A task waits for an event that a timer of its loop will set (asyncpg #1247)."""
    event = asyncio.Event()
    asyncio.get_running_loop().call_later(20, event.set)

    async def wants() -> None:
        async with zoo.engine.connect() as connection:  # site: beside_the_event
            await connection.execute(PING)

    async with zoo.engine.connect() as connection:  # site: waits_for_an_event
        await connection.execute(PING)
        task = asyncio.create_task(wants())
        await event.wait()
    await task


@innocent(
    also="held_across_io",
    bystanders="of_the_middleware of_the_endpoint",
    lasts=2.5,
    seen=1,
    pool_size=20,
)
def thread_serves_another_request(zoo: Any) -> None:
    """The thread that began one request serves the next, whose session is its own.

    (fastapi/fastapi #726, #2691)
    """
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.middleware import Middleware
    from starlette.middleware.base import BaseHTTPMiddleware
    from starlette.responses import PlainTextResponse
    from starlette.routing import Route

    engine = zoo.engine

    def load(request: Any) -> PlainTextResponse:
        with Session(engine) as session:
            session.execute(QUERY)  # site: of_the_endpoint
        return PlainTextResponse("loaded")

    def audit(session: Session) -> None:
        session.execute(QUERY)  # site: of_the_middleware

    async def with_session(request: Any, call_next: Any) -> Any:
        with Session(engine) as session:
            await run_in_threadpool(audit, session)
            return await call_next(request)

    app = Starlette(
        routes=[Route("/", load)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=with_session)],
        lifespan=tokens(4),
    )
    visit(serve(app), 6, again=True)
    zoo.go_on()
