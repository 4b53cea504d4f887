"""Pools in which nothing moves: who has their connections, and what those wait for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from poolwatch.agent.ledger_reading import LedgerReading
from poolwatch.diagnosis.evidence import Blocked
from poolwatch.diagnosis.references.follow import class_name
from poolwatch.diagnosis.wait_graph import Node

if TYPE_CHECKING:
    from poolwatch.agent.waiting.users import UserSearch


class Standstills:
    """Reads the wait graph of the process when a pool is at a standstill."""

    def __init__(self) -> None:
        self._user_search: UserSearch | None = None

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
