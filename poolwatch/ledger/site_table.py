"""The statistics of one pool by call site and nearest callers, in bounded memory."""

from __future__ import annotations

from typing import TYPE_CHECKING

from poolwatch.ledger.site_stats import StackStats
from poolwatch.model import OTHER_SITES
from poolwatch.stacks.callers import Stack, near_stack
from poolwatch.stacks.capture import UNKNOWN_STACK

if TYPE_CHECKING:
    from poolwatch.model import Frame
    from poolwatch.stacks.capture import CapturedStack

MAX_SITES = 128
"""Maximum number of call sites per pool; further ones are counted together."""
_MAX_STACKS = 2 * MAX_SITES
"""Maximum number of StackStats per pool: one per call site and nearest callers."""


class SiteTable:
    """One StackStats per call site and nearest callers. Written without a lock."""

    def __init__(self) -> None:
        self.by_capture: dict[CapturedStack, StackStats] = {}
        """By the latest captured stacks, of which many may share one record."""
        self._by_site: dict[Frame | None, dict[Stack, StackStats]] = {}
        """By call site and stack; the call site of an empty stack is None."""
        self.unseen = StackStats()
        """The ended holds whose checkout was not seen: of no site, and of unknown age,
        so that they are only counted."""

    def stats_of(self, captured: CapturedStack) -> StackStats:
        """Return the statistics of a stack; may be slow if not in ``by_capture``."""
        if captured is UNKNOWN_STACK:
            return self.by_capture.setdefault(captured, self.unseen)
        known = self.by_capture.get(captured)
        if known is not None:
            return known
        if len(self.by_capture) >= 4 * MAX_SITES:
            self.by_capture.clear()
        site: Frame | None = captured.site()
        stack: Stack = (OTHER_SITES,)
        if site in self._by_site or len(self._by_site) < MAX_SITES:
            stack = near_stack(captured)
        else:
            site = OTHER_SITES
        stacks = self._by_site.setdefault(site, {})
        so_many = sum(map(len, list(self._by_site.values())))
        if stack not in stacks and so_many >= _MAX_STACKS:
            stack = (*stack[:1], OTHER_SITES)
        stats = stacks.get(stack) or stacks.setdefault(stack, StackStats(stack))
        stats.captured = [*stats.captured[-3:], captured]
        return self.by_capture.setdefault(captured, stats)

    def all(self) -> list[StackStats]:
        """The statistics of all stacks."""
        return [each for stacks in self.by_site().values() for each in stacks]

    def by_site(self) -> dict[Frame | None, list[StackStats]]:
        """The statistics of each call site: one record per stack."""
        return {
            site: list(stacks.values()) for site, stacks in list(self._by_site.items())
        }

    def count(self) -> int:
        """The number of all ended holds."""
        return self.unseen.count + sum(each.count for each in self.all())

    def collected(self) -> int:
        """How many of them were garbage-collected."""
        return self.unseen.collected + sum(each.collected for each in self.all())

    def forget(self) -> None:
        """Start over in a forked child."""
        self.unseen = StackStats()
        self.by_capture.clear()
        self._by_site.clear()
