"""What every adapter writes to, and what it may ask of the agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from poolwatch.ledger.ledger import Ledger
from poolwatch.stacks.holder import Holder, PerThread

if TYPE_CHECKING:
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.stacks.capture import CallSites


class AdapterContext:
    """Handed to each adapter by the agent."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        sites: Callable[[], CallSites],
        per_thread: PerThread,
        meet_thread: Callable[[], Holder],
        explain: Callable[[str], str],
        look_soon: Callable[[str], None],
        refused: Callable[[PoolLedger, BaseException], None],
    ) -> None:
        self.ledger = ledger
        self._sites = sites
        self.per_thread = per_thread
        self.meet_thread = meet_thread
        """Makes the record of the thread that calls, at its first checkout."""
        self.explain = explain
        """Tells, for a pool's id, who holds its connections."""
        self.look_soon = look_soon
        """Called with a pool's id when a request for a connection may have to wait."""
        self.refused = refused
        """Called with the books and the exception of a failed checkout; no timeouts."""

    @property
    def sites(self) -> CallSites:
        """Where stacks are kept."""
        return self._sites()
