"""Faults with an engine and nothing else."""

from __future__ import annotations

import atexit
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from functools import lru_cache, partial
from typing import Any

from sqlalchemy import Connection, Engine
from zoo.app import PING, QUERY, ROWS
from zoo.registry import fault

# -- kept and forgotten ---------------------------------------------------------------

_connections: dict[str, Connection] = {}


def exchange_rate(engine: Engine, currency: str) -> Any:
    if currency not in _connections:
        _connections[currency] = engine.connect()  # site: module_cache
    return _connections[currency].execute(PING).scalar()


@fault("leaked.abandoned")
def module_cache(zoo: Any) -> None:
    """A connection in a module's cache; the worker loop has gone on."""
    exchange_rate(zoo.engine, "EUR")
    zoo.go_on()


@lru_cache
def connection_of(tenant: str, engine: Engine) -> Connection:
    return engine.connect()  # site: lru_cached


@fault("leaked.abandoned")
def lru_cached(zoo: Any) -> None:
    """functools.lru_cache on the function that connects."""
    connection_of("acme", zoo.engine).execute(PING)
    zoo.go_on()


class Database:
    """The singleton of many a small service."""

    instance: Database | None = None

    def __init__(self, engine: Engine) -> None:
        self.connection = engine.connect()  # site: singleton

    @classmethod
    def get(cls, engine: Engine) -> Database:
        if cls.instance is None:
            cls.instance = cls(engine)
        return cls.instance


@fault("leaked.abandoned")
def singleton(zoo: Any) -> None:
    """A class attribute keeps the object that keeps the connection."""
    Database.get(zoo.engine).connection.execute(PING)
    zoo.go_on()


_raw: list[Any] = []


def copy_in(engine: Engine) -> None:
    raw = engine.raw_connection()  # site: raw_forgotten
    raw.cursor().execute("SELECT 1")
    _raw.append(raw)


@fault("leaked.abandoned")
def raw_forgotten(zoo: Any) -> None:
    """raw_connection() for a driver's own feature, and never close()."""
    copy_in(zoo.engine)
    zoo.go_on()


_on_commit: list[Callable[[], Any]] = []


def later(engine: Engine) -> None:
    connection = engine.connect()  # site: callback_never_called
    connection.execute(PING)

    def finish() -> None:
        connection.commit()
        connection.close()

    _on_commit.append(finish)


@fault("leaked.abandoned")
def callback_never_called(zoo: Any) -> None:
    """The closure that would close it waits in a list of callbacks."""
    later(zoo.engine)
    zoo.go_on()


class Signal:
    def __init__(self) -> None:
        self.receivers: list[Callable[[], Any]] = []


order_paid = Signal()


def subscribe(engine: Engine) -> None:
    connection = engine.connect()  # site: partial
    connection.execute(PING)
    order_paid.receivers.append(partial(connection.execute, PING))


@fault("leaked.abandoned", at="partial")
def partial_in_a_signal(zoo: Any) -> None:
    """A functools.partial waits among the receivers of a signal."""
    subscribe(zoo.engine)
    zoo.go_on()


_iterators: dict[str, Iterator[Any]] = {}


def rows_of(engine: Engine) -> Iterator[Any]:
    with engine.connect() as connection:  # site: generator_stored
        yield from connection.execute(ROWS)


def peek(engine: Engine, job: str) -> Any:
    _iterators[job] = rows_of(engine)
    return next(_iterators[job])


@fault("leaked.abandoned")
def generator_stored(zoo: Any) -> None:
    """A generator with a with block inside, never exhausted, and stored."""
    peek(zoo.engine, "monday")
    zoo.go_on()


_open_results: dict[str, Any] = {}


def first_page(engine: Engine) -> list[Any]:
    connection = engine.connect().execution_options(yield_per=10)  # site: stream_kept
    result = connection.execute(ROWS)
    _open_results["report"] = result.partitions()
    return list(next(_open_results["report"]))


@fault("leaked.abandoned")
def stream_kept(zoo: Any) -> None:
    """A streaming result, read up to the first page and kept for the next."""
    first_page(zoo.engine)
    zoo.go_on()


