"""Records the statements sent over the held connections of one pool: the shared part.

Recorded are the text, the call site, the time in SQL, and the time that the transaction
stayed idle afterwards.
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
    """Records the statements of the connections of one pool."""

    def __init__(self, sites: CallSites, guard: Guard) -> None:
        self._capture = sites.of_statements.capture
        self._guard = guard

    def begin(
        self, hold: Checkout, statement: str | None, caller: Any, streams: bool = False
    ) -> Usage:
        """Record the start of a statement: its text, and the frame that sends it.

        ``streams``: the rows are fetched by later calls, which are not recorded.
        """
        usage = hold.usage
        if usage is None:
            usage = hold.usage = Usage()
        usage.statement = statement
        usage.stack = self._capture(caller)
        if streams:
            usage.streamed = True
        if _is_by_another(hold):
            usage.by_others = True
        usage.begin()
        return usage


def _is_by_another(hold: Checkout) -> bool:
    """Whether the running thread or task is not the holder."""
    if hold.task is None:
        return hold.holder.ident != get_ident()
    return not hold.task.is_of(running_task())


def running_task() -> Task[Any] | None:
    """The running task of this thread; None without an event loop."""
    loop = running_loop()
    return None if loop is None else current_task(loop)
