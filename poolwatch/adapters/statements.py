"""What is sent through the held connections of one pool: the part all drivers share.

Of a statement are recorded: its text, its call site, the time in SQL, and the time that
its transaction stood open afterwards.
"""

from __future__ import annotations

from asyncio import Task, current_task
from asyncio.events import _get_running_loop as running_loop
from typing import Any

from poolwatch.ledger.checkout import Checkout, Usage
from poolwatch.runtime.guard import Guard
from poolwatch.stacks.capture import CallSites
from poolwatch.stacks.holder import get_ident


class StatementHooks:
    """What is attached to the connections of one pool."""

    def __init__(self, sites: CallSites, guard: Guard) -> None:
        self._capture = sites.of_statements.capture
        self._guard = guard

    def begin(
        self, hold: Checkout, statement: str | None, caller: Any, streams: bool = False
    ) -> Usage:
        """Record that a statement begins: its text, and the frame that sends it.

        ``streams``: its rows are fetched by further calls that we do not see.
        """
        usage = hold.usage
        if usage is None:
            usage = hold.usage = Usage()
        usage.statement = statement
        usage.path = self._capture(caller)
        if streams:
            usage.streamed = True
        if _is_anothers(hold):
            usage.by_others = True
        usage.begin()
        return usage


def _is_anothers(hold: Checkout) -> bool:
    """Whether the thread or task that runs is not the one that took the hold."""
    if hold.task is None:
        return hold.holder.ident != get_ident()
    return not hold.task.is_of(running_task())


def running_task() -> Task[Any] | None:
    """The task that is running in this thread; None without an event loop."""
    loop = running_loop()
    return None if loop is None else current_task(loop)
