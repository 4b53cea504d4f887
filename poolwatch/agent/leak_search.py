"""Searches the reference paths of suspicious holds, and caches the results.

A search costs CPU time, so a result is reused for some seconds, and all searches
together take at most 2 % of a core.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from poolwatch.agent.ledger_reading import LedgerReading
from poolwatch.diagnosis.evidence import HoldEvidence, Search
from poolwatch.diagnosis.verdicts import proven_unused, suspicious
from poolwatch.ledger.checkout import Checkout
from poolwatch.model import Frame
from poolwatch.stacks.compare import user_frames

if TYPE_CHECKING:
    from poolwatch.diagnosis.references.search import SearchResult

_MIN_REUSE_S = 3.0
"""Minimum time for which a result is reused."""
_REUSE_PER_COST = 50
"""A result is reused for at least this many times its CPU cost: 2 % of a core."""
_MAX_REPEATED_S = 1.0
"""A first search that took longer is not repeated: a viewer waits for the snapshot."""
_CONFIRMATIONS = 2
"""Consecutive snapshots that must find a hold leaked before it is reported."""

_BRIEF_BUDGET_S = 0.3
"""Computing time for the paths of adopted holds that are not suspicious."""

EvidenceByHold = Mapping[Checkout, HoldEvidence]


@dataclass(slots=True)
class _CachedSearch:
    """The last search for one hold, and how many searches found it unused."""

    at: float
    """``time.monotonic()`` of the snapshot."""
    search: Search
    now: tuple[Frame, ...]
    """The holder's stack at the time of the search."""
    times_unused: int = 0
    """Consecutive snapshots whose searches found the hold unused."""
    confirmed: bool = False
    """Whether a second search in the same snapshot also found the hold unused."""


class LeakSearch:
    """Searches for references to suspicious holds when due, and caches the results."""

    def __init__(self) -> None:
        self._cache: dict[int, _CachedSearch] = {}
        """By hold number."""
        self._reuse_s = _MIN_REUSE_S
        self._searched_at = float("-inf")
        self._cost_s = 0.0
        """CPU time of the last snapshot's searches."""
        self.left_out: tuple[str, ...] = ()
        """What the last search left out, in words."""
        self.found_garbage = False
        """Whether a search found a connection without any reference. Such a connection
        is garbage that an idle process does not collect. A collection of the young
        generations, which a snapshot delays, usually frees it."""

    def search(self, reading: LedgerReading) -> None:
        """Search for the suspects if the cached results are too old; verify the holds.

        An unused hold is searched for twice: its connection may have moved from one
        frame to another during the first search, and been missed in both.
        """
        suspects = reading.suspects()
        numbers = {hold.number for hold in suspects}
        for number in list(self._cache):
            if number not in numbers:
                self._cache.pop(number, None)
        if self._is_due(suspects, reading.now):
            self._cost_s = 0.0
            self._run_search(reading, suspects)
            unused = {
                h: s for h, s in reading.suspects().items() if self._is_unused(h, s)
            }
            confirmed = (
                bool(unused) and time.monotonic() - reading.now < _MAX_REPEATED_S
            )
            if confirmed:
                self._run_search(reading, unused)
            for hold, evidence in reading.suspects().items():
                cached = self._cache.get(hold.number)
                if cached is not None:
                    unused_now = self._is_unused(hold, evidence)
                    cached.times_unused = cached.times_unused + 1 if unused_now else 0
                    cached.confirmed = confirmed
            self._reuse_s = max(_MIN_REUSE_S, _REUSE_PER_COST * self._cost_s)
            self._searched_at = reading.now
            self.found_garbage = any(
                cached.search.path is None and cached.search.unseen is None
                for cached in self._cache.values()
            )
        reading.verify()

    def attach_cached(self, reading: LedgerReading) -> None:
        """Attach the cached results that are still valid to the holds of a reading.

        Proof that a connection is unused takes two searches. Until a second snapshot
        confirms it, the proof is valid only for the stack of the first search.
        """
        for hold, evidence in reading.holds():
            cached = self._cache.get(hold.number)
            if cached is None or evidence.stack_changed:
                continue
            certain = (
                cached.times_unused >= _CONFIRMATIONS
                or not self._is_unused(hold, evidence)
                or (cached.confirmed and _same_place(evidence.now, cached.now))
            )
            search = cached.search
            evidence.search = search if certain else search._replace(pending=True)

    def is_confirmed(self, hold: Checkout) -> bool:
        """Whether two consecutive snapshots found a hold leaked."""
        cached = self._cache.get(hold.number)
        return cached is not None and cached.times_unused >= _CONFIRMATIONS

    def awaits_confirmation(self) -> bool:
        """Whether the last snapshot found a leak that the next one must confirm."""
        cached_searches = list(self._cache.values())
        return any(
            0 < cached.times_unused < _CONFIRMATIONS for cached in cached_searches
        )

    def _run_search(self, reading: LedgerReading, suspects: EvidenceByHold) -> None:
        import poolwatch.diagnosis.references.search  # noqa: F401 - loading must not count as cost

        began = time.thread_time()
        found, self.left_out = _search(suspects)
        self._cost_s += time.thread_time() - began
        reading.verify()
        for hold, evidence in suspects.items():
            before = self._cache.get(hold.number)
            if evidence.stack_changed:
                self._cache.pop(hold.number, None)
            elif hold.number in found:
                times = before.times_unused if before is not None else 0
                search = found[hold.number]
                self._cache[hold.number] = _CachedSearch(
                    reading.now, search, evidence.now, times
                )

    def _is_due(self, suspects: EvidenceByHold, now: float) -> bool:
        """Whether to search now.

        A search that may confirm a leak is due at once. Outdated results are renewed
        when the CPU budget allows it.
        """
        if any(
            self._is_to_be_confirmed(hold, evidence)
            for hold, evidence in suspects.items()
        ):
            return True
        affordable = now - self._searched_at >= self._reuse_s - _MIN_REUSE_S
        return affordable and any(
            (cached := self._cache.get(hold.number)) is None
            or now - cached.at > self._reuse_s
            for hold in suspects
        )

    def _is_to_be_confirmed(self, hold: Checkout, evidence: HoldEvidence) -> bool:
        cached = self._cache.get(hold.number)
        return (
            cached is not None
            and cached.times_unused < _CONFIRMATIONS
            and self._is_unused(hold, evidence)  # may predate the suspicion
        )

    def _is_unused(self, hold: Checkout, evidence: HoldEvidence) -> bool:
        cached = self._cache.get(hold.number)
        return cached is not None and proven_unused(evidence, cached.search)


