"""Faults in services: classes, decorators and helpers that own a connection."""

from __future__ import annotations

import contextlib
import functools
import gc
import heapq
import itertools
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from contextvars import Context, ContextVar, copy_context
from dataclasses import dataclass, field
from typing import Any, ClassVar, Self

from sqlalchemy import Connection, Engine, NullPool, select, text
from sqlalchemy.orm import Session, sessionmaker
from zoo.app import PING, QUERY
from zoo.models import Account
from zoo.registry import fault

_kept: list[Any] = []


class UnitOfWork:
    """Commits what went well, and forgets the rest."""

    def __init__(self, engine: Engine) -> None:
        self.factory = sessionmaker(engine)

    def __enter__(self) -> Self:
        self.session = self.factory()
        return self

    def __exit__(self, *error: object) -> bool:
        if error[0] is None:
            self.session.commit()
            self.session.close()
        else:
            _kept.append(self)  # to be tried again
        return True

    def balance(self, number: int) -> int:
        query = select(Account).where(Account.id == number)
        return self.session.scalars(query).one().balance  # site: unit_of_work


@fault("leaked.abandoned", at="unit_of_work")
def unit_of_work_failed(zoo: Any) -> None:
    """A unit of work without a rollback, put aside for another try."""

    def transfers() -> None:
        for number in (1, 2, 99):
            with UnitOfWork(zoo.engine) as work:
                work.balance(number)

    transfers()
    zoo.go_on()


