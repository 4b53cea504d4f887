"""Faults with threads and executors."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from sqlalchemy import Engine
from zoo.app import PING, QUERY
from zoo.registry import fault

_kept: list[Any] = []


def start(target: Any, *arguments: Any) -> threading.Thread:
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def load(engine: Engine) -> None:
    connection = engine.connect()  # site: job
    connection.execute(PING)
    _kept.append(connection)


def other_job() -> None:
    time.sleep(30)


@fault("leaked.abandoned", at="job")
def executor_took_the_next_job(zoo: Any) -> None:
    """A job forgot its connection; its thread is in the next job."""
    executor = ThreadPoolExecutor(1)
    executor.submit(load, zoo.engine)
    executor.submit(other_job)
    zoo.go_on()


@fault("leaked.abandoned", at="job")
def executor_is_idle(zoo: Any) -> None:
    """A job forgot its connection; its thread waits for more."""
    executor = ThreadPoolExecutor(1)
    executor.submit(load, zoo.engine).result()
    zoo.go_on()


@fault("leaked.orphaned", at="job", long_after=30)
def thread_ended(zoo: Any) -> None:
    """The thread has ended; the connection is in a list."""
    start(load, zoo.engine).join()
    zoo.go_on()


@fault("leaked.orphaned", at="job", long_after=30)
def executor_shut_down(zoo: Any) -> None:
    """The whole executor is gone."""
    with ThreadPoolExecutor(2) as executor:
        executor.submit(load, zoo.engine)
    zoo.go_on()


_jobs: queue.Queue[Any] = queue.Queue()


def hand_over(engine: Engine) -> None:
    connection = engine.connect()  # site: nobody_listens
    _jobs.put(connection)


@fault("leaked.orphaned", at="nobody_listens", long_after=30)
def queue_without_a_consumer(zoo: Any) -> None:
    """Handed over through a queue that nobody reads any more."""
    start(hand_over, zoo.engine).join()
    zoo.go_on()


class Loader(threading.Thread):
    """Keeps its connection on itself, and is kept itself."""

    def __init__(self, engine: Engine) -> None:
        super().__init__(daemon=True)
        self.engine = engine

    def run(self) -> None:
        self.connection = self.engine.connect()  # site: thread_object
        self.connection.execute(PING)


@fault("leaked.orphaned", at="thread_object", long_after=30)
def thread_object_kept(zoo: Any) -> None:
    """The connection is an attribute of a thread that has run to its end."""
    thread = Loader(zoo.engine)
    _kept.append(thread)
    thread.start()
    thread.join()
    del thread
    zoo.go_on()


_local = threading.local()


def per_thread(engine: Engine) -> Any:
    if not hasattr(_local, "connection"):
        _local.connection = engine.connect()  # site: thread_local
    return _local.connection.execute(PING).scalar()


@fault("leaked.abandoned", at="thread_local")
def thread_local_in_a_pool(zoo: Any) -> None:
    """A connection per thread, in threads that idle in their pool."""
    executor = ThreadPoolExecutor(2)
    for future in [executor.submit(per_thread, zoo.engine) for _ in range(4)]:
        future.result()
    zoo.go_on()


async def endpoint(engine: Engine) -> None:
    await asyncio.to_thread(load, engine)
    await asyncio.sleep(30)


@fault("leaked.abandoned", at="job")
async def forgotten_in_to_thread(zoo: Any) -> None:
    """asyncio.to_thread() ran the job; the executor's thread is idle again."""
    await endpoint(zoo.engine)


def transfer(engine: Engine, meet: threading.Barrier) -> None:
    with engine.connect() as connection:  # site: held
        connection.execute(PING)
        meet.wait()
        audit(engine)


def audit(engine: Engine) -> None:
    with engine.connect() as own:  # site: wanted
        own.execute(PING)


@fault(
    "pool_deadlock",
    at="held wanted",
    also="nested exhausted",
    long_after=30,
    pool_size=2,
    max_overflow=1,
)
def deadlock_of_threads(zoo: Any) -> None:
    """As many threads as connections, and each wants a second one."""
    meet = threading.Barrier(3)
    for _ in range(3):
        start(transfer, zoo.engine, meet)
    zoo.go_on()


def report(engine: Engine, begun: threading.Semaphore) -> None:
    with engine.connect() as connection:  # site: report
        begun.release()
        while True:
            connection.execute(QUERY)


@fault(
    "nested",
    at="held wanted",
    also="exhausted",
    bystanders="report",
    long_after=30,
    pool_size=2,
    max_overflow=0,
)
def nested_behind_a_report(zoo: Any) -> None:
    """A thread waits for a second connection; a report has it: no deadlock."""
    begun = threading.Semaphore(0)
    start(report, zoo.engine, begun)
    begun.acquire()
    transfer(zoo.engine, threading.Barrier(1))


@fault(
    "exhausted",
    at="report",
    bystanders="queued",
    long_after=30,
    pool_size=2,
    max_overflow=0,
)
def exhausted_by_reports(zoo: Any) -> None:
    """Honest reports have all connections, and somebody waits: no deadlock."""
    begun = threading.Semaphore(0)
    for _ in range(2):
        start(report, zoo.engine, begun)
        begun.acquire()
    with zoo.engine.connect() as connection:  # site: queued
        connection.execute(PING)


def request(engine: Engine) -> None:
    while True:
        with engine.connect() as connection:  # site: request
            connection.execute(QUERY)


@fault(
    "undersized",
    at="",
    also="exhausted",
    bystanders="request",
    long_after=30,
    pool_size=2,
    max_overflow=0,
)
def undersized_pool(zoo: Any) -> None:
    """Eight threads with short, honest holds and a pool of two."""
    for _ in range(8):
        start(request, zoo.engine)
    zoo.go_on()


_futures: list[Future[None]] = []


def job_that_fails(engine: Engine) -> None:
    connection = engine.connect()  # site: future_with_error
    connection.execute(PING)
    raise ValueError("no such customer")


@fault("leaked.abandoned", at="future_with_error")
def future_keeps_the_error(zoo: Any) -> None:
    """A future keeps the exception, the traceback its frame, that the connection."""
    executor = ThreadPoolExecutor(1)
    _futures.append(executor.submit(job_that_fails, zoo.engine))
    zoo.go_on()
