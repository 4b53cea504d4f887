"""Records the statements sent over the held connections of one pool: the shared part.

Recorded are the text, the call site, the time in SQL, and the time that the transaction
stayed idle afterwards.
"""

from __future__ import annotations

from asyncio import Task, current_task
from asyncio.events import _get_running_loop as running_loop
from typing import Any

from poolwatch.ledger.checkout import (
    ADVISORY,
    MAX_LOCK_STATEMENT,
    Checkout,
    Usage,
)
from poolwatch.ledger.concurrent import ConcurrentUses
from poolwatch.runtime.guard import Guard
from poolwatch.stacks.capture import CallSites
from poolwatch.stacks.holder import get_ident


class StatementHooks:
    """Records the statements of the connections of one pool."""

    def __init__(
        self, sites: CallSites, guard: Guard, concurrent: ConcurrentUses
    ) -> None:
        self._sites = sites.of_statements
        self._guard = guard
        self._concurrent = concurrent

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
        stack = self._sites.capture(caller)
        if streams:
            usage.streamed = True
        task = None if hold.task is None else running_task()
        runner = get_ident() if task is None else id(task)
        if (
            hold.holder.ident != runner
            if hold.task is None
            else not hold.task.is_of(task)
        ):
            usage.by_others = True
        if usage.began is not None and usage.runner != runner:
            self._concurrent.note(hold, usage.stack, stack)
        usage.stack, usage.runner = stack, runner
        usage.begin()
        if (
            statement is not None
            and len(statement) <= MAX_LOCK_STATEMENT
            and ADVISORY in statement
        ):
            hold.sent_advisory(statement)
        return usage


def running_task() -> Task[Any] | None:
    """The running task of this thread; None without an event loop."""
    loop = running_loop()
    return None if loop is None else current_task(loop)
