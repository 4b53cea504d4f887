"""Who can go on with it: suspended code, calls of the same function, stopped loops.

Rebuilt from public reports; each case names its own. The faults are connections that
only suspended or finished code refers to, the look-alikes those that a request, a
pending task or a scheduled call will return.
"""

from __future__ import annotations

import asyncio
import http.client
import queue
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Any

import uvicorn
from fastapi import BackgroundTasks, Depends, FastAPI, Request
from fastapi.responses import JSONResponse, StreamingResponse
from flask import Flask, stream_with_context
from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from werkzeug.serving import make_server
from werkzeug.test import EnvironBuilder
from zoo.app import PING, ROWS
from zoo.registry import AIOSQLITE, fault, innocent

_kept: dict[str, Any] = {}
"""What a module keeps: a cache, a registry, a list of errors."""


def start(target: Callable[..., Any], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def serve(app: Any) -> int:
    """Run an ASGI application under uvicorn, in a thread; return its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, log_level="critical", timeout_keep_alive=60)
    start(uvicorn.Server(config).run, [listener])
    return int(listener.getsockname()[1])


def serve_wsgi(app: Any) -> int:
    """Run a WSGI application in the threads of a server; return its port."""

    server = make_server("127.0.0.1", 0, app, threaded=True)
    start(server.serve_forever)
    return int(server.server_port)


def get(port: int, path: str = "/") -> http.client.HTTPConnection:
    """Ask, and read no more than the headers; the connection stays open."""
    client = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    deadline = time.monotonic() + 10
    while True:
        try:
            client.request("GET", path)
            break
        except ConnectionRefusedError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
    return client


def read_slowly(port: int) -> None:
    """A client that takes a byte of a stream now and then."""
    answer = get(port).getresponse()
    while answer.read(1):
        time.sleep(0.1)


def wait_for_something_else() -> None:
    """The work of a job that needs no database."""
    while True:
        time.sleep(0.02)


# -- suspended, and nothing will go on with it ---------------------------------------


@fault("leaked.abandoned", "leaked.orphaned", at="export_cursor")
def cursor_in_the_state_of_the_application(zoo: Any) -> None:
    """An export waits in ``app.state`` for a next page that nobody asks for.

    designcomputer/mysql_mcp_server #20, brianc/node-postgres #2441
    """

    app = FastAPI()
    app.state.exports = {}

    async def rows() -> AsyncIterator[str]:
        with zoo.engine.connect() as connection:  # site: export_cursor
            for row in connection.execute(ROWS):
                yield str(row)

    @app.get("/")
    async def export() -> str:
        app.state.exports["nightly"] = export = rows()
        return await anext(export)

    print(get(serve(app)).getresponse().read())
    zoo.go_on()


def get_db(engine: Engine) -> Iterator[Session]:
    with Session(engine) as session:
        yield session


@fault("leaked.abandoned", "leaked.orphaned", at="state_of_a_request")
def session_in_the_state_of_a_finished_request(zoo: Any) -> None:
    """A middleware begins the dependency and never ends it. The keep-alive connection
    still has its last request.

    Kludex/uvicorn #1564, Netflix/dispatch #4882
    """

    app = FastAPI()

    @app.middleware("http")
    async def with_session(request: Request, call_next: Any) -> Any:
        request.state.dependency = get_db(zoo.engine)
        return await call_next(request)

    @app.get("/")
    async def orders(request: Request) -> str:
        db = next(request.state.dependency)
        return str(db.execute(PING).scalar())  # site: state_of_a_request

    client = get(serve(app))
    print(client.getresponse().read())
    _kept["client"] = client  # it stays connected
    zoo.go_on()


@innocent(long_after=0.5, seen=0)
def dependency_left_by_an_error(zoo: Any) -> None:
    """A dependency goes over another one by ``async for``, which an error leaves
    suspended; the loop closes it soon after.

    mozilla-ai/otari #1236
    """
    app = FastAPI()
    _kept["errors"] = []

    async def get_session() -> AsyncIterator[Session]:
        with Session(zoo.engine) as session:
            yield session

    async def get_session_if_needed() -> AsyncIterator[Session]:
        async for session in get_session():
            yield session

    @app.exception_handler(RuntimeError)
    async def report(request: Request, error: Exception) -> JSONResponse:
        _kept["errors"].append(error)
        return JSONResponse({}, 500)

    @app.get("/")
    async def complete(db: Session = Depends(get_session_if_needed)) -> str:  # noqa: B008
        db.execute(PING)
        raise RuntimeError("the provider does not answer")

    port = serve(app)
    while True:
        get(port).getresponse().read()
        time.sleep(0.1)


def stream_of_orders(engine: Engine) -> Iterator[str]:
    with engine.connect() as connection:  # site: abandoned_stream
        for row in connection.execute(ROWS):
            yield f"{row}\n"


@fault("leaked.abandoned", "leaked.orphaned", at="abandoned_stream")
def stream_of_a_client_that_went_away(zoo: Any) -> None:
    """A bridge pulls a Flask stream through its threads and does not close it when the
    client is gone. Its threads serve others.

    pallets/flask #6123
    """

    app = Flask("shop")
    app.add_url_rule(
        "/",
        view_func=lambda: stream_with_context(stream_of_orders(zoo.engine)),
        endpoint="orders",
    )
    threads = ThreadPoolExecutor(1)

    def answer() -> None:
        environ = EnvironBuilder("/").get_environ()
        body = iter(app(environ, lambda status, headers, error=None: None))
        next(body)
        _kept["body"] = body

    threads.submit(answer).result()
    threads.submit(wait_for_something_else)
    zoo.go_on()


async def notify(session: Session) -> None:
    session.execute(PING)
    session.close()


def handle_order(engine: Engine) -> None:
    session = Session(engine)
    session.execute(PING)  # site: never_awaited
    _kept["notifications"] = [notify(session)]


@fault("leaked.abandoned", at="never_awaited")
def coroutine_that_nobody_awaits(zoo: Any) -> None:
    """The coroutine that would close the session is collected, and never awaited.

    sqlalchemy/sqlalchemy #9234, AlexFlipnote/discord_bot.py #54
    """
    handle_order(zoo.engine)
    zoo.go_on()


async def listen(engine: Engine, ready: asyncio.Event) -> None:
    with engine.connect() as connection:  # site: stopped_loop
        connection.execute(PING)
        ready.set()
        await asyncio.sleep(3600)


def run_job(engine: Engine) -> None:
    _kept["loop"] = loop = asyncio.new_event_loop()

    async def job() -> None:
        ready = asyncio.Event()
        _kept["listener"] = asyncio.create_task(listen(engine, ready))
        await ready.wait()

    loop.run_until_complete(job())


@fault("leaked.abandoned", "leaked.orphaned", at="stopped_loop")
def task_of_a_loop_that_nobody_runs(zoo: Any) -> None:
    """A job runs in a loop of its own and leaves a task behind; the loop is not run
    again.

    yalding8/uhomesjob #204, rethinkdb/rethinkdb #5043
    """
    start(run_job, zoo.engine).join()
    zoo.go_on()


async def leave_a_listener(engine: Engine) -> None:
    ready = asyncio.Event()
    _kept["last"] = asyncio.create_task(listen_again(engine, ready))
    await ready.wait()


async def listen_again(engine: Engine, ready: asyncio.Event) -> None:
    with engine.connect() as connection:  # site: run_once
        connection.execute(PING)
        ready.set()
        await asyncio.sleep(3600)


@fault("leaked.abandoned", at="run_once")
def loop_that_its_function_runs_only_once(zoo: Any) -> None:
    """A script runs its loop once, and goes on without it.

    rethinkdb/rethinkdb #5043
    """
    loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_a_listener(zoo.engine))
    zoo.go_on()


@fault("leaked.abandoned", "leaked.orphaned", at="closed_by_a_timer")
def timer_of_a_loop_that_nobody_runs(zoo: Any) -> None:
    """A call of a loop would close the connection; the loop is not run again.

    aio-libs/aiojobs #61
    """
    start(job_with_a_timer, zoo.engine).join()
    zoo.go_on()


def job_with_a_timer(engine: Engine) -> None:
    _kept["loop"] = loop = asyncio.new_event_loop()

    async def job() -> None:
        connection = engine.connect()  # site: closed_by_a_timer
        loop.call_later(0.1, connection.close)

    loop.run_until_complete(job())


_session: ContextVar[Session] = ContextVar("session")


@fault("leaked.orphaned", at="context_of_a_call", long_after=30)
async def context_of_a_scheduled_call(zoo: Any) -> None:
    """A call that is scheduled in a request keeps its context, and with it a session
    that the call never uses.

    aio-libs/aiohttp #3938
    """

    async def request() -> None:
        session = Session(zoo.engine)
        _session.set(session)
        session.execute(PING)  # site: context_of_a_call
        asyncio.get_running_loop().call_later(3600, print)

    await asyncio.create_task(request())


# -- the function is running again, for other work -----------------------------------


def process(engine: Engine, job: str) -> None:
    if job == "broken":
        session = Session(engine)
        session.execute(PING)  # site: next_call
        raise RuntimeError(job)
    wait_for_something_else()


@fault("leaked.abandoned", at="next_call")
def same_function_in_its_next_job(zoo: Any) -> None:
    """A worker keeps the error of a job and is in the same function for the next one,
    which needs no database.

    vantage6/vantage6 #2678
    """

    def work() -> None:
        for job in ("broken", "fine"):
            try:
                process(zoo.engine, job)
            except RuntimeError as error:
                _kept["error"] = error

    start(work)
    zoo.go_on()


def crawl(engine: Engine, folder: str, depth: int) -> None:
    if folder == "left" and depth == 2:
        connection = engine.connect()  # site: other_branch
        _kept.setdefault("seen", []).append(connection)
    elif depth == 2:
        wait_for_something_else()
    else:
        for each in ("left", "right"):
            crawl(engine, each, depth + 1)


@fault("leaked.abandoned", at="other_branch")
def recursion_in_another_branch(zoo: Any) -> None:
    """A recursion has left a connection behind in one branch and is in another one.

    open-metadata/OpenMetadata #6478
    """
    start(crawl, zoo.engine, "root", 0)
    zoo.go_on()


def export(engine: Engine, job: str) -> None:
    connection = engine.connect()  # site: old_in_a_list
    connection.execute(PING)
    if job == "broken":
        _kept["unfinished"] = [connection]
        return
    connection.close()
    wait_for_something_else()


@fault("leaked.abandoned", at="old_in_a_list")
def old_connection_in_a_list(zoo: Any) -> None:
    """A worker has put a connection aside, and is in the same function for a job that
    has returned its own.

    dchevell/flask-executor #15
    """

    def work() -> None:
        for job in ("broken", "fine"):
            export(zoo.engine, job)

    with zoo.engine.connect() as connection:
        connection.execute(PING)  # the first one of a process takes long

    start(work)
    zoo.go_on()


async def handle_message(engine: Any, message: str) -> None:
    if message == "first":
        connection = await engine.connect()  # site: consumer_again
        await connection.execute(PING)
        _kept["connection"] = connection
    else:
        await asyncio.sleep(3600)


@fault("leaked.abandoned", at="consumer_again", world=AIOSQLITE)
async def consumer_in_its_next_message(zoo: Any) -> None:
    """A consumer task is in its handler again, for a message without a database.

    yieldprotocol/cacti-backend #15
    """

    async def consume() -> None:
        for message in ("first", "second"):
            await handle_message(zoo.engine, message)

    _kept["consumer"] = asyncio.create_task(consume())


# -- suspended, and in use all the same ----------------------------------------------


@fault("long_hold", "held_across_io", at="slow_reader")
def stream_that_a_client_reads_slowly(zoo: Any) -> None:
    """FastAPI under uvicorn: a StreamingResponse over a generator with a connection,
    whose client is slow.

    seethroughlab/familiar #91, aegra/aegra #423
    """

    app = FastAPI()

    def rows() -> Iterator[str]:
        with zoo.engine.connect() as connection:  # site: slow_reader
            connection.execute(PING)
            while True:
                yield "x" * 100_000

    @app.get("/")
    def export() -> StreamingResponse:
        return StreamingResponse(rows())

    start(read_slowly, serve(app))
    zoo.go_on()


@innocent(seen=1)
def stream_of_an_endpoint_that_has_returned(zoo: Any) -> None:
    """The dependency's task has gone on; the session is in the response's generator.

    onyx-dot-app/onyx #1238
    """

    app = FastAPI()

    @app.middleware("http")
    async def timing(request: Any, call_next: Any) -> Any:
        return await call_next(request)

    async def answer(session: Session) -> AsyncIterator[str]:
        try:
            while True:
                session.execute(PING)
                yield "word "
                await asyncio.sleep(0.3)
        finally:
            session.close()

    @app.get("/")
    async def chat() -> StreamingResponse:
        session = Session(zoo.engine)
        session.execute(PING)
        return StreamingResponse(answer(session))

    start(read_slowly, serve(app))
    zoo.go_on()


@fault("long_hold", "held_across_io", at="flask_reader")
def flask_stream_that_a_client_reads_slowly(zoo: Any) -> None:
    """Flask in the threads of its server: stream_with_context() over a generator with a
    connection, whose client is slow.

    Haohao-end/openagent #136
    """

    app = Flask("shop")

    def rows() -> Iterator[str]:
        with zoo.engine.connect() as connection:  # site: flask_reader
            connection.execute(PING)
            while True:
                yield "x" * 100_000

    app.add_url_rule(
        "/", endpoint="rows", view_func=lambda: stream_with_context(rows())
    )
    start(read_slowly, serve_wsgi(app))
    zoo.go_on()


@fault("long_hold", "held_across_io", at="in_exit_stack")
def dependency_in_the_exit_stack_of_a_request(zoo: Any) -> None:
    """A request waits for a model; only its exit stack has the dependency's session.

    xr843/fojin #649, open-webui/open-webui #28183
    """

    app = FastAPI()

    async def session_of_request() -> AsyncIterator[None]:
        with Session(zoo.engine) as session:
            session.execute(PING)  # site: in_exit_stack
            yield

    @app.get("/", dependencies=[Depends(session_of_request)])
    async def chat() -> None:
        await asyncio.sleep(3600)

    client = get(serve(app))
    zoo.go_on()
    client.close()


@fault("long_hold", "held_across_io", at="state_of_a_live_request")
def session_in_the_state_of_a_running_request(zoo: Any) -> None:
    """The middleware's dependency is in the request's state; the endpoint is at work,
    and another client has its keep-alive connection open.

    Netflix/dispatch #4882
    """
    app = FastAPI()

    @app.middleware("http")
    async def with_session(request: Request, call_next: Any) -> Any:
        request.state.dependency = get_db(zoo.engine)
        answer = await call_next(request)
        request.state.dependency.close()
        return answer

    @app.get("/")
    async def chat(request: Request) -> None:
        next(request.state.dependency).execute(PING)  # site: state_of_a_live_request
        await asyncio.sleep(3600)

    @app.get("/other")
    async def other() -> str:
        return "fast"

    port = serve(app)
    _kept["other"] = get(port, "/other")
    _kept["other"].getresponse().read()
    _kept["client"] = get(port)
    zoo.go_on()


@innocent(seen=1)
async def closed_by_the_callback_of_a_task(zoo: Any) -> None:
    """The request's task has ended; a callback of another task closes its session.

    skyportal/skyportal #1884
    """

    async def mail() -> None:
        await asyncio.sleep(3600)

    async def request() -> None:
        session = Session(zoo.engine)
        session.execute(PING)
        task = asyncio.create_task(mail())
        task.add_done_callback(lambda _: session.close())
        _kept["tasks"] = {task}

    await asyncio.create_task(request())


@innocent(seen=1)
async def closed_by_the_callback_of_a_thread(zoo: Any) -> None:
    """The same with a job in a thread, whose future has the callback.

    dchevell/flask-executor #15
    """
    threads = ThreadPoolExecutor(1)

    async def request() -> None:
        session = Session(zoo.engine)
        session.execute(PING)
        threads.submit(time.sleep, 30).add_done_callback(lambda _: session.close())

    await asyncio.create_task(request())


class Listener(asyncio.Protocol):
    """Keeps its connection as long as its client is connected."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.connection = self.engine.connect()  # site: protocol
        self.connection.execute(PING)

    def data_received(self, data: bytes) -> None:
        self.connection.execute(PING)

    def connection_lost(self, error: Exception | None) -> None:
        self.connection.close()


@fault("long_hold", "held_across_io", at="protocol")
async def connection_of_a_protocol(zoo: Any) -> None:
    """A protocol keeps its connection until its client hangs up.

    hypothesis/h #624
    """
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Listener(zoo.engine), "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    _kept["client"] = writer


@fault("long_hold", "held_across_io", at="reader_call")
async def closed_by_the_reader_of_a_socket(zoo: Any) -> None:
    """add_reader(): what comes in on a socket closes the connection.

    hypothesis/h #624
    """
    one, other = socket.socketpair()
    _kept["sockets"] = one, other

    def begin() -> None:
        connection = zoo.engine.connect()  # site: reader_call
        connection.execute(PING)
        asyncio.get_running_loop().add_reader(one, connection.close)

    begin()


@fault("long_hold", "held_across_io", at="loop_of_a_worker")
def loop_between_two_jobs(zoo: Any) -> None:
    """A worker runs each job in its own loop; between two jobs a task of that loop
    keeps its connection.

    mishrasanjeev/agentic-org #993
    """

    async def follow(ready: asyncio.Event) -> None:
        with zoo.engine.connect() as connection:  # site: loop_of_a_worker
            connection.execute(PING)
            ready.set()
            await asyncio.sleep(3600)

    async def begin() -> None:
        ready = asyncio.Event()
        _kept["follower"] = asyncio.create_task(follow(ready))
        await ready.wait()

    def work(jobs: queue.Queue[Any]) -> None:
        loop = asyncio.new_event_loop()
        while True:
            loop.run_until_complete(jobs.get()())

    jobs: queue.Queue[Any] = queue.Queue()
    jobs.put(begin)
    start(work, jobs)
    zoo.go_on()


def read_orders(db: Any) -> None:
    db.execute(PING)  # site: scoped_view
    wait_for_something_else()


@fault("long_hold", "held_across_io", at="scoped_view")
def view_with_a_scoped_session(zoo: Any) -> None:
    """A view uses a global scoped_session and then calls something slow; the server
    removes the session afterwards.

    pallets-eco/flask-sqlalchemy #776
    """
    _kept["db"] = db = scoped_session(sessionmaker(zoo.engine))

    def serve_requests() -> None:
        read_orders(db)
        db.remove()

    start(serve_requests)
    zoo.go_on()


@contextmanager
def transaction(engine: Engine) -> Iterator[Connection]:
    with engine.begin() as connection:  # site: between_rounds
        connection.execute(PING)
        yield connection


class Importer:
    """Writes in one transaction over many rounds."""

    def __init__(self, engine: Engine) -> None:
        self.resources = ExitStack()
        self.engine = engine
        self.wake = threading.Event()

    def begin(self) -> None:
        self.resources.enter_context(transaction(self.engine))

    def run(self) -> None:
        self.begin()
        while True:
            self.wake.wait(3600)


@fault("long_hold", "held_across_io", at="between_rounds")
def scope_between_two_rounds(zoo: Any) -> None:
    """A scope on the exit stack of an object whose thread waits for its next round.

    airas-org/airas #648
    """
    start(Importer(zoo.engine).run)
    zoo.go_on()


def descend(session: Session, depth: int) -> None:
    if depth == 0:
        session.execute(PING)  # site: recursion_in_use
        wait_for_something_else()
    descend(session, depth - 1)


@fault("long_hold", "held_across_io", at="recursion_in_use")
def recursion_with_its_session(zoo: Any) -> None:
    """A recursion hands its session down.

    open-metadata/OpenMetadata #6478
    """
    with Session(zoo.engine) as session:
        descend(session, 20)


@fault("long_hold", "held_across_io", at="background_task")
def background_task_after_the_response(zoo: Any) -> None:
    """The response has been sent; its background task has the session.

    open-webui/open-webui #20546
    """

    app = FastAPI()

    async def summarise(session: Session) -> None:
        await asyncio.sleep(3600)
        session.close()

    @app.get("/")
    async def post(tasks: BackgroundTasks) -> str:
        session = Session(zoo.engine)
        session.execute(PING)  # site: background_task
        tasks.add_task(summarise, session)
        return "sent"

    client = get(serve(app))
    client.getresponse().read()
    zoo.go_on()


@innocent(seen=1)
async def closed_by_the_callback_of_an_executors_future(zoo: Any) -> None:
    """run_in_executor() returns a future of the loop, which has the callback.

    pgjones/quart-db #10
    """

    async def request() -> None:
        session = Session(zoo.engine)
        session.execute(PING)
        loop = asyncio.get_running_loop()
        work = loop.run_in_executor(None, time.sleep, 30)
        work.add_done_callback(lambda _: session.close())

    await asyncio.create_task(request())


@innocent(seen=1)
async def session_of_an_async_stream(zoo: Any) -> None:
    """An async session in an async generator that another task reads.

    Vexa-ai/vexa #208
    """

    async def numbers() -> AsyncIterator[int]:
        with Session(zoo.engine) as session:
            session.execute(PING)
            for number in range(1_000_000):
                yield number

    async def begin() -> AsyncIterator[int]:
        stream = numbers()
        await anext(stream)
        return stream

    async for _ in await asyncio.create_task(begin()):
        await asyncio.sleep(0.05)
