"""The same fault in other circumstances: what would have helped differs.

Half of the cases are innocents that look like the faults.
"""

from __future__ import annotations

import asyncio
import gc
import threading
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import anyio
import uvicorn
from fastapi import BackgroundTasks, Depends, FastAPI
from fastapi.responses import StreamingResponse
from sqlalchemy import Connection, Engine, select
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    AsyncSession,
    async_scoped_session,
    async_sessionmaker,
)
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from zoo.app import PING, QUERY
from zoo.models import Account
from zoo.registry import AIOSQLITE, ASYNCPG, POSTGRES, fault, innocent

_kept: dict[str, Any] = {}


# -- a dependency that ends after the response --------------------------------------


def visit(app: Any, path: str, *, again: bool = False) -> None:
    """Serve an application, and be its client in another thread."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error"))

    def client() -> None:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        while True:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}") as response:
                response.read()
            if not again:
                return
            time.sleep(0.1)

    threading.Thread(target=client, daemon=True).start()
    server.run()


def shop(engine: Engine) -> tuple[Any, Any]:
    def get_db() -> Iterator[Session]:
        db = sessionmaker(engine)()
        try:
            yield db
        finally:
            db.close()

    return FastAPI(), Depends(get_db)


@fault(
    "held_across_io", "long_hold", at="before_the_stream", remedy="before the response"
)
def stream_behind_a_dependency(zoo: Any) -> None:
    """The session of a yield dependency stays open while the stream is sent.

    aegra/aegra #423, Mng-dev-ai/agentrove #809
    """
    app, dependency = shop(zoo.engine)

    @app.get("/events")
    def events(db: Session = dependency) -> Any:
        db.execute(PING)  # site: before_the_stream

        async def ticks() -> AsyncIterator[bytes]:
            while True:
                yield b"tick\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(ticks())

    visit(app, "/events")


@fault(
    "held_across_io",
    "long_hold",
    at="before_the_mail",
    world=AIOSQLITE,
    remedy="before the response",
)
def mail_behind_a_dependency(zoo: Any) -> None:
    """A background task of the response runs before the dependency ends.

    fastapi/fastapi #11143
    """

    async def get_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(zoo.engine) as db:
            yield db

    async def mail() -> None:
        await asyncio.sleep(30)

    app = FastAPI()

    @app.post("/orders")
    @app.get("/orders")
    async def order(
        background: BackgroundTasks,
        db: AsyncSession = Depends(get_db),  # noqa: B008 - FastAPI's way
    ) -> None:
        await db.execute(PING)  # site: before_the_mail
        background.add_task(mail)

    visit(app, "/orders")


@innocent()
def short_answers_with_a_dependency(zoo: Any) -> None:
    """The same dependency behind short answers: it ends as soon as they are sent."""
    app, dependency = shop(zoo.engine)

    @app.get("/")
    def index(db: Session = dependency) -> None:
        db.execute(QUERY)

    visit(app, "/", again=True)


@innocent(long_after=0.3, seen=0)
def closed_before_the_stream(zoo: Any) -> None:
    """The endpoint closes the session of its dependency before the stream is sent."""
    app, dependency = shop(zoo.engine)

    @app.get("/events")
    def events(db: Session = dependency) -> Any:
        db.execute(QUERY)
        db.close()

        async def ticks() -> AsyncIterator[bytes]:
            while True:
                yield b"tick\n"
                await asyncio.sleep(0.05)

        return StreamingResponse(ticks())

    visit(app, "/events")


@innocent(world=AIOSQLITE)
def mail_with_its_own_session(zoo: Any) -> None:
    """The background task opens a session of its own, for one statement."""

    async def get_db() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(zoo.engine) as db:
            yield db

    async def mail() -> None:
        async with AsyncSession(zoo.engine) as db:
            for _ in range(10):
                await db.execute(QUERY)

    app = FastAPI()

    @app.get("/orders")
    async def order(
        background: BackgroundTasks,
        db: AsyncSession = Depends(get_db),  # noqa: B008 - FastAPI's way
    ) -> None:
        await db.execute(PING)
        await db.close()
        background.add_task(mail)

    visit(app, "/orders", again=True)


# -- scoped sessions and thread-locals ----------------------------------------------

pool_of_threads = ThreadPoolExecutor(2, "worker")


@fault("leaked.abandoned", at="scan", remedy="remove()")
def scoped_in_a_pool_of_threads(zoo: Any) -> None:
    """A job of a thread pool uses the scoped session, and nobody removes it.

    talebook/talebook #283, Netflix/dispatch #3634
    """
    _kept["db"] = db = scoped_session(sessionmaker(zoo.engine))

    def scan() -> None:
        db.execute(PING)  # site: scan

    pool_of_threads.submit(scan)
    zoo.go_on()


@innocent(long_after=0.3)
def scoped_and_removed_in_a_pool(zoo: Any) -> None:
    """The same with remove() at the end of each job."""
    _kept["db"] = db = scoped_session(sessionmaker(zoo.engine))

    def scan() -> None:
        db.execute(QUERY)
        db.remove()

    while True:
        pool_of_threads.submit(scan).result()


_here = threading.local()


@fault("leaked.abandoned", at="kept_per_thread", remedy="threading.local")
def own_thread_local(zoo: Any) -> None:
    """A threading.local of one's own keeps each worker's session.

    pwyf/aid-transparency-tracker #84
    """

    def import_file() -> None:
        _here.db = Session(zoo.engine)
        _here.db.execute(PING)  # site: kept_per_thread

    pool_of_threads.submit(import_file)
    zoo.go_on()


@innocent(long_after=0.3)
def own_thread_local_closed(zoo: Any) -> None:
    """The same threading.local, whose session each job closes."""

    def import_file() -> None:
        _here.db = Session(zoo.engine)
        _here.db.execute(QUERY)
        _here.db.close()

    while True:
        pool_of_threads.submit(import_file).result()


@fault(
    "leaked.orphaned",
    at="removed_elsewhere",
    world=AIOSQLITE,
    long_after=30,
    remedy="remove()",
)
async def removed_by_another_task(zoo: Any) -> None:
    """A middleware removes the session of its own task; the endpoint has another one.

    DataJunction/dj #1430, sqlalchemy/sqlalchemy #8340
    """
    _kept["db"] = db = async_scoped_session(
        async_sessionmaker(zoo.engine), asyncio.current_task
    )

    async def endpoint() -> None:
        await db.execute(PING)  # site: removed_elsewhere

    async def middleware() -> None:
        try:
            await asyncio.create_task(endpoint())
        finally:
            await db.remove()

    await asyncio.create_task(middleware())


@innocent(world=AIOSQLITE)
async def removed_by_its_own_task(zoo: Any) -> None:
    """Each task removes its own session."""
    _kept["db"] = db = async_scoped_session(
        async_sessionmaker(zoo.engine), asyncio.current_task
    )

    async def endpoint() -> None:
        try:
            await db.execute(QUERY)
        finally:
            await db.remove()

    while True:
        await asyncio.create_task(endpoint())


# -- a with that is there and does not return the connection ------------------------


def psycopg2_pool(zoo: Any) -> Any:
    from psycopg2.pool import ThreadedConnectionPool

    import poolwatch

    pool = _kept["pool"] = ThreadedConnectionPool(1, 5, zoo.dsn)
    poolwatch.instrument(pool, name="app", long_after=0.3)
    return pool


def charge(pool: Any) -> None:
    connection = pool.getconn()  # site: only_commits
    with connection:
        connection.cursor().execute("SELECT 1")
    _kept["last"] = connection


@fault("leaked.abandoned", at="only_commits", world=POSTGRES, remedy="putconn()")
def with_connection_only_commits(zoo: Any) -> None:
    """psycopg2's ``with connection`` ends the transaction; nobody calls putconn().

    psycopg/psycopg2 #778
    """
    charge(psycopg2_pool(zoo))
    zoo.go_on()


def charge_in_one_line(pool: Any) -> None:
    with pool.getconn() as connection:  # site: getconn_in_a_with
        connection.cursor().execute("SELECT 1")


@fault(
    "leaked.collected", at="getconn_in_a_with", world=POSTGRES, remedy="does not return"
)
def with_getconn(zoo: Any) -> None:
    """``with pool.getconn()``: the block commits, and the connection is lost.

    psycopg/psycopg2 #1108
    """
    charge_in_one_line(psycopg2_pool(zoo))
    zoo.go_on()


@innocent(world=POSTGRES)
def with_connection_and_putconn(zoo: Any) -> None:
    """The same ``with connection``, and putconn() in a finally clause."""
    pool = psycopg2_pool(zoo)
    while True:
        connection = pool.getconn()
        try:
            with connection:
                connection.cursor().execute("SELECT pg_sleep(0.05)")
        finally:
            pool.putconn(connection)


class Ledger:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.connection: Connection | None = None

    def post(self) -> None:
        self.connection = self.engine.connect()  # site: begin_only_commits
        with self.connection.begin():
            self.connection.execute(PING)


@fault("leaked.abandoned", at="begin_only_commits", remedy="does not return")
def with_begin_only_commits(zoo: Any) -> None:
    """``with connection.begin()`` ends the transaction, not the hold.

    sqlalchemy/sqlalchemy #6462
    """
    _kept["ledger"] = Ledger(zoo.engine)
    _kept["ledger"].post()
    zoo.go_on()


@innocent(long_after=0.3)
def begin_and_close(zoo: Any) -> None:
    """The same ``with connection.begin()``, and close() in a finally clause."""
    while True:
        connection = zoo.engine.connect()
        try:
            with connection.begin():
                connection.execute(QUERY)
        finally:
            connection.close()


async def asyncpg_pool(zoo: Any) -> Any:
    import asyncpg

    import poolwatch

    pool = _kept["pool"] = await asyncpg.create_pool(zoo.dsn)
    poolwatch.instrument(pool, name="app")
    return pool


@fault(
    "leaked.orphaned",
    at="transaction_only",
    world=ASYNCPG,
    long_after=30,
    remedy="call release()",
)
async def with_transaction_only_commits(zoo: Any) -> None:
    """``async with connection.transaction()`` of asyncpg; nobody calls release().

    MagicStack/asyncpg #97
    """
    pool = await asyncpg_pool(zoo)

    async def job() -> None:
        connection = _kept["last"] = await pool.acquire()  # site: transaction_only
        async with connection.transaction():
            await connection.execute("SELECT 1")

    await asyncio.create_task(job())


@innocent(world=ASYNCPG)
async def with_transaction_and_release(zoo: Any) -> None:
    """The same transaction, in a pool's own context manager."""
    pool = await asyncpg_pool(zoo)
    while True:
        async with pool.acquire() as connection, connection.transaction():
            await connection.execute("SELECT pg_sleep(0.05)")


