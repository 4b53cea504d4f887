"""What is attached to one pool of a driver, whichever it is.

A driver's pool is one object for its whole life, so there is less to follow than with
an engine: the pool is hooked once, and forgotten when it is collected.
"""

from __future__ import annotations

from asyncio import current_task
from asyncio.events import _get_running_loop as running_loop
from collections.abc import Callable
from typing import Any
from weakref import finalize, ref

from poolwatch.adapters.connection_facts import facts_of
from poolwatch.adapters.context import AdapterContext
from poolwatch.adapters.cut_short import Mishaps
from poolwatch.ledger.checkout import Checkout, ConnectionFacts, Gauges
from poolwatch.ledger.pool import PoolLedger
from poolwatch.runtime.guard import Guard
from poolwatch.stacks.capture import Path
from poolwatch.stacks.holder import TaskRef


class DriverHooks(Mishaps):
    """Everything that is attached to one pool, and how it comes off again."""

    def __init__(self, pool: Any, book: PoolLedger, context: AdapterContext) -> None:
        self.book = book
        self.guard = Guard(f"pool {book.name!r}")
        self.on_gone: Callable[[str], None] = lambda _: None
        """Called with the id of the book once the pool is gone."""
        self._sites = context.sites
        self._per_thread = context.per_thread
        self._meet_thread = context.meet_thread
        self._explain = context.explain
        self._look_soon = context.look_soon
        self._tell_refused = context.refused
        self._pool = ref(pool)
        self._end = finalize(pool, self._pool_gone)
        self._end.atexit = False
        book.gauges = self.gauges
        book.switched_off = lambda: self.guard.tripped

    @property
    def pool(self) -> Any:
        """The pool; None once it is gone."""
        return self._pool()

    def has(self, pool: Any) -> bool:
        """Whether these hooks are on ``pool``."""
        return self._pool() is pool

    def remove(self) -> None:
        """Take everything off again. What is in flight passes through."""
        self.guard.tripped = True
        self._end.detach()

    def gauges(self) -> Gauges:
        """What the pool says of itself; nothing once it is gone."""
        return Gauges()

    def _pool_gone(self) -> None:
        self.on_gone(self.book.id)

    # -- what a checkout needs beside the hot path -------------------------------------

    def caller(self, frame: Any) -> tuple[Path, TaskRef | None]:
        """Who asks: the stack from ``frame`` on, and the task if one runs."""
        loop = running_loop()
        task = current_task(loop) if loop is not None else None
        return self._sites.capture(frame), TaskRef(task) if task is not None else None

    def notable(self, wait: Checkout, capacity: int) -> None:
        """A second connection for one holder, or one more than the pool has."""
        book = self.book
        if wait.holder.out:
            book.wanted_again(wait)
        if len(book.holds) >= capacity:
            book.wanted_more(wait)
            self._look_soon(book.id)

    def remember(
        self,
        connection: Any,
        key: int,
        opened: float,
        took: float | None,
        *,
        met: bool = False,
    ) -> ConnectionFacts:
        """Note what is known of a connection; whoever closes it forgets it again.

        ``met``: it was there before, and nobody knows since when.
        """
        facts = facts_of(connection, opened, took, met=met)
        self.book.connections[key] = facts
        return facts
