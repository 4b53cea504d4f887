"""The blocks that are open, in all threads: what they share is undone by the last."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

from poolwatch.agent.instrument import (
    agent,
    instrument,
    instrument_without_agent,
    uninstrument,
)
from poolwatch.testing.propagation import into_jobs, into_threads, patch

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.testing.region import Region


class OpenBlocks:
    """Instruments the targets of blocks, lets threads and jobs belong to them, and
    tells them of their holds: the one observer for all.
    """

    def __init__(self) -> None:
        self._around: ContextVar[tuple[int, ...]] = ContextVar(
            "poolwatch_no_leaks", default=()
        )
        """The numbers of the blocks around the running code; tasks inherit them."""
        self._open: dict[int, Region] = {}
        """By number, the oldest first."""
        self._targets: dict[str | None, tuple[Any, bool]] = {}
        """By the id of the pool, None for all: what blocks have instrumented, and
        whether the agent was to listen then."""
        self._undo: list[Callable[[], None]] = []
        self._lock = threading.RLock()  # a finalizer may run while it is held

    def begin(self, block: Region, target: Any) -> None:
        """Instrument the target of a block that begins, and record its holds."""
        with self._lock:
            block.pool = self._instrument(target)
            if not self._open:
                self._track()
            self._open[block.number] = block
            self._surround(block.number)

    def end(self, block: Region) -> None:
        """Undo what no other open block needs."""
        with self._lock:
            del self._open[block.number]
            self._surround()
            if not self._open:
                while self._undo:
                    self._undo.pop()()
            needed = {each.pool for each in self._open.values()}
            for pool in list(self._targets):
                if not needed or (pool is not None and not needed & {pool, None}):
                    self._uninstrument(*self._targets.pop(pool))

    def around(self) -> tuple[int, ...]:
        """The numbers of the blocks around the running code, the innermost last."""
        return self._around.get()

    # -- observing the ledger: see poolwatch.ledger.observers --------------------------

    def checked_out(self, pool: PoolLedger, hold: Checkout) -> None:
        """Tell the blocks that the checkout belongs to."""
        if pool.shared:
            return
        for number in self._around.get():
            block = self._open.get(number)
            if block is not None and block.pool in (None, pool.id):
                block.checked_out(pool, hold)

    def ended(
        self, pool: PoolLedger, hold: Checkout, now: float, collected: bool
    ) -> None:
        """Tell the blocks that a hold has ended, wherever that was."""
        for block in list(self._open.values()):
            block.ended(pool, hold, now, collected)

    # -- what blocks share -------------------------------------------------------------

    def forget_parent(self) -> None:
        """In a forked child, replace the lock: a thread of the parent may hold it."""
        self._lock = threading.RLock()

    def _surround(self, *number: int) -> None:
        """Add a block to the running code. One that has ended is dropped: it may have
        ended in another context, or before one that began later.
        """
        self._around.set((*filter(self._open.__contains__, self.around()), *number))

    def _track(self) -> None:
        agent.ledger.observers.append(self)
        self._undo.append(lambda: agent.ledger.observers.remove(self))
        self._undo.append(patch(threading.Thread, "start", into_threads(self._around)))
        futures = sys.modules.get("concurrent.futures.thread")
        if futures is not None:
            wrap = into_jobs(self._around, self.around)
            self._undo.append(patch(futures.ThreadPoolExecutor, "submit", wrap))

    def _instrument(self, target: Any) -> str | None:
        """Instrument a target, unless it is; return the id of its pool."""
        pools = agent.pools
        if target is None:
            if pools is None or not pools.watches_all:
                # what the application has instrumented would be undone, too
                is_ours = self._targets.keys() >= set(agent.ledger.pools)
                instrument_without_agent()
                if is_ours:
                    self._targets[None] = None, agent.listens
            return None
        known = None if pools is None else pools.id_of(target)
        if known is None:
            instrument(target)
            known = agent.pools.id_of(target) if agent.pools is not None else None
            if known is not None:  # else POOLWATCH_DISABLE is set
                self._targets[known] = target, agent.listens
        return known

    def _uninstrument(self, target: Any, listened: bool) -> None:
        """Undo it, unless the application has instrumented every pool meanwhile."""
        watches_all = agent.pools is not None and agent.pools.watches_all
        is_theirs = watches_all and target is not None and None not in self._targets
        if not is_theirs and agent.listens is listened:
            uninstrument(target)


open_blocks = OpenBlocks()
os.register_at_fork(after_in_child=open_blocks.forget_parent)