def rows(engine: Engine) -> Iterator[Any]:
    with engine.connect() as connection:  # site: with_in_a_generator
        yield from connection.execute(select(Account))


def peek(engine: Engine) -> None:
    _kept["rows"] = stream = rows(engine)
    next(stream)


@fault("leaked.abandoned", at="with_in_a_generator", remedy="close the generator")
def generator_left_inside_its_with(zoo: Any) -> None:
    """There is a with block, in a generator that was left in the middle.

    onyx-dot-app/onyx #1238
    """
    peek(zoo.engine)
    zoo.go_on()


@innocent()
def generator_that_is_closed(zoo: Any) -> None:
    """The same generator, closed after its first row."""
    while True:
        stream = rows(zoo.engine)
        next(stream)
        time.sleep(0.05)
        stream.close()


@fault("leaked.abandoned", at="without_a_with", remedy="Use a with block")
def plainly_forgotten(zoo: Any) -> None:
    """No with, no close: the advice to use one is right here.

    apache/superset #7570
    """

    def test_connection() -> None:
        _kept["test"] = connection = zoo.engine.connect()  # site: without_a_with
        connection.execute(PING)

    test_connection()
    zoo.go_on()


# -- sessions -----------------------------------------------------------------------


class Repository:
    def __init__(self, engine: Engine) -> None:
        self.connection = engine.connect()  # site: bound_to_a_connection
        self.session = Session(bind=self.connection)

    def save(self) -> None:
        self.session.execute(PING)
        self.session.commit()
        self.session.close()


