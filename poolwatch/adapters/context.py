"""What every adapter writes to, and what it may ask of the agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from poolwatch.callsites import CallSites
from poolwatch.holders import Holder, PerThread
from poolwatch.ledger import Ledger


class AdapterContext(NamedTuple):
    """Handed to each adapter by the agent."""

    ledger: Ledger
    sites: CallSites
    per_thread: PerThread
    meet_thread: Callable[[], Holder]
    """Makes the record of the thread that calls, at its first checkout."""
    explain: Callable[[str], str]
    """Tells, for a pool's id, who holds its connections."""
    look_soon: Callable[[str], None]
    """Is told, with a pool's id, when somebody may have to wait."""
