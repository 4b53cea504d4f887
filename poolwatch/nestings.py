"""Second requests for a connection by one who holds one already: noted as they happen.

A nested request that is served at once is over before anybody looks, and yet a pool
full of such callers locks itself up. It is rare, so that what a look at two stacks
costs is not felt.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from poolwatch.callsites import Path
    from poolwatch.checkout import Checkout

MOST = 64
"""Pairs of stacks kept per pool."""
_MOST_HOLDS = 256
"""A larger pool is not searched at a request for one."""


class Nesting:
    """Two stacks that were seen one within the other."""

    __slots__ = ("count", "depth", "inner", "last", "outer", "told", "who")

    def __init__(
        self, outer: Path, inner: Path, who: str, last: float, depth: int
    ) -> None:
        self.outer = outer
        self.inner = inner
        self.who = who
        """The first holder, in words."""
        self.last = last
        """``time.monotonic()`` of the last time."""
        self.count = 1
        self.depth = depth
        """The most connections that one such holder wanted at once."""
        self.told = False
        """Already in the log."""


class Nestings:
    """Those of one pool."""

    def __init__(self) -> None:
        self.seen: dict[tuple[Path, Path], Nesting] = {}

    def note(self, wait: Checkout, holds: dict[int, Checkout]) -> None:
        """Take down a request if its thread or task holds a connection of this pool.

        Only if the code that took that one is still running, above the request: what
        somebody has left behind, or given away, is another matter.
        """
        if len(holds) > _MOST_HOLDS:
            return
        owner = wait.owner()
        mine = [hold for hold in list(holds.values()) if hold.owner() == owner]
        for outer in mine:
            if outer.ambience.long_hold:  # declared: it is meant to be beside others
                continue
            pair = outer.path, wait.path
            known = self.seen.get(pair)
            if known is not None:
                known.count += 1
                known.last = wait.asked
                known.depth = max(known.depth, len(mine) + 1)
            elif len(self.seen) < MOST and _encloses(*pair):
                who = wait.task.name if wait.task else wait.holder.name
                kind = "task" if wait.task else "thread"
                self.seen[pair] = Nesting(
                    *pair, f"{kind} {who}", wait.asked, depth=len(mine) + 1
                )


def _encloses(outer: Path, inner: Path) -> bool:
    """Whether all user frames that took the one were running when the other was asked.

    The same line again is a loop that has not let go of what it took in its last turn,
    or has leaked it; unless its function is on the stack once more: then it calls
    itself.
    """
    from poolwatch.onstack import still_on_stack, taking_frames  # rarely needed

    taken, now = outer.frames(), inner.frames()
    site = outer.site()
    if site is not None and site == inner.site():
        name = site.file, site.function
        before, here = (
            sum((frame.file, frame.function) == name for frame in stack)
            for stack in (taken, now)
        )
        if here <= before:
            return False
    wanted = len(taking_frames(taken))
    return bool(wanted) and still_on_stack(taken, now) == wanted
