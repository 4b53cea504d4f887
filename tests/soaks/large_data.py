"""Threads and tasks that hold a session for ten seconds beside large data.

    python tests/soaks/large_data.py [SECONDS]

Each has one of ten kinds of data in the frame that uses the session, made before the
checkout or after it. ``long_after`` is one second. Nothing may be called leaked, in a
snapshot, in the log or in a counter. Exits with 1 if a hold was accused.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.pool import QueuePool
from watching import main

import poolwatch


class Item:
    def __init__(self, number: int, other: Item | None) -> None:
        self.number, self.other, self.tags = number, other, [str(number)]


class Slotted:
    __slots__ = ("left", "right")

    def __init__(self, left: Any, right: Any) -> None:
        self.left, self.right = left, right


def nested_dicts() -> Any:
    return {str(n): {"a": {"b": {"c": [n, {"d": n}]}}} for n in range(300)}


def documents() -> Any:
    one = {
        "items": [{"id": n, "tags": ["x", "y"], "size": {"w": 1}} for n in range(80)]
    }
    return [json.loads(json.dumps(one)) for _ in range(100)]


def rows() -> Any:
    return [(n, str(n), n / 7) for n in range(300_000)]


def row_dicts() -> Any:
    return [{"id": n, "name": str(n), "at": [n]} for n in range(60_000)]


def floats() -> Any:
    return [[float(n) for n in range(1000)] for _ in range(300)]


def linked_list() -> Any:
    head = None
    for n in range(20_000):
        head = Item(n, head)
    return head


def graph() -> Any:
    nodes = [Item(n, None) for n in range(20_000)]
    for n, node in enumerate(nodes):
        node.other = nodes[(n * 7 + 1) % len(nodes)]
    return nodes[0], nodes


def by_key() -> Any:
    return {n: Item(n, None) for n in range(30_000)}


def slotted_tree(depth: int = 14) -> Any:
    if not depth:
        return Slotted(1, "x")
    return Slotted(slotted_tree(depth - 1), slotted_tree(depth - 1))


def sets() -> Any:
    return [{frozenset({n, n + 1}), frozenset({n + 2})} for n in range(30_000)]


KINDS: tuple[Callable[[], Any], ...] = (
    nested_dicts, documents, rows, row_dicts, floats,
    linked_list, graph, by_key, slotted_tree, sets,
)  # fmt: skip


def take(session: Session) -> None:
    session.execute(text("SELECT 1"))


def before(engine: Engine, make: Callable[[], Any], until: float) -> None:
    data = make()
    with Session(engine) as session:
        take(session)
        time.sleep(max(0.0, until - time.monotonic()))
    del data


def after(engine: Engine, make: Callable[[], Any], until: float) -> None:
    with Session(engine) as session:
        take(session)
        data = make()
        time.sleep(max(0.0, until - time.monotonic()))
    del data


async def in_a_task(engine: Any, make: Callable[[], Any], until: float) -> None:
    data = make()
    async with AsyncSession(engine) as session:
        await session.run_sync(take)
        await asyncio.sleep(max(0.0, until - time.monotonic()))
    del data


async def tasks(engine: Any, until: float) -> None:
    await asyncio.gather(*(in_a_task(engine, make, until) for make in KINDS))
    await engine.dispose()


def application(seconds: float) -> str:
    with tempfile.TemporaryDirectory() as directory:
        engine = create_engine(
            f"sqlite:///{directory}/data.db",
            poolclass=QueuePool,
            pool_size=2 * len(KINDS),
        )
        of_tasks = create_async_engine(
            f"sqlite+aiosqlite:///{directory}/data.db", pool_size=len(KINDS)
        )
        poolwatch.instrument(engine, long_after=1.0)
        poolwatch.instrument(of_tasks, long_after=1.0)
        until = time.monotonic() + seconds
        threads = [
            threading.Thread(
                target=work, args=(engine, make, until), name=make.__name__
            )
            for make in KINDS
            for work in (before, after)
        ]
        for thread in threads:
            thread.start()
        asyncio.run(tasks(of_tasks, until))
        for thread in threads:
            thread.join()
        engine.dispose()
    return f"{len(threads)} threads and {len(KINDS)} tasks held a session each"


if __name__ == "__main__":
    sys.exit(main(__file__, application, seconds=15, looks_a_second=4))
