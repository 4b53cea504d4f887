"""Connections in use beside large data, and leaks beside it.

A helper has returned the session, so its taker's stack proves nothing: only a search
through the variables does, and the data is in its way.
"""

from __future__ import annotations

import asyncio
import json
import random
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from zoo.app import PING
from zoo.registry import AIOSQLITE, fault


def documents() -> list[Any]:
    user = {
        "id": 1,
        "tags": ["a", "b"],
        "address": {"geo": [1.5, 2.5], "n": {"z": [1]}},
    }
    text = json.dumps({"users": [user] * 100})
    return [json.loads(text) for _ in range(100)]


def rows() -> list[Any]:
    return [(number, f"name {number}", None) for number in range(100_000)]


def nested() -> list[Any]:
    data = []
    for number in range(300):
        inner: dict[str, Any] = {}
        for level in range(20):
            inner = {"inner": [inner, number], "more": {"levels": [level]}}
        data.append(inner)
    return data


class Node:
    def __init__(self) -> None:
        self.neighbours: list[Node] = []


def graph() -> list[Node]:
    nodes = [Node() for _ in range(5_000)]
    for node in nodes:
        node.neighbours = random.choices(nodes, k=3)
    return nodes


def linked() -> Any:
    first = last = Node()
    for _ in range(20_000):
        last.neighbours = [Node()]
        last = last.neighbours[0]
    return first


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "accounts"
    id: Mapped[int] = mapped_column(primary_key=True)
    owner: Mapped[str]


def entities() -> list[Account]:
    return [Account(id=number, owner=str(number)) for number in range(10_000)]


def open_session(engine: Engine) -> Session:
    session = Session(engine)
    session.execute(PING)  # site: beside
    return session


def beside(make: Callable[[], Any], engine: Engine, *, first: bool) -> None:
    data = make() if first else None
    session = open_session(engine)
    data = data or make()
    time.sleep(30)
    session.close()
    del data


def in_thread(work: Callable[[], None]) -> None:
    threading.Thread(target=work, name="report", daemon=True).start()


IN_USE = ("long_hold", "held_across_io")


@fault(*IN_USE, at="beside", long_after=1.0)
def beside_documents(zoo: Any) -> None:
    """A session beside a hundred JSON documents that were loaded before."""
    in_thread(lambda: beside(documents, zoo.engine, first=True))
    zoo.go_on()


@fault(*IN_USE, at="beside", long_after=1.0)
def beside_rows(zoo: Any) -> None:
    """A session beside rows that came after it."""
    in_thread(lambda: beside(rows, zoo.engine, first=False))
    zoo.go_on()


@fault(*IN_USE, at="beside", long_after=1.0)
def beside_nested_dicts(zoo: Any) -> None:
    """A session beside nested dicts, in the main thread."""
    beside(nested, zoo.engine, first=True)


@fault(*IN_USE, at="beside", long_after=1.0)
def beside_entities(zoo: Any) -> None:
    """A session beside many ORM entities."""
    beside(entities, zoo.engine, first=True)


@fault(*IN_USE, at="beside", long_after=1.0)
def beside_a_linked_list(zoo: Any) -> None:
    """A session beside one long chain of objects."""
    beside(linked, zoo.engine, first=True)


@fault(*IN_USE, at="beside", long_after=1.0)
def one_job_of_many(zoo: Any) -> None:
    """The session is an attribute of one of many jobs of a running function."""
    jobs = {number: Node() for number in range(20_000)}
    jobs[777].session = open_session(zoo.engine)  # type: ignore[attr-defined]
    time.sleep(30)
    jobs.clear()


async def open_async_session(engine: AsyncEngine) -> AsyncSession:
    session = AsyncSession(engine)
    await session.execute(PING)  # site: beside_async
    return session


async def beside_async(
    make: Callable[[], Any], engine: AsyncEngine, *, first: bool
) -> None:
    data = make() if first else None
    session = await open_async_session(engine)
    data = data or make()
    await asyncio.sleep(30)
    await session.close()
    del data


@fault(*IN_USE, at="beside_async", world=AIOSQLITE, long_after=1.0)
async def task_beside_documents(zoo: Any) -> None:
    """A task with a session beside a hundred JSON documents that came after it."""
    await asyncio.create_task(beside_async(documents, zoo.engine, first=False))


@fault(*IN_USE, at="beside_async", world=AIOSQLITE, long_after=1.0)
async def task_beside_rows(zoo: Any) -> None:
    """A task with a session beside rows that were there before."""
    await asyncio.create_task(beside_async(rows, zoo.engine, first=True))


@fault(*IN_USE, at="beside_async", world=AIOSQLITE, long_after=1.0)
async def tasks_beside_graphs(zoo: Any) -> None:
    """Several tasks, each beside a graph with cycles."""
    async with asyncio.TaskGroup() as group:
        for _ in range(3):
            group.create_task(beside_async(graph, zoo.engine, first=True))


CACHE: list[Any] = []


@fault("leaked.abandoned", at="beside", long_after=1.0)
def leak_beside_documents(zoo: Any) -> None:
    """A session in a cache, and a thread that works on large data."""

    def fill() -> None:
        CACHE.append(open_session(zoo.engine))

    data = documents()
    fill()
    zoo.go_on()
    del data


@fault("leaked.abandoned", at="beside_async", world=AIOSQLITE, long_after=1.0)
async def leak_beside_graph(zoo: Any) -> None:
    """A session in a cache, and a task that works on a graph with cycles."""

    async def fill() -> None:
        CACHE.append(await open_async_session(zoo.engine))

    data = graph()
    await fill()
    await asyncio.sleep(30)
    del data
