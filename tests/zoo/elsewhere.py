"""Faults in which the connection waits for something that is not the database."""

from __future__ import annotations

import asyncio
import os
import queue
import subprocess
import sys
import threading
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session
from zoo.app import PING
from zoo.registry import AIOSQLITE, fault


@fault("held_across_io", also="long_hold")
def across_http(zoo: Any) -> None:
    """A transaction is open while a web service takes its time."""
    with zoo.engine.begin() as connection:  # site: across_http
        connection.execute(PING)
        urllib.request.urlopen(zoo.slow_url).read()


def tax_rate(url: str) -> bytes:
    with urllib.request.urlopen(url) as answer:
        return bytes(answer.read())


@fault("held_across_io", also="long_hold")
def across_http_of_a_helper(zoo: Any) -> None:
    """The ORM has taken the connection; nothing here looks like a connection."""
    with Session(zoo.engine) as session:
        session.execute(PING)  # site: across_http_of_a_helper
        tax_rate(zoo.slow_url)


def wait_until_ready(engine: Engine) -> None:
    with engine.connect() as connection:  # site: across_sleep
        while connection.execute(PING).scalar() == 1:
            time.sleep(2)


@fault("held_across_io", also="long_hold")
def across_sleep(zoo: Any) -> None:
    """Polling with a sleep inside the with block."""
    wait_until_ready(zoo.engine)


_lock = threading.Lock()


def slow_owner(locked: threading.Event) -> None:
    with _lock:
        locked.set()
        time.sleep(30)


@fault("held_across_io", also="long_hold")
def across_lock(zoo: Any) -> None:
    """A connection waits for a lock of another thread, which does no SQL."""
    locked = threading.Event()
    threading.Thread(target=slow_owner, args=(locked,), daemon=True).start()
    locked.wait()
    with zoo.engine.connect() as connection:  # site: across_lock
        connection.execute(PING)
        with _lock:
            connection.execute(PING)


@fault("held_across_io", also="long_hold")
def across_queue(zoo: Any) -> None:
    """A consumer holds its connection while the queue is empty."""
    jobs: queue.Queue[str] = queue.Queue()
    with zoo.engine.connect() as connection:  # site: across_queue
        connection.execute(PING)
        while jobs.get():
            connection.execute(PING)


@fault("held_across_io", also="long_hold")
def across_subprocess(zoo: Any) -> None:
    """A converter runs inside the transaction."""
    with zoo.engine.connect() as connection:  # site: across_subprocess
        connection.execute(PING)
        subprocess.run([sys.executable, "-c", "input()"], stdin=_silent(), check=True)


@fault("held_across_io", also="long_hold")
def across_file(zoo: Any) -> None:
    """Reading a file (a pipe, a network disk) that gives nothing."""
    with zoo.engine.connect() as connection:  # site: across_file
        connection.execute(PING)
        with os.fdopen(_silent(), "rb") as file:
            file.readline()


def _silent() -> int:
    reading, _kept_open = os.pipe()
    return reading


def render() -> None:
    time.sleep(30)


@fault("held_across_io", also="long_hold")
def across_future(zoo: Any) -> None:
    """Waits for another thread, which renders a picture and does no SQL."""
    executor = ThreadPoolExecutor(1)
    with zoo.engine.connect() as connection:  # site: across_future
        connection.execute(PING)
        executor.submit(render).result()


def notify(engine: Engine) -> None:
    with engine.connect() as connection:  # site: mostly_outside
        connection.execute(PING)
        time.sleep(0.05)


@fault("held_across_io", at="mostly_outside", long_after=30)
def mostly_outside(zoo: Any) -> None:
    """Each hold is short, but nearly all of it is a sleep: no threshold needed."""
    while True:
        notify(zoo.engine)


async def wait_for_payment(engine: Any) -> None:
    async with engine.connect() as connection:  # site: across_asyncio_sleep
        await connection.execute(PING)
        await asyncio.sleep(30)


@fault("held_across_io", also="long_hold", world=AIOSQLITE)
async def across_asyncio_sleep(zoo: Any) -> None:
    """asyncio.sleep() inside the async with block."""
    await wait_for_payment(zoo.engine)


async def post(url: str) -> bytes:
    host, _, port = url.strip("/").rpartition("/")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(b"GET / HTTP/1.0\r\n\r\n")
    return await reader.read()


@fault("held_across_io", also="long_hold", world=AIOSQLITE)
async def across_async_http(zoo: Any) -> None:
    """An await of a web service inside the session."""
    async with AsyncSession(zoo.engine) as session:
        await session.execute(PING)  # site: across_async_http
        await post(zoo.slow_url)


@fault("held_across_io", also="long_hold", world=AIOSQLITE)
async def across_async_lock(zoo: Any) -> None:
    """An asyncio.Lock that another task has, which sleeps."""
    lock = asyncio.Lock()

    async def owner() -> None:
        async with lock:
            await asyncio.sleep(30)

    task = asyncio.create_task(owner())
    await asyncio.sleep(0)
    async with zoo.engine.connect() as connection:  # site: across_async_lock
        await connection.execute(PING)
        async with lock:
            await connection.execute(PING)
    await task


@fault("held_across_io", also="long_hold", world=AIOSQLITE)
async def across_async_queue(zoo: Any) -> None:
    """A websocket handler holds its session while it waits for the next message."""
    messages: asyncio.Queue[str] = asyncio.Queue()
    async with AsyncSession(zoo.engine) as session:
        await session.execute(PING)  # site: across_async_queue
        while await messages.get():
            await session.execute(PING)


@fault("held_across_io", at="mostly_async", world=AIOSQLITE, long_after=30)
async def mostly_outside_async(zoo: Any) -> None:
    """Many tasks, each hold short and nearly all of it a sleep."""

    async def handler() -> None:
        while True:
            async with zoo.engine.connect() as connection:  # site: mostly_async
                await connection.execute(PING)
                await asyncio.sleep(0.05)

    await asyncio.gather(*(handler() for _ in range(3)))
