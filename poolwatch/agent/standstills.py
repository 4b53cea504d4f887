"""Pools in which nothing moves: who has their connections, and what those wait for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from poolwatch.agent.ledger_reading import LedgerReading, has_moved
from poolwatch.diagnosis.evidence import Blocked
from poolwatch.diagnosis.references.follow import class_name
from poolwatch.diagnosis.wait_graph import Node
from poolwatch.model import Finding

if TYPE_CHECKING:
    from poolwatch.agent.waiting.users import UserSearch


class Standstills:
    """Reads the wait graph of the process when a pool is at a standstill."""

    def __init__(self) -> None:
        self._user_search: UserSearch | None = None
        self._deadlocks: list[Finding] = []
        """Those of the last snapshot with a search."""

    def with_deadlocks(
        self, reading: LedgerReading, findings: list[Finding], *, search: bool
    ) -> list[Finding]:
        """Add the deadlocks that were found before, if nothing has moved since.

        A thread whose request has timed out asks without a search, and waits no more.
        """
        if search:
            self._deadlocks = [f for f in findings if f.kind == "pool_deadlock"]
            return findings
        known = {f.pool for f in findings if f.kind == "pool_deadlock"}
        lasting = [
            f for f in self._deadlocks if f.pool not in known and _lasts(f, reading)
        ]
        return [*lasting, *findings]

    def read(
        self, reading: LedgerReading, *, search: bool
    ) -> tuple[Mapping[Node, Blocked], tuple[str, ...]]:
        """Return what holds the pools up, and what was left out, in words."""
        if not any(evidence.at_standstill for _, evidence in reading.holds()):
            return {}, ()
        from poolwatch.agent.waiting.reading import blocked_in  # loaded on suspicion
        from poolwatch.agent.waiting.users import UserSearch

        if self._user_search is None:
            self._user_search = UserSearch()
        self._user_search.attach(reading, search=search)
        try:
            return blocked_in(reading)
        except Exception as error:  # noqa: BLE001 - it is the application's process
            why = class_name(type(error))
            return {}, (f"what a standstill waits for was not readable ({why})",)


def _lasts(deadlock: Finding, reading: LedgerReading) -> bool:
    """Whether the holds of a deadlock are still out and have not been used since."""
    still = {f"h{hold.number}": evidence for hold, evidence in reading.holds()}
    out = [still.get(each) for each in deadlock.holds]
    return not any(evidence is None or has_moved(evidence) for evidence in out)