class Importer:
    def __init__(self) -> None:
        self.stack = ExitStack()

    def open(self, engine: Engine) -> None:
        self.connection = self.stack.enter_context(
            engine.connect()  # site: exit_stack
        )
        self.connection.execute(PING)


_importers: list[Importer] = []


@fault("leaked.abandoned")
def exit_stack(zoo: Any) -> None:
    """An ExitStack on an object that nobody closes."""
    _importers.append(Importer())
    _importers[-1].open(zoo.engine)
    zoo.go_on()


_transactions: dict[str, Any] = {}


def begin(engine: Engine, name: str) -> None:
    _transactions[name] = engine.begin()
    connection = _transactions[name].__enter__()  # site: begun_by_hand
    connection.execute(PING)


@fault("leaked.abandoned")
def begun_by_hand(zoo: Any) -> None:
    """engine.begin() entered by hand, for a commit that never comes."""
    begin(zoo.engine, "checkout")
    zoo.go_on()


def metrics(engine: Engine) -> None:
    connection = engine.connect()  # site: closed_at_exit
    connection.execute(PING)
    atexit.register(connection.close)


@fault("leaked.abandoned")
def closed_at_exit(zoo: Any) -> None:
    """atexit will close it, some day; until then nobody uses it."""
    metrics(zoo.engine)
    zoo.go_on()


def listen_socket(engine: Engine) -> None:
    connection = engine.connect()  # site: detached_and_kept
    connection.detach()
    connection.execute(PING)
    _connections["listen"] = connection


@fault("leaked.abandoned")
def detached_and_kept(zoo: Any) -> None:
    """Detached from the pool, and then never closed."""
    listen_socket(zoo.engine)
    zoo.go_on()


@fault("leaked.abandoned", at="module_cache")
def disposed_meanwhile(zoo: Any) -> None:
    """engine.dispose() while a connection is out does not bring it back."""
    exchange_rate(zoo.engine, "USD")
    zoo.engine.dispose()
    with zoo.engine.connect() as connection:
        connection.execute(PING)
    zoo.go_on()


class Report:
    def __init__(self, engine: Engine) -> None:
        self.connection = engine.connect()  # site: cycle_not_collected, cycle
        self.retry = self.load

    def load(self) -> Any:
        return self.connection.execute(QUERY).scalar()


@fault("leaked.abandoned", at="cycle_not_collected")
def cycle_not_collected_yet(zoo: Any) -> None:
    """Unreachable, but in a cycle, and the collector is off: nobody has it."""
    gc.disable()
    Report(zoo.engine).load()
    zoo.go_on()


# -- dropped --------------------------------------------------------------------------


@fault("leaked.collected", at="cycle", long_after=30)
def cycle_collected(zoo: Any) -> None:
    """In a reference cycle, until the collector comes by."""
    Report(zoo.engine).load()
    gc.collect()
    zoo.go_on()


def count(engine: Engine) -> Any:
    return engine.connect().execute(PING).scalar()  # site: one_liner


@fault("leaked.collected", long_after=30)
def one_liner(zoo: Any) -> None:
    """engine.connect().execute(...).scalar(), all in one line."""
    count(zoo.engine)
    gc.collect()
    zoo.go_on()


def owner_of_account(engine: Engine, number: int) -> str | None:
    connection = engine.connect()  # site: early_return
    if number < 0:
        return None
    owner = str(number)
    connection.close()
    return owner


@fault("leaked.collected", long_after=30)
def early_return(zoo: Any) -> None:
    """A return between connect() and close()."""
    owner_of_account(zoo.engine, 7)
    owner_of_account(zoo.engine, -1)
    gc.collect()
    zoo.go_on()


def debit(engine: Engine, amount: int) -> None:
    connection = engine.connect()  # site: error_before_close
    connection.execute(PING)
    if amount > 100:
        raise ValueError("not enough money")
    connection.close()


