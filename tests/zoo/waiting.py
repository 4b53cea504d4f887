"""Connections held while their code waits for something that is no database."""

from __future__ import annotations

import asyncio
import functools
import multiprocessing
import select
import signal
import socket
import threading
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from zoo.app import PING, QUERY
from zoo.registry import AIOSQLITE, fault


@fault("held_across_io", also="long_hold")
def across_select(zoo: Any) -> None:
    """select() on a socket that stays silent."""
    ours, theirs = socket.socketpair()
    with zoo.engine.connect() as connection:  # site: across_select
        connection.execute(PING)
        select.select([ours], [], [], 30)
    theirs.close()


@fault("held_across_io", also="long_hold")
def across_a_mutex(zoo: Any) -> None:
    """A lock that is not called lock."""
    mutex = threading.Lock()
    mutex.acquire()
    with zoo.engine.connect() as connection:  # site: across_a_mutex
        connection.execute(PING)
        with mutex:
            pass


@fault("held_across_io", also="long_hold")
def across_a_signal(zoo: Any) -> None:
    """The process waits for a signal."""
    with Session(zoo.engine) as session:
        session.execute(PING)  # site: across_a_signal
        signal.pause()


def crunch(number: int) -> int:
    time.sleep(30)
    return number


@fault("held_across_io", also="long_hold")
def across_other_processes(zoo: Any) -> None:
    """The rows are worked on by a pool of processes, forked before."""
    with (
        multiprocessing.get_context("fork").Pool(2) as pool,
        zoo.engine.connect() as connection,  # site: across_other_processes
    ):
        connection.execute(PING)
        pool.map(crunch, [1, 2])