@fault("leaked.abandoned", at="bound_to_a_connection", remedy="bound to a Connection")
def session_on_a_connection(zoo: Any) -> None:
    """commit() and close() of a session on a Connection leave the connection out.

    cloudify-cosmo/cloudify-manager #3336
    """

    def start() -> None:
        _kept["repository"] = Repository(zoo.engine)
        _kept["repository"].save()

    start()
    zoo.go_on()


@innocent()
def session_on_a_connection_that_is_closed(zoo: Any) -> None:
    """The same in the way of a test's fixture: the connection is closed at the end."""
    while True:
        with zoo.engine.connect() as connection, Session(bind=connection) as session:
            session.execute(QUERY)
            session.commit()


def two_reports(engine: Engine) -> None:
    session = _kept["session"] = Session(engine)
    session.execute(PING)
    session.close()
    session.execute(PING)  # site: used_after_close


@fault("leaked.abandoned", at="used_after_close", remedy="closed, by close()")
def closed_and_used_again(zoo: Any) -> None:
    """A session begins again when it is used after close().

    sqlalchemy/alembic #726
    """
    two_reports(zoo.engine)
    zoo.go_on()


def report_and_log(make: Any) -> None:
    with make() as session:
        _kept["session"] = session
        session.execute(PING)
    session.execute(PING)  # site: used_after_its_with