@fault("leaked.collected", long_after=30)
def error_before_close(zoo: Any) -> None:
    """An exception between connect() and close(), caught further up."""
    for amount in (10, 200, 20):
        with suppress(ValueError):
            debit(zoo.engine, amount)
    gc.collect()
    zoo.go_on()


def vacuum(engine: Engine) -> None:
    raw = engine.raw_connection()  # site: raw_dropped
    raw.cursor().execute("SELECT 1")


@fault("leaked.collected", long_after=30)
def raw_dropped(zoo: Any) -> None:
    """raw_connection() and no close() at all."""
    vacuum(zoo.engine)
    gc.collect()
    zoo.go_on()


def driver_of(engine: Engine) -> Any:
    return engine.raw_connection().driver_connection  # site: driver_kept


@fault("leaked.collected", at="driver_kept", long_after=30)
def driver_connection_kept(zoo: Any) -> None:
    """Keeps the driver's connection and drops the pool's: it goes to the next one."""
    driver = driver_of(zoo.engine)
    gc.collect()
    driver.execute("SELECT 1")
    zoo.go_on()


def take_out(engine: Engine) -> None:
    connection = engine.connect()  # site: detached_and_dropped
    connection.detach()
    connection.execute(PING)


@fault("leaked.collected", long_after=30)
def detached_and_dropped(zoo: Any) -> None:
    """Detached from the pool, and dropped."""
    take_out(zoo.engine)
    gc.collect()
    zoo.go_on()


@fault("leaked.collected", at="early_return", long_after=30)
def disposed_then_dropped(zoo: Any) -> None:
    """Dropped after dispose(): there is no pool any more that it could return to."""
    kept = zoo.engine.connect()
    kept.close()
    owner_of_account(zoo.engine, -1)
    zoo.engine.dispose()
    gc.collect()
    zoo.go_on()


# -- one holder, two connections ------------------------------------------------------


def log_access(engine: Engine) -> None:
    with engine.connect() as audit:  # site: inner
        while True:
            audit.execute(QUERY)


def transfer(engine: Engine) -> None:
    with engine.begin() as connection:  # site: outer
        connection.execute(QUERY)
        log_access(engine)


@fault("nested", at="outer inner", long_after=30)
def nested_held(zoo: Any) -> None:
    """A helper takes a connection of its own inside the caller's transaction."""
    transfer(zoo.engine)


@fault(
    "nested",
    at="outer inner",
    also="pool_deadlock exhausted",
    long_after=30,
    pool_size=1,
    max_overflow=0,
)
def nested_waiting(zoo: Any) -> None:
    """The same with a pool of one: it waits for itself."""
    transfer(zoo.engine)


@fault(
    "pool_deadlock",
    at="outer inner",
    also="nested exhausted",
    long_after=30,
    pool_size=1,
    max_overflow=0,
)
def deadlock_of_one(zoo: Any) -> None:
    """That is a deadlock already."""
    transfer(zoo.engine)


# -- exhausted ------------------------------------------------------------------------


def report_of(engine: Engine, tenant: str) -> None:
    _connections[tenant] = engine.connect()  # site: tenants
    _connections[tenant].execute(PING)


@fault(
    "exhausted",
    at="tenants",
    also="leaked.abandoned leaked.orphaned",
    bystanders="fourth",
    pool_size=3,
    max_overflow=0,
)
def exhausted_by_one_call_site(zoo: Any) -> None:
    """One connection per tenant, none of them given back; a request waits."""
    for tenant in ("a", "b", "c"):
        thread = threading.Thread(target=report_of, args=(zoo.engine, tenant))
        thread.start()
        thread.join()
    with zoo.engine.connect() as connection:  # site: fourth
        connection.execute(PING)


@fault(
    "exhausted",
    at="tenants",
    also="leaked.abandoned nested pool_deadlock",
    bystanders="fifth",
    pool_size=2,
    max_overflow=0,
)
def waits_for_what_it_leaked(zoo: Any) -> None:
    """A script that leaks one connection a round, until it waits for itself."""
    for tenant in ("a", "b"):
        report_of(zoo.engine, tenant)
    with zoo.engine.connect() as connection:  # site: fifth
        connection.execute(PING)
