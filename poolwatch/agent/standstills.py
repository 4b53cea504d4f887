"""Reads the wait graph of pools at a standstill, in which nothing moves."""

from __future__ import annotations

import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from poolwatch.agent.ledger_reading import LedgerReading, has_moved
from poolwatch.diagnosis.evidence import Blocked
from poolwatch.diagnosis.references.attributes import class_name
from poolwatch.diagnosis.wait_graph import Node
from poolwatch.model import Finding

if TYPE_CHECKING:
    from poolwatch.agent.waiting.users import UserSearch


_PAUSE_PER_COST = 10
"""Pause after a reading, as a multiple of its computing time."""


class StandstillReading(NamedTuple):
    """The wait graph of the pools at a standstill, at one moment."""

    blocked: Mapping[Node, Blocked] = MappingProxyType({})
    left_out: tuple[str, ...] = ()
    """The parts that were not read, in words."""
    complete: bool = True
    """False if it was not read this time: the last result holds."""


class Standstills:
    """Reads the wait graph of the process when a pool is at a standstill."""

    def __init__(self) -> None:
        self._user_search: UserSearch | None = None
        self._deadlocks: list[Finding] = []
        """The deadlocks of the last snapshot for which the wait graph was read."""
        self._left_out: tuple[str, ...] = ()
        self._next = float("-inf")
        """``time.monotonic()`` from which on it may be read again."""

    def read(self, reading: LedgerReading, *, search: bool) -> StandstillReading:
        """Read the wait graph, unless the last reading was too costly."""
        if not any(evidence.at_standstill for _, evidence in reading.holds()):
            return StandstillReading(complete=search)
        if not search or reading.now < self._next:
            return StandstillReading(left_out=self._left_out, complete=False)
        began = time.thread_time()
        try:
            found = self._read(reading)
        except Exception as error:  # noqa: BLE001 - it is the application's process
            what = f"what holds a pool up ({class_name(type(error))})"
            found = StandstillReading(left_out=(what,))
        self._left_out = found.left_out
        self._next = reading.now + _PAUSE_PER_COST * (time.thread_time() - began)
        return found

    def with_deadlocks(
        self,
        reading: LedgerReading,
        standstill: StandstillReading,
        findings: list[Finding],
    ) -> list[Finding]:
        """Add the deadlocks that were found before, if nothing has moved since.

        The graph is not read for each snapshot, and not for that of a request that has
        timed out and so waits no more.
        """
        found = [each for each in findings if each.kind == "pool_deadlock"]
        if standstill.complete:
            self._deadlocks = found
            return findings
        known = {each.pool for each in found}
        lasting = [
            each
            for each in self._deadlocks
            if each.pool not in known and _lasts(each, reading)
        ]
        return [*lasting, *findings]

    def _read(self, reading: LedgerReading) -> StandstillReading:
        from poolwatch.agent.waiting.reading import blocked_in  # loaded on suspicion
        from poolwatch.agent.waiting.users import UserSearch

        if self._user_search is None:
            self._user_search = UserSearch()
        left_out = self._user_search.attach(reading)
        blocked, more = blocked_in(reading)
        return StandstillReading(blocked, left_out + more)


def _lasts(deadlock: Finding, reading: LedgerReading) -> bool:
    """Whether the holds of a deadlock are still out and have not been used since."""
    still = {f"h{hold.number}": evidence for hold, evidence in reading.holds()}
    out = [still.get(each) for each in deadlock.holds]
    return not any(evidence is None or has_moved(evidence) for evidence in out)
