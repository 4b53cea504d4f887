"""Searches for the users of the connections of pools at a standstill.

A search costs computing time, so its result is kept for some seconds, and all searches
together use at most 10 % of a core while a pool stands still, 2 % once its holds are
known.
"""

from __future__ import annotations

import time
from typing import NamedTuple

from poolwatch.agent.ledger_reading import LedgerReading
from poolwatch.diagnosis.references.users import find_users
from poolwatch.diagnosis.wait_graph import Node, thread_node
from poolwatch.ledger.checkout import Checkout
from poolwatch.text.format import plural

_MIN_REUSE_S = 3.0
"""Shortest time for which a result is kept."""
_PAUSE_PER_COST = 10
_REUSE_PER_COST = 50


class _Found(NamedTuple):
    at: float
    users: tuple[Node, ...] | None


class UserSearch:
    """Searches when due, and keeps the results by the numbers of the holds."""

    def __init__(self) -> None:
        self._found: dict[int, _Found] = {}
        self._searched_at = float("-inf")
        self._cost_s = 0.0
        self._left_out: tuple[str, ...] = ()

    def attach(self, reading: LedgerReading) -> tuple[str, ...]:
        """Attach the users to the holds of pools at a standstill; search if due.

        Returns what was left out, in words.
        """
        holds = {
            hold: evidence
            for hold, evidence in reading.holds()
            if evidence.at_standstill
        }
        numbers = {hold.number for hold in holds}
        self._found = {n: f for n, f in list(self._found.items()) if n in numbers}
        if self._is_due(list(holds), reading.now):
            self._search(list(holds), reading.now)
        for hold, evidence in holds.items():
            known = self._found.get(hold.number)
            evidence.users = known.users if known is not None else None
        return self._left_out

    def _is_due(self, holds: list[Checkout], now: float) -> bool:
        known = [self._found.get(hold.number) for hold in holds]
        passed = now - self._searched_at
        if any(each is None for each in known):
            return passed >= _PAUSE_PER_COST * self._cost_s
        reuse_s = max(_MIN_REUSE_S, _REUSE_PER_COST * self._cost_s)
        return any(each is not None and now - each.at > reuse_s for each in known)

    def _search(self, holds: list[Checkout], now: float) -> None:
        began = time.thread_time()
        found = find_users(
            {str(hold.number): hold.proxy for hold in holds},
            {str(hold.number): _thread_of(hold) for hold in holds},
        )
        self._cost_s, self._searched_at = time.thread_time() - began, now
        unknown = f"who uses {plural(len(holds), 'connection')} at a standstill"
        self._left_out = () if found is not None else (unknown,)
        for hold in holds:
            users = found[str(hold.number)] if found is not None else None
            self._found[hold.number] = _Found(now, users)


def _thread_of(hold: Checkout) -> Node | None:
    if hold.task is not None or hold.adopted or hold.holder.has_ended():
        return None
    return thread_node(hold.holder.stack_key())