def retrying(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def wrapper(*arguments: Any) -> Any:
        for attempt in range(9):
            try:
                return function(*arguments)
            except ConnectionError:
                time.sleep(2**attempt)
        return None

    return wrapper


@retrying
def notify() -> None:
    raise ConnectionError("the mail server is away")


@fault("held_across_io", also="long_hold")
def across_the_pause_of_a_retry(zoo: Any) -> None:
    """A decorator sleeps between its attempts, in a transaction of its caller's."""
    with Session(zoo.engine) as session, session.begin():
        session.execute(PING)  # site: across_the_pause_of_a_retry
        notify()


def forever(engine: Engine, connection: Connection) -> None:
    while True:
        connection.execute(PING)
        for _ in range(20):
            connection.execute(QUERY)


@fault("long_hold")
def waits_while_others_use_it(zoo: Any) -> None:
    """Waits for a thread that uses the connection, statement after statement."""
    with (
        ThreadPoolExecutor(1) as executor,
        zoo.engine.connect() as connection,  # site: waits_while_others_use_it
    ):
        executor.submit(forever, zoo.engine, connection).result()


@fault("long_hold", at="joins_words")
def joins_words(zoo: Any) -> None:
    """A program that formats: ``.join()`` and ``.get()`` here wait for nobody."""
    names = {str(number): "x" * number for number in range(200)}
    with zoo.engine.connect() as connection:  # site: joins_words
        connection.execute(PING)
        while True:
            ", ".join([names.get(name, "") for name in names] * 50)
            [names.get(name, "") for name in names]
            "".join(reversed(", ".join(names)))


@fault("long_hold", at="opened_by_a_helper")
def computed_by_another_thread(zoo: Any) -> None:
    """Opened in an executor, used by the main thread, which computes: no lock here."""
    executor = ThreadPoolExecutor(1)
    connection = executor.submit(open_it, zoo.engine).result()
    while True:
        connection.execute(PING)
        sum(number * number for number in range(300_000))


def open_it(engine: Engine) -> Connection:
    return engine.connect()  # site: opened_by_a_helper


# -- asyncio ---------------------------------------------------------------------------


async def sibling(engine: Any) -> None:
    async with engine.connect() as connection:  # site: sibling_goes_on
        await connection.execute(PING)
        await asyncio.sleep(30)


async def failing() -> None:
    await asyncio.sleep(0.1)
    raise RuntimeError("one of two")


@fault("held_across_io", also="long_hold", at="sibling_goes_on", world=AIOSQLITE)
async def gather_leaves_a_sibling(zoo: Any) -> None:
    """gather() raises the first error; the other one of the two sleeps on."""
    try:
        await asyncio.gather(sibling(zoo.engine), failing())
    except RuntimeError:
        await asyncio.sleep(30)


@fault("held_across_io", also="long_hold", at="task_group", world=AIOSQLITE)
async def waits_for_its_children(zoo: Any) -> None:
    """A task group of things that need no database, inside a transaction."""
    async with zoo.engine.begin() as connection:  # site: task_group
        await connection.execute(PING)
        async with asyncio.TaskGroup() as group:
            for _ in range(3):
                group.create_task(asyncio.sleep(30))


@fault("held_across_io", also="long_hold", at="future", world=AIOSQLITE)
async def waits_for_a_future(zoo: Any) -> None:
    """The answer comes through a bare future, some time."""
    answer = asyncio.get_running_loop().create_future()
    async with AsyncSession(zoo.engine) as session:
        await session.execute(PING)  # site: future
        await answer


@fault("held_across_io", also="long_hold", at="executor", world=AIOSQLITE)
async def across_an_executor(zoo: Any) -> None:
    """A thread does slow work for the task, which holds a connection meanwhile."""
    async with zoo.engine.connect() as connection:  # site: executor
        await connection.execute(PING)
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(None, time.sleep, 30)


async def guarded(engine: Any) -> None:
    async with engine.connect() as connection:  # site: shielded_and_stuck
        await connection.execute(PING)
        await asyncio.Event().wait()


@fault("held_across_io", also="long_hold", at="shielded_and_stuck", world=AIOSQLITE)
async def shielded_and_stuck(zoo: Any) -> None:
    """The request timed out; what it has shielded waits for ever."""
    inner = asyncio.create_task(guarded(zoo.engine))
    try:
        await asyncio.wait_for(asyncio.shield(inner), 0.2)
    except TimeoutError:
        await asyncio.sleep(30)


def charge(engine: Engine) -> None:
    with engine.begin() as connection:  # site: sync_in_a_task
        connection.execute(PING)
        time.sleep(30)


@fault("held_across_io", at="sync_in_a_task")
async def sync_code_in_a_task(zoo: Any) -> None:
    """A coroutine calls synchronous code, which sleeps with its connection."""

    async def endpoint() -> None:
        charge(zoo.engine)

    await asyncio.create_task(endpoint())


def compute_with(engine: Engine) -> None:
    with engine.connect().execution_options(yield_per=10):  # site: sync_computing
        while True:
            sum(number * number for number in range(10_000))


@fault("long_hold", at="sync_computing")
async def sync_code_computing_in_a_task(zoo: Any) -> None:
    """Synchronous code in a coroutine, whose connection has no name."""

    async def endpoint() -> None:
        compute_with(zoo.engine)

    await asyncio.create_task(endpoint())


def summarize(session: Session) -> None:
    session.execute(PING)  # site: inside_run_sync
    while True:
        sum(number * number for number in range(10_000))


@fault("long_hold", at="inside_run_sync", world=AIOSQLITE)
async def computes_inside_run_sync(zoo: Any) -> None:
    """run_sync() with code that computes: it runs in a greenlet."""
    async with AsyncSession(zoo.engine) as session:
        await session.run_sync(summarize)


@asynccontextmanager
async def get_session(engine: Any) -> AsyncIterator[AsyncSession]:
    async with AsyncSession(engine) as session:
        yield session


@fault("held_across_io", also="long_hold", at="before_the_webhook", world=AIOSQLITE)
async def across_a_queue_join(zoo: Any) -> None:
    """Waits until the workers have emptied their queue: they never do."""
    pending: asyncio.Queue[int] = asyncio.Queue()
    pending.put_nowait(1)
    async with get_session(zoo.engine) as session:
        await session.execute(PING)  # site: before_the_webhook
        await pending.join()
