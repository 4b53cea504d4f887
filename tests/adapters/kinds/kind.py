"""What the contract asks of a kind of pool: a small driver, sync or async.

The functions that work with the pool stand for the user's code: the call site of every
hold is ``take``, in the file of the kind. Those of an async kind are coroutines. All of
them run in one place, as a program would: in the main thread, or in one task (called
``main``) of an event loop in a thread of its own; ``begin`` runs one beside it, in a
thread or task called ``beside``.
"""

from __future__ import annotations

import asyncio
import gc
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

KEPT: list[Any] = []
"""A module's cache: what is in it is in nobody's hands."""


class Kind(ABC):
    """A kind of pool; made anew for each test."""

    name: str
    pool_class: str
    """What the document calls it."""
    exhausted: type[BaseException]
    """Raised when nothing is free (for as long as the pool waits)."""
    is_async = False
    waits = True
    """Somebody who asks while nothing is free waits."""
    twice: type[BaseException] | None = None
    """Raised when a connection is given back a second time."""
    counts_invalidated = True
    """``discard`` is told to the pool as such, rather than found out by it."""
    holds_outlive_close = True
    """A hold that is out while the pool is closed stays, until it is given back."""
    keeps = True
    """What was given back is lent again."""
    may_lose_broken = False
    """A connection that the server ends may keep its slot for good."""
    reopens = False
    """A closed pool opens anew."""

    # -- what the library does, each in its own words ----------------------------------

    @abstractmethod
    def make(self, server: Any, *, size: int, timeout: float) -> Any:
        """Make and open a pool: what the user would give to ``instrument``."""

    @abstractmethod
    def take(self, pool: Any) -> Any:
        """Take a connection."""

    @abstractmethod
    def give(self, pool: Any, connection: Any) -> Any:
        """Give it back."""

    @abstractmethod
    def discard(self, pool: Any, connection: Any) -> Any:
        """Give it back as one that must not be used again."""

    @abstractmethod
    def query(self, connection: Any, sql: str) -> Any:
        """Run a statement; returns the first column of the first row."""

    @abstractmethod
    def close(self, pool: Any) -> Any:
        """Close the pool."""

    def classes(self, pool: Any) -> list[type]:
        """The classes that hooks might be left on."""
        return [each for each in type(pool).__mro__ if each is not object]

    def instances(self, pool: Any) -> list[Any]:
        """The objects that hooks might be left on."""
        return [pool]

    # -- what is built on that ---------------------------------------------------------

    def keep(self, pool: Any) -> Any:
        """Take one, and leave it where nobody looks."""
        KEPT.append(self.take(pool))

    def drop(self, pool: Any) -> Any:
        """Take one, and lose it."""
        self.query(self.take(pool), "select 1")

    # -- how it is run -----------------------------------------------------------------

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        """Call it in the main thread or task."""
        return function(*args)

    def begin(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        """Call it beside; the result can be waited for."""
        outcome: Future[Any] = Future()

        def call() -> None:
            try:
                outcome.set_result(function(*args))
            except BaseException as error:
                outcome.set_exception(error)

        threading.Thread(target=call, name="beside", daemon=True).start()
        return outcome

    def collect(self) -> None:
        """Let go of what nobody refers to."""
        gc.collect()

    @property
    def main(self) -> tuple[str | None, str | None]:
        """The thread and task that holds of ``run`` belong to."""
        return threading.current_thread().name, None

    @property
    def beside(self) -> tuple[str | None, str | None]:
        """Those of ``begin``."""
        return "beside", None

    def end(self) -> None:
        """The test is over."""
        KEPT.clear()


class AsyncKind(Kind):
    """A kind of pool whose functions are coroutines."""

    is_async = True

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self.loop.run_forever, name="loop", daemon=True
        )
        self._thread.start()
        self._orders: asyncio.Queue[Any] = asyncio.Queue()
        self._main = self.loop.call_soon_threadsafe(self._start)

    def _start(self) -> None:
        self._task = self.loop.create_task(self._obey(), name="main")

    async def _obey(self) -> None:
        while True:
            outcome, function, args = await self._orders.get()
            try:
                outcome.set_result(await function(*args))
            except Exception as error:
                outcome.set_exception(error)
            del outcome, function, args

    async def keep(self, pool: Any) -> Any:
        KEPT.append(await self.take(pool))

    async def drop(self, pool: Any) -> Any:
        await self.query(await self.take(pool), "select 1")

    def run(self, function: Callable[..., Any], *args: Any) -> Any:
        outcome: Future[Any] = Future()
        order = outcome, function, args
        self.loop.call_soon_threadsafe(self._orders.put_nowait, order)
        return outcome.result(30)

    def begin(self, function: Callable[..., Any], *args: Any) -> Future[Any]:
        outcome: Future[Any] = Future()

        async def call() -> None:
            try:
                outcome.set_result(await function(*args))
            except BaseException as error:
                outcome.set_exception(error)

        self.loop.call_soon_threadsafe(
            lambda: self.kept_tasks.append(self.loop.create_task(call(), name="beside"))
        )
        return outcome

    @property
    def kept_tasks(self) -> list[Any]:
        """Tasks are kept by those who start them."""
        return self.__dict__.setdefault("_tasks", [])

    def collect(self) -> None:
        async def collect() -> None:
            gc.collect()
            await asyncio.sleep(0)

        self.run(collect)

    @property
    def main(self) -> tuple[str | None, str | None]:
        return "loop", "main"

    @property
    def beside(self) -> tuple[str | None, str | None]:
        return "loop", "beside"

    def end(self) -> None:
        super().end()

        async def finish() -> None:
            tasks = asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self.loop.shutdown_asyncgens()

        asyncio.run_coroutine_threadsafe(finish(), self.loop).result(30)
        self.kept_tasks.clear()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(30)
        self.loop.close()
