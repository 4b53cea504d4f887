"""Connections that no variable nearby has, and that are in use all the same: of a
request, many attributes away, in a ``try`` that will return them. And leaks of nearly
the same shape.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, Self

from flask import Flask, g
from sqlalchemy import Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from zoo.app import PING
from zoo.registry import AIOSQLITE, fault, innocent

_kept: dict[str, Any] = {}


def wait_for_something_else() -> None:
    """Work that needs no database."""
    while True:
        time.sleep(0.02)


def start(target: Callable[..., Any], *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


# -- of a request --------------------------------------------------------------------


def request(app: Flask) -> threading.Thread:
    return start(app.test_client().get, "/")


@fault("long_hold", "held_across_io", at="user_of_a_request")
def scoped_session_of_a_flask_request(zoo: Any) -> None:
    """Flask's documentation: a scoped session, removed by the teardown of the
    application context. The view is slow, a function before it has read the user."""
    app = Flask("shop")
    _kept["session"] = db = scoped_session(sessionmaker(zoo.engine))

    @app.before_request
    def read_user() -> None:
        db.execute(PING)  # site: user_of_a_request

    @app.teardown_appcontext
    def remove(error: BaseException | None) -> None:
        db.remove()

    app.add_url_rule("/", view_func=wait_for_something_else)
    request(app)
    zoo.go_on()


@fault("long_hold", "held_across_io", at="connection_of_g")
def connection_in_flask_g(zoo: Any) -> None:
    """Flask's tutorial: get_db() opens it in ``g``, and the teardown closes it."""
    app = Flask("shop")

    def get_db() -> Any:
        if "db" not in g:
            g.db = zoo.engine.connect()  # site: connection_of_g
        return g.db

    @app.teardown_appcontext
    def close(error: BaseException | None) -> None:
        g.pop("db").close()

    def read_user() -> None:
        get_db().execute(PING)

    @app.get("/")
    def view() -> None:
        read_user()
        wait_for_something_else()

    request(app)
    zoo.go_on()


@fault("leaked.abandoned", at="list_of_a_request")
def list_that_a_flask_request_fills(zoo: Any) -> None:
    """The request lasts, but it is a global list that has the connection."""
    app = Flask("shop")
    _kept["audits"] = []

    def audit() -> None:
        connection = zoo.engine.connect()  # site: list_of_a_request
        _kept["audits"].append(connection)

    @app.get("/")
    def view() -> None:
        audit()
        wait_for_something_else()

    request(app)
    zoo.go_on()


@fault("leaked.abandoned", at="never_removed")
def scoped_session_that_no_flask_request_removes(zoo: Any) -> None:
    """Without a teardown the session stays, while the thread waits for a request."""
    app = Flask("shop")
    _kept["session"] = db = scoped_session(sessionmaker(zoo.engine))

    def read_user() -> None:
        db.execute(PING)  # site: never_removed

    @app.get("/")
    def view() -> str:
        read_user()
        return "read"

    def serve() -> None:
        app.test_client().get("/")
        wait_for_something_else()

    start(serve)
    zoo.go_on()


# -- many attributes away ------------------------------------------------------------


class Users:
    def __init__(self, engine: Engine) -> None:
        self.session = Session(engine)

    def read(self) -> None:
        self.session.execute(PING)  # site: far_session

    def close(self) -> None:
        self.session.close()


class UnitOfWork:
    def __init__(self, engine: Engine) -> None:
        self.users = Users(engine)

    def __enter__(self) -> Self:
        self.users.read()
        return self

    def __exit__(self, *error: object) -> None:
        self.users.close()


class Handler:
    def __init__(self, engine: Engine) -> None:
        self.container = {"unit of work": UnitOfWork(engine)}

    def run(self) -> None:
        self.container["unit of work"].users.read()
        wait_for_something_else()
        self.container["unit of work"].users.close()

    def run_in_a_block(self) -> None:
        with self.container["unit of work"]:
            wait_for_something_else()

    def forget(self) -> None:
        self.container["unit of work"].users.read()
        wait_for_something_else()


@fault("long_hold", "held_across_io", at="far_session")
def session_that_its_function_names(zoo: Any) -> None:
    """self.container[...].users.close(), after slow work."""
    Handler(zoo.engine).run()


@fault("long_hold", "held_across_io", at="far_session")
def session_that_the_end_of_a_block_names(zoo: Any) -> None:
    """__exit__() of an object far away closes it."""
    Handler(zoo.engine).run_in_a_block()


@fault("leaked.abandoned", at="far_session")
def session_that_its_function_names_no_more(zoo: Any) -> None:
    """The same, but nothing comes after the slow work."""
    Handler(zoo.engine).forget()