@fault("leaked.abandoned", at="used_after_its_with", remedy="closed, by its with block")
def used_after_its_with_block(zoo: Any) -> None:
    """The block has ended and closed the session; one more line uses it.

    thoth-station/storages #1295
    """
    report_and_log(sessionmaker(zoo.engine))
    zoo.go_on()


def log(session: Session) -> None:
    session.execute(PING)  # site: helper_after_its_with


@fault(
    "leaked.abandoned", at="helper_after_its_with", remedy="closed, by its with block"
)
def helper_after_its_with_block(zoo: Any) -> None:
    """The block has closed the session; a helper that gets it begins again.

    thoth-station/storages #1295
    """

    def report() -> None:
        with Session(zoo.engine) as session:
            _kept["session"] = session
            session.execute(PING)
        log(session)

    report()
    zoo.go_on()


@innocent(long_after=0.3)
def helper_inside_its_with_block(zoo: Any) -> None:
    """The helper uses the session inside the block, and again in the next one."""
    while True:
        with Session(zoo.engine) as session:
            session.execute(QUERY)
            log(session)


@innocent()
def closed_and_used_again_and_closed(zoo: Any) -> None:
    """A session that is used again after close(), and closed again."""
    session = Session(zoo.engine)
    while True:
        session.execute(QUERY)
        session.close()
        session.execute(QUERY)
        session.close()


def total(engine: Engine) -> int:
    session = _kept["session"] = Session(engine)
    account = session.get(Account, 1)
    session.commit()
    assert account is not None
    return len(account.entries)  # site: lazy_load


@fault("leaked.abandoned", at="lazy_load", remedy="Account.entries")
def lazy_load_after_commit(zoo: Any) -> None:
    """commit() returns the connection; a relationship checks it out again.

    cockroachdb/sqlalchemy-cockroachdb #52, sqlalchemy/sqlalchemy #8769
    """
    total(zoo.engine)
    zoo.go_on()


def owner(make: Any) -> str:
    session = make()
    account = session.get(Account, 1)
    session.commit()
    return str(account.owner)  # site: refreshed


@fault("leaked.collected", at="refreshed", long_after=30, remedy="Account.owner")
def expired_attribute_after_commit(zoo: Any) -> None:
    """An expired column is loaded again, on a session that nobody closes.

    sqlalchemy/sqlalchemy #5317
    """
    owner(sessionmaker(zoo.engine))
    gc.collect()
    zoo.go_on()


@innocent()
def lazy_load_in_a_with(zoo: Any) -> None:
    """The same lazy loads, inside the block of the session."""
    while True:
        with Session(zoo.engine) as session:
            account = session.get(Account, 1)
            session.commit()
            assert account is not None
            assert account.entries
            session.execute(QUERY)


# -- nested, and the outer one has done nothing -------------------------------------


def save_order(engine: Engine) -> None:
    with engine.begin():  # site: outer_for_nothing
        insert_order(engine)


def insert_order(engine: Engine) -> None:
    with engine.begin() as connection:  # site: inner_for_nothing
        while True:
            connection.execute(QUERY)


@fault(
    "nested",
    at="outer_for_nothing inner_for_nothing",
    long_after=30,
    remedy="No statement was seen",
)
def transaction_around_repositories(zoo: Any) -> None:
    """engine.begin() around repository calls that open their own connections.

    graphprotocol/graph-node #1631
    """
    save_order(zoo.engine)


def audited(engine: Engine) -> None:
    with engine.begin() as connection:  # site: outer_of_use
        connection.execute(PING)
        write_audit(engine)


def write_audit(engine: Engine) -> None:
    with engine.begin() as connection:  # site: inner_of_use
        while True:
            connection.execute(QUERY)