def _same_place(now: tuple[Frame, ...], before: tuple[Frame, ...]) -> bool:
    """Whether two stacks are equal, apart from libraries and line numbers."""
    if now == before:
        return True
    one, other = user_frames(before), user_frames(now)
    return [(f.file, f.function) for f in one] == [(f.file, f.function) for f in other]


def _search(suspects: EvidenceByHold) -> tuple[dict[int, Search], tuple[str, ...]]:
    """Return the search result of each hold by number, and what was left out.

    An adopted hold that is not suspicious needs any path, and no proof.
    """
    from poolwatch.diagnosis.references.search import find_all, find_paths

    brief = {h: e for h, e in suspects.items() if h.adopted and not suspicious(e)}
    others = {hold: e for hold, e in suspects.items() if hold not in brief}
    paths = partial(find_paths, budget_s=_BRIEF_BUDGET_S, nodes=1_000_000, prove=False)
    found, left_out = _results(others, find_all)
    return {**found, **_results(brief, paths)[0]}, left_out


def _results(
    suspects: EvidenceByHold, find: Callable[..., SearchResult]
) -> tuple[dict[int, Search], tuple[str, ...]]:
    from poolwatch.diagnosis.references.hidden import may_hide, serves_request

    if not suspects:
        return {}, ()
    result = find(
        {str(hold.number): hold.proxy for hold in suspects},
        holders={
            str(hold.number): hold.stack_key_and_task()
            for hold in suspects
            if not hold.adopted
        },
    )
    found = {}
    for hold, evidence in suspects.items():
        path = result.paths.get(str(hold.number))
        hidden = (path is None or path.ambient) and (
            may_hide(evidence.stack, evidence.now)
            or serves_request(evidence.stack, evidence.now)
        )
        found[hold.number] = Search(
            path, result.unseen, hidden, complete=result.left_out is None
        )
    return found, (result.left_out,) if result.left_out else ()