class Store:
    lost: Any = None
    names: tuple[str, ...] = ()

    def fill(self, engine: Engine) -> None:
        self.lost = engine.connect()  # site: far_in_the_application


class Cache:
    def __init__(self) -> None:
        self.store = Store()


class Application:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.cache = Cache()

    def run(self) -> None:
        self.cache.store.fill(self.engine)
        while True:
            time.sleep(0.02 + len(self.cache.store.names))


@fault("leaked.abandoned", at="far_in_the_application")
def attribute_that_no_code_reads(zoo: Any) -> None:
    """main() has the application in a variable, and that has the connection somewhere;
    its loop goes on, and nothing reads that attribute."""
    application = Application(zoo.engine)
    application.run()


class Locks:
    connection: Any = None

    async def open(self, engine: Any) -> None:
        self.connection = await engine.connect()  # site: opened_at_the_start
        await self.connection.execute(PING)


class Services:
    def __init__(self) -> None:
        self.locks = Locks()


class Program:
    def __init__(self) -> None:
        self.services = Services()

    async def open(self, engine: Any) -> None:
        await asyncio.gather(self.services.locks.open(engine))


@innocent(world=AIOSQLITE)
async def opened_by_a_task_of_the_start_up(zoo: Any) -> None:
    """gather() has opened it in a task of its own, which is done; main() serves."""
    program = Program()
    await program.open(zoo.engine)
    await asyncio.sleep(30)


@fault("leaked.orphaned", at="opened_at_the_start", world=AIOSQLITE)
async def opened_at_the_start_and_never_used(zoo: Any) -> None:
    """Nothing has used it for long, and main() is not going to."""
    program = Program()
    await program.open(zoo.engine)
    await asyncio.sleep(30)


# -- in a try ------------------------------------------------------------------------


def read_in(db: Any) -> None:
    db.execute(PING)  # site: scoped_in_a_try


@fault("long_hold", "held_across_io", at="scoped_in_a_try")
def scoped_session_in_a_try(zoo: Any) -> None:
    """``finally: remove()``, around a function that uses it and slow work."""
    _kept["session"] = scoped_session(sessionmaker(zoo.engine))

    def job() -> None:
        try:
            read_in(_kept["session"])
            wait_for_something_else()
        finally:
            _kept["session"].remove()

    start(job)
    zoo.go_on()


_current: ContextVar[Any] = ContextVar("current")


def open_current(engine: Engine) -> None:
    _current.set(engine.connect())  # site: opened_before_a_try


@fault("long_hold", "held_across_io", at="opened_before_a_try")
def context_variable_before_a_try(zoo: Any) -> None:
    """Opened in the statement before, as one should."""

    def job() -> None:
        open_current(zoo.engine)
        try:
            wait_for_something_else()
        finally:
            _current.get().close()

    start(job)
    zoo.go_on()


@fault("leaked.abandoned", at="round_of_a_worker")
def scoped_session_of_a_round_in_a_try(zoo: Any) -> None:
    """The worker's ``finally`` comes when the program ends: no job's session is
    removed."""
    _kept["session"] = db = scoped_session(sessionmaker(zoo.engine))
    jobs: queue.Queue[str] = queue.Queue()
    jobs.put("a job")

    def read(job: str) -> None:
        db.execute(PING)  # site: round_of_a_worker

    def work() -> None:
        try:
            while True:
                read(jobs.get())
        finally:
            jobs.task_done()
            zoo.engine.dispose()
            _kept["server"].close()

    start(work)
    zoo.go_on()


@fault("leaked.abandoned", at="list_in_a_try")
def list_filled_in_a_try(zoo: Any) -> None:
    """The session will be removed, but it is a list that has the connection."""
    _kept["session"] = scoped_session(sessionmaker(zoo.engine))
    _kept["audits"] = []

    def audit() -> None:
        connection = zoo.engine.connect()  # site: list_in_a_try
        _kept["audits"].append(connection)

    def job() -> None:
        try:
            audit()
            wait_for_something_else()
        finally:
            _kept["session"].remove()

    start(job)
    zoo.go_on()


@fault("leaked.abandoned", at="try_that_closes_nothing")
def scoped_session_in_a_try_that_closes_nothing(zoo: Any) -> None:
    """``finally`` only counts the job."""
    _kept["session"] = db = scoped_session(sessionmaker(zoo.engine))
    _kept["jobs"] = 0

    def read() -> None:
        db.execute(PING)  # site: try_that_closes_nothing

    def job() -> None:
        try:
            read()
            wait_for_something_else()
        finally:
            _kept["jobs"] = _kept["jobs"].bit_count()

    start(job)
    zoo.go_on()