@fault(
    "nested",
    at="outer_of_use inner_of_use",
    long_after=30,
    remedy="Pass the connection that is already held",
)
def transaction_with_an_audit(zoo: Any) -> None:
    """The outer connection has run a statement: the inner code can share it."""
    audited(zoo.engine)


@innocent()
def one_transaction_after_the_other(zoo: Any) -> None:
    """The same two functions, one after the other."""
    while True:
        with zoo.engine.begin():
            pass
        with zoo.engine.begin() as connection:
            connection.execute(QUERY)


# -- garbage, and closes that were cancelled ----------------------------------------


@fault(
    "leaked.abandoned",
    "leaked.collected",
    at="temporary",
    remedy="collector, which is switched off",
)
def garbage_in_a_cycle(zoo: Any) -> None:
    """No variable has the connection, a reference cycle does, and the collector is off.

    sqlalchemy/sqlalchemy #4979
    """
    gc.disable()

    def count() -> Any:
        connection = zoo.engine.connect()  # site: temporary
        connection.execute(PING)
        cycle: list[Any] = [connection]
        cycle.append(cycle)

    count()
    zoo.go_on()


@innocent(long_after=0.3)
def temporaries_that_are_closed(zoo: Any) -> None:
    """Connections without a variable, each in a with block."""
    gc.disable()
    while True:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)


class UnitOfWork:
    def __init__(self, engine: AsyncEngine, *, shield: bool) -> None:
        self.session = _kept["session"] = AsyncSession(engine)
        self.shield = shield

    async def __aenter__(self) -> AsyncSession:
        return self.session

    async def __aexit__(self, *_: object) -> None:
        with anyio.CancelScope(shield=self.shield):
            await asyncio.sleep(0.01)
            await self.session.close()


@fault(
    "leaked.orphaned",
    at="end_was_cancelled",
    world=AIOSQLITE,
    long_after=30,
    remedy="shield that from cancellation",
)
async def end_of_its_with_was_cancelled(zoo: Any) -> None:
    """There is an async with, whose __aexit__ is cancelled before it closes.

    greeves89/AI-Employee #344
    """

    async def answer(begun: asyncio.Event) -> None:
        async with UnitOfWork(zoo.engine, shield=False) as session:
            await session.execute(PING)  # site: end_was_cancelled
            begun.set()
            await asyncio.sleep(30)

    await disconnect(answer)


@innocent(world=AIOSQLITE)
async def end_of_its_with_is_shielded(zoo: Any) -> None:
    """The same unit of work, whose end is shielded."""

    async def answer(begun: asyncio.Event) -> None:
        async with UnitOfWork(zoo.engine, shield=True) as session:
            await session.execute(QUERY)
            begun.set()
            await asyncio.sleep(30)

    while True:
        await disconnect(answer)


class Chat:
    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine

    async def answer(self, begun: asyncio.Event) -> None:
        self.connection = await self.engine.connect()  # site: close_was_cancelled
        try:
            await self.connection.execute(PING)
            begun.set()
            await asyncio.sleep(30)
        finally:
            await self.say_goodbye()
            await self.connection.close()

    async def say_goodbye(self) -> None:
        await asyncio.sleep(0.01)


async def disconnect(answer: Any) -> None:
    """The client goes away: every further await of the request is cancelled."""
    begun = asyncio.Event()

    async def request() -> None:
        with anyio.CancelScope() as scope:
            _kept["scope"] = scope
            await answer(begun)

    task = asyncio.create_task(request())
    await begun.wait()
    _kept["scope"].cancel()
    with suppress(asyncio.CancelledError):
        await task


@fault(
    "leaked.orphaned",
    at="close_was_cancelled",
    world=AIOSQLITE,
    long_after=30,
    remedy="hield",
)
async def close_was_cancelled_too(zoo: Any) -> None:
    """The finally clause that closes the connection is cancelled as well.

    sqlalchemy/sqlalchemy #8145, greeves89/AI-Employee #344
    """
    _kept["chat"] = Chat(zoo.engine)
    await disconnect(_kept["chat"].answer)


@innocent(world=AIOSQLITE)
async def shielded_close(zoo: Any) -> None:
    """The same request, whose close is shielded from the cancellation."""

    async def answer(begun: asyncio.Event) -> None:
        connection = await zoo.engine.connect()
        try:
            await connection.execute(QUERY)
            begun.set()
            await asyncio.sleep(30)
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(0.01)
                await connection.close()

    while True:
        await disconnect(answer)