class Container:
    """A provider for each dependency; singletons by mistake."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._made: dict[type, Any] = {}

    def get(self, kind: type) -> Any:
        if kind not in self._made:
            self._made[kind] = kind(self._engine)
        return self._made[kind]


def show(container: Container) -> int:
    session = container.get(Session)
    return int(session.execute(PING).scalar())  # site: container_singleton


_containers: dict[str, Container] = {}


@fault("leaked.abandoned")
def container_singleton(zoo: Any) -> None:
    """A container gives one session to all requests, and none is running."""
    _containers["app"] = Container(zoo.engine)
    for _ in range(3):
        show(_containers["app"])
    zoo.go_on()


def transactional(engine: Engine) -> Callable[[Callable[..., Any]], Any]:
    def decorate(function: Callable[..., Any]) -> Any:
        @functools.wraps(function)
        def wrapper(*arguments: Any) -> Any:
            wrapper.session = Session(engine)  # type: ignore[attr-defined]
            return function(wrapper.session, *arguments)  # type: ignore[attr-defined]

        return wrapper

    return decorate


_routes: dict[str, Any] = {}


@fault("leaked.abandoned", at="decorator")
def session_on_the_wrapper(zoo: Any) -> None:
    """A decorator puts the session on its wrapper; a route table keeps that."""

    def register() -> None:
        @transactional(zoo.engine)
        def show_account(session: Session) -> Any:
            return session.execute(PING).scalar()  # site: decorator

        _routes["/account"] = show_account

    register()
    _routes["/account"]()
    zoo.go_on()


@dataclass
class Tenant:
    """What the application knows of a customer."""

    name: str
    engine: Engine
    tags: list[str] = field(default_factory=list)

    @functools.cached_property
    def connection(self) -> Connection:
        return self.engine.connect()  # site: cached_property


_tenants: dict[str, Tenant] = {}


@fault("leaked.abandoned", at="cached_property")
def connection_as_cached_property(zoo: Any) -> None:
    """A cached_property never lets go of what it has connected."""
    _tenants["acme"] = Tenant("acme", zoo.engine)

    def visit(name: str) -> Any:
        return _tenants[name].connection.execute(PING).scalar()

    visit("acme")
    zoo.go_on()


class Borg:
    """All instances share what they know."""

    _shared: ClassVar[dict[str, Any]] = {}

    def __init__(self) -> None:
        self.__dict__ = self._shared

    def open(self, engine: Engine) -> None:
        self.connection = engine.connect()  # site: borg
        self.connection.execution_options(isolation_level="AUTOCOMMIT")


@fault("leaked.abandoned", at="borg")
def shared_state(zoo: Any) -> None:
    """The state of a Borg has the connection; no instance is left."""

    def setup() -> None:
        Borg().open(zoo.engine)

    setup()
    zoo.go_on()


def prepare(engine: Engine) -> ExitStack:
    with ExitStack() as stack:
        connection = stack.enter_context(engine.connect())  # site: popped_stack
        connection.execute(PING)
        return stack.pop_all()


@fault("leaked.abandoned", at="popped_stack")
def popped_stack_forgotten(zoo: Any) -> None:
    """pop_all() saved the resources from being closed, and nobody does it later."""
    _kept.append(prepare(zoo.engine))
    zoo.go_on()


def numbers(engine: Engine) -> Iterator[int]:
    with engine.connect() as connection:  # site: tee
        yield from connection.execute(text("SELECT id FROM accounts")).scalars()


@fault("leaked.abandoned", at="tee")
def one_branch_of_tee(zoo: Any) -> None:
    """Two branches of a stream; one was read in part, the other one never."""

    def peek() -> int:
        first, rest = itertools.tee(numbers(zoo.engine))
        _kept.append(rest)
        return next(first)

    peek()
    zoo.go_on()


_sessions: dict[str, Session] = {}


@fault("leaked.abandoned", at="savepoint")
def savepoint_released_only(zoo: Any) -> None:
    """The savepoint is committed, the transaction around it is not."""

    def book() -> None:
        session = _sessions["batch"] = Session(zoo.engine)
        with session.begin_nested():
            session.execute(PING)  # site: savepoint

    book()
    zoo.go_on()


class Cache:
    def __init__(self) -> None:
        self.sessions: Any = weakref.WeakValueDictionary()


@fault("leaked.collected", at="weak_cache", long_after=30)
def weak_cache(zoo: Any) -> None:
    """A weak cache of sessions: each is dropped in the middle of its transaction."""
    cache = Cache()

    def lookup(number: int) -> None:
        session = cache.sessions[number] = Session(zoo.engine)
        session.get(Account, number)  # site: weak_cache

    for number in (1, 2, 3):
        lookup(number)
    zoo.go_on()


@fault("leaked.collected", at="retry", long_after=30)
def retries_with_new_connections(zoo: Any) -> None:
    """Each attempt of a retry loop takes a connection; only the last is returned."""

    def attempt(number: int) -> None:
        connection = zoo.engine.connect()  # site: retry
        connection.execute(PING if number == 2 else text("SELECT nothing"))
        connection.close()

    for number in range(3):
        with contextlib.suppress(Exception):
            attempt(number)
    gc.collect()  # their tracebacks are in cycles; a busy application collects soon
    zoo.go_on()


class ApplicationError(Exception):
    pass


_reports: list[Exception] = []


def load(engine: Engine) -> None:
    session = Session(engine)
    session.execute(PING)  # site: context_of_error
    raise KeyError("account")


@fault("leaked.abandoned", at="context_of_error")
def context_of_a_kept_error(zoo: Any) -> None:
    """``raise ... from None`` hides the first error; its frames are kept."""

    def request() -> None:
        try:
            load(zoo.engine)
        except KeyError:
            raise ApplicationError("no account") from None

    def serve() -> None:
        try:
            request()
        except ApplicationError as error:
            _reports.append(error)

    serve()
    zoo.go_on()


@dataclass(order=True, slots=True)
class Job:
    due: float
    connection: Connection = field(compare=False)


_schedule: list[Job] = []


@fault("leaked.abandoned", at="scheduled")
def jobs_in_a_heap(zoo: Any) -> None:
    """Jobs are scheduled with their connection, and nothing runs them."""

    def plan(due: float) -> None:
        connection = zoo.engine.connect()  # site: scheduled
        heapq.heappush(_schedule, Job(due, connection))

    for due in (3.0, 1.0, 2.0):
        plan(due)
    zoo.go_on()


_current: ContextVar[Session] = ContextVar("current")
_contexts: list[Context] = []


@fault("leaked.abandoned", at="copied_context")
def copied_context_kept(zoo: Any) -> None:
    """A copied context keeps the session of the request it was copied in."""

    def request() -> None:
        def body() -> None:
            _current.set(Session(zoo.engine))
            _current.get().execute(PING)  # site: copied_context
            _contexts.append(copy_context())

        copy_context().run(body)

    request()
    zoo.go_on()


def busy(engine: Engine) -> None:
    with engine.connect() as connection:  # site: primary_is_busy
        while True:
            connection.execute(QUERY)


def remember(engine: Engine) -> None:
    replica = engine.connect()  # site: replica_forgotten
    replica.execute(PING)
    _kept.append(replica)


@fault(
    "leaked.abandoned",
    at="replica_forgotten",
    also="long_hold",
    bystanders="primary_is_busy",
)
def one_of_two_engines(zoo: Any) -> None:
    """Two engines: the primary is in use, a connection of the replica is forgotten."""
    remember(zoo.new_engine("replica"))
    busy(zoo.engine)


def accounts(engine: Engine) -> Iterator[Account]:
    with Session(engine) as session:
        yield from session.scalars(select(Account))  # site: stream_outer


def entries_of(engine: Engine, account: Account) -> None:
    with Session(engine) as session:
        session.execute(PING)  # site: stream_inner
        time.sleep(0.5)


@fault("nested", at="stream_outer stream_inner", long_after=30)
def a_session_per_row(zoo: Any) -> None:
    """For each row of an open stream, a further session asks for more."""
    while True:
        for account in accounts(zoo.engine):
            entries_of(zoo.engine, account)


class Sequence:
    """Numbers from a table, in a transaction of their own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def next(self) -> int:
        with self.engine.begin() as connection:  # site: sequence
            return int(connection.execute(PING).scalar_one())


