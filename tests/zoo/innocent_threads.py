"""Innocents with threads and executors."""

from __future__ import annotations

import queue
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Connection, Engine
from zoo.app import PING, QUERY, ROWS
from zoo.registry import innocent


def start(target: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def use(connection: Connection) -> None:
    while True:
        connection.execute(QUERY)


def report(engine: Engine) -> None:
    with engine.connect() as connection:
        use(connection)


@innocent(seen=4, pool_size=3, max_overflow=1)
def at_its_limit(zoo: Any) -> None:
    """Everything is out, overflow included, and nobody waits."""
    for _ in range(4):
        start(report, zoo.engine)
    zoo.go_on()


@innocent(long_after=0.5, seen=0, pool_size=4, max_overflow=0)
def very_short_waits(zoo: Any) -> None:
    """A busy pool: now and then somebody waits for the blink of an eye."""

    def serve() -> None:
        while True:
            with zoo.engine.connect() as connection:
                connection.execute(PING)
            time.sleep(0.01)

    for _ in range(6):
        start(serve)
    zoo.go_on()


@innocent()
def handed_over_by_a_thread_that_ended(zoo: Any) -> None:
    """Taken by a thread that has ended, in use by the one that it was handed to."""
    pipe: queue.Queue[Connection] = queue.Queue()

    def take() -> None:
        pipe.put(zoo.engine.connect())

    def work() -> None:
        with pipe.get() as connection:
            use(connection)

    start(work)
    start(take)
    zoo.go_on()


@innocent()
def result_handed_over(zoo: Any) -> None:
    """Only the result was handed over: the other thread reads its rows."""
    pipe: queue.Queue[Any] = queue.Queue()

    def take() -> None:
        connection = zoo.engine.connect().execution_options(yield_per=5)
        pipe.put(connection.execute(ROWS))

    def work() -> None:
        for _ in pipe.get():
            pass

    start(work)
    start(take)
    zoo.go_on()


@innocent(seen=3)
def dispatcher(zoo: Any) -> None:
    """One thread takes connections and hands each to a worker: not nested."""
    jobs: queue.Queue[Connection] = queue.Queue()

    def work() -> None:
        with jobs.get() as connection:
            use(connection)

    for _ in range(3):
        start(work)
    for _ in range(3):
        jobs.put(zoo.engine.connect())
    zoo.go_on()


@innocent()
def opened_by_an_executor(zoo: Any) -> None:
    """An executor's thread opened it (and is idle now); the caller uses it."""
    with ThreadPoolExecutor(1) as executor:
        use(executor.submit(zoo.engine.connect).result())


@innocent()
def waits_for_its_statement(zoo: Any) -> None:
    """The holder waits for another thread, which is in SQL on that connection."""
    executor = ThreadPoolExecutor(1)
    with zoo.engine.connect() as connection:
        while True:
            executor.submit(connection.execute, QUERY).result()


@innocent()
def joins_its_worker(zoo: Any) -> None:
    """The same with join()."""
    with zoo.engine.connect() as connection:
        start(use, connection).join()


@innocent(long_after=0.5, seen=0)
def threads_that_return_theirs(zoo: Any) -> None:
    """A thread per job: each takes one, returns it, and ends."""

    def job() -> None:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)

    while True:
        for thread in [start(job) for _ in range(3)]:
            thread.join()


@innocent(long_after=0.5, seen=0, pool_size=2, max_overflow=4)
def executor_that_returns_them(zoo: Any) -> None:
    """A thread pool reuses its threads, the pool its connections; overflow is used."""

    def job() -> None:
        with zoo.engine.connect() as connection:
            connection.execute(QUERY)

    executor = ThreadPoolExecutor(5)
    while True:
        for future in [executor.submit(job) for _ in range(10)]:
            future.result()
        time.sleep(0.02)


@innocent(long_after=0.5, seen=0)
def returned_by_another_thread(zoo: Any) -> None:
    """One thread takes and uses it, another one closes it."""
    done: queue.Queue[Connection] = queue.Queue()

    def close() -> None:
        while True:
            done.get().close()

    start(close)
    while True:
        connection = zoo.engine.connect()
        connection.execute(QUERY)
        done.put(connection)
        del connection
        time.sleep(0.01)


@innocent(seen=2)
def one_thread_each(zoo: Any) -> None:
    """The main thread has one and starts a thread that has another."""
    with zoo.engine.connect() as connection:
        start(report, zoo.engine)
        use(connection)