class Orders:
    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.numbers = Sequence(engine)
        self.both_begun = threading.Barrier(2)

    @contextmanager
    def transaction(self) -> Iterator[Session]:
        with Session(self.engine) as session, session.begin():
            yield session

    def place(self) -> None:
        with self.transaction() as session:
            session.execute(PING)  # site: order
            self.both_begun.wait()
            self.numbers.next()


@fault(
    "pool_deadlock",
    at="order sequence",
    also="nested exhausted",
    long_after=30,
    pool_size=1,
    max_overflow=1,
)
def orders_and_their_numbers(zoo: Any) -> None:
    """Two orders at a time, and each needs a second connection for its number."""
    orders = Orders(zoo.engine)
    for _ in range(2):
        threading.Thread(target=orders.place, daemon=True).start()
    zoo.go_on()


_letters: list[Exception] = []


def handle(engine: Engine, job: str) -> None:
    session = Session(engine)
    session.execute(PING)  # site: dead_letter
    if job == "broken":
        raise ValueError(job)
    while True:
        session.execute(QUERY)


@fault("leaked.abandoned", at="dead_letter", also="long_hold")
def leaked_by_the_job_before(zoo: Any) -> None:
    """A worker keeps the error of a job and is in the same function for the next."""
    for job in ("broken", "fine"):
        try:
            handle(zoo.engine, job)
        except ValueError as error:
            _letters.append(error)


@fault(
    "leaked.abandoned",
    at="grows",
    also="held_across_io long_hold exhausted",
    pool_size=30,
)
def leaks_at_every_turn(zoo: Any) -> None:
    """A poller keeps a connection per turn and sleeps in the same function."""

    def poll() -> None:
        connection = zoo.engine.connect()  # site: grows
        connection.execute(PING)
        _kept.append(connection)
        del connection
        time.sleep(0.4)

    while True:
        poll()


@fault("leaked.abandoned", at="by_a_thread", also="long_hold held_across_io")
def worker_in_its_next_job(zoo: Any) -> None:
    """Each job of a pool leaks; the worker is in the same function again."""

    def job(number: int) -> None:
        session = Session(zoo.engine)
        session.execute(PING)  # site: by_a_thread
        _kept.append(session)
        session = None  # type: ignore[assignment]
        if number:
            time.sleep(30)

    executor = ThreadPoolExecutor(1)
    executor.submit(job, 0)
    executor.submit(job, 1)
    zoo.go_on()


@fault("leaked.abandoned", at="null_pool", poolclass=NullPool)
def leaked_without_a_pool(zoo: Any) -> None:
    """NullPool: what is leaked is a session of the server all the same."""

    def job() -> None:
        connection = zoo.engine.connect()  # site: null_pool
        connection.execute(PING)
        _kept.append(connection)

    job()
    zoo.go_on()


def broken(engine: Engine) -> None:
    session = Session(engine)
    session.execute(PING)  # site: slow_handler
    raise ValueError("broken")


@fault("leaked.abandoned", at="slow_handler")
def slow_error_handler(zoo: Any) -> None:
    """The error is being handled, for long; its frames have the session."""
    try:
        broken(zoo.engine)
    except ValueError:
        time.sleep(30)


def walk(engine: Engine, depth: int) -> None:
    with engine.begin() as connection:  # site: recursive
        connection.execute(PING)
        if depth:
            walk(engine, depth - 1)
        while True:
            connection.execute(QUERY)


@fault("nested", at="recursive", long_after=30)
def recursion_with_connections(zoo: Any) -> None:
    """A recursive function takes a connection at each level."""
    walk(zoo.engine, 2)
