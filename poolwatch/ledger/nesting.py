"""Second requests for a connection by a holder that has one already, noted as they
happen.

A nested request that is served at once is over before a viewer looks, and yet a pool
full of such callers deadlocks. The request itself is the best moment to tell: the code
that asks is running, so its variables show whether it still uses the connection that it
took before. Nested requests are rare; plain checkouts never come here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from poolwatch.model import NestedRequests

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout
    from poolwatch.model import Frame
    from poolwatch.stacks.capture import Path

InUse = Callable[[Sequence[Any], Collection[int]], list[int]]
"""Returns which connections the running code uses, by their index. For those in the
collection, which the line that runs now has taken in a loop, a plain variable does not
count.
"""

MOST = 64
"""Pairs of stacks kept per pool."""
_MOST_HOLDS = 256
"""A pool with more holds is not searched at a request for one."""
_MOST_OUTER = 16
"""Holds of one holder that are looked at, the latest."""
_MOST_MISSES = 256
"""Pairs of stacks that are remembered as not nested."""


class Nesting:
    """Two stacks that were seen one within the other."""

    __slots__ = ("count", "depth", "inner", "last", "logged", "outer", "who")

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
        self.logged = False
        """Already in the log."""

    @property
    def callers(self) -> tuple[Frame | None, Frame | None]:
        """Callers of the outer and the inner request, if both have one call site."""
        from poolwatch.stacks.callers import distinguishing_callers

        return distinguishing_callers(self.outer, self.inner)

    def record(self, now: float) -> NestedRequests:
        """Return what is reported of it at ``now`` (``time.monotonic()``)."""
        return NestedRequests(
            self.outer.site(),
            self.inner.site(),
            self.callers,
            self.who,
            now - self.last,
            self.count,
            self.depth,
        )


class Nestings:
    """The nested requests of one pool."""

    def __init__(self, in_use: InUse) -> None:
        self._in_use = in_use
        self.seen: dict[tuple[Path, Path], Nesting] = {}
        self._misses: dict[tuple[Path, Path], int] = {}
        """How often a pair of stacks was found not to be nested."""

    def records(self, now: float) -> list[NestedRequests]:
        """Return what is reported at ``now`` (``time.monotonic()``)."""
        return [each.record(now) for each in list(self.seen.values())]

    def forget(self) -> None:
        """Begin anew in a forked child."""
        self.seen.clear()
        self._misses.clear()

    def note(self, wait: Checkout, holds: dict[int, Checkout]) -> None:
        """Record in which holds of this pool a request is nested.

        A hold counts if the thread or task that asks has taken it and is still at the
        work for which it took it. A connection that it has left behind or handed over
        is another matter. Runs in the thread that asks.
        """
        if len(holds) > _MOST_HOLDS:
            return
        owner = wait.owner()
        mine = [
            hold
            for hold in list(holds.values())
            if hold.owner() == owner
            if not hold.context.long_hold  # declared: meant to be beside others
            if hold.usage is None or not hold.usage.by_others
        ][-_MOST_OUTER:]
        outer = self._enclosing(mine, wait)
        if outer:
            wait.within = tuple(outer)
            for hold in outer:
                _let_go_of_ended(hold, holds)
                self._count(hold, wait, len(outer) + 1)

    def _enclosing(self, mine: Sequence[Checkout], wait: Checkout) -> list[Checkout]:
        """The holds in whose work this request is nested."""
        found, unclear = [], []
        for hold in mine:
            pair = hold.path, wait.path
            if pair in self.seen or _encloses(*pair):
                found.append(hold)
            elif self._worth_a_search(pair):
                unclear.append(hold)
        if unclear:
            proxies = [hold.proxy() for hold in unclear]
            again = {
                at
                for at, hold in enumerate(unclear)
                if _same_stack(hold.path, wait.path)
            }
            found += [unclear[at] for at in self._in_use(proxies, again)]
            self._missed(
                (hold.path, wait.path) for hold in unclear if hold not in found
            )
        return found

    def _worth_a_search(self, pair: tuple[Path, Path]) -> bool:
        """Whether a pair that was not nested is looked at again: ever more rarely."""
        misses = self._misses.get(pair, 0)
        if not misses & (misses - 1):
            return True
        self._misses[pair] = misses + 1
        return False

    def _missed(self, pairs: Iterable[tuple[Path, Path]]) -> None:
        for pair in pairs:
            if len(self._misses) >= _MOST_MISSES:
                self._misses.clear()
            self._misses[pair] = self._misses.get(pair, 0) + 1

    def _count(self, outer: Checkout, wait: Checkout, depth: int) -> None:
        pair = outer.path, wait.path
        known = self.seen.get(pair)
        if known is not None:
            known.count += 1
            known.last = wait.asked
            known.depth = max(known.depth, depth)
        elif len(self.seen) < MOST:
            self.seen[pair] = Nesting(*pair, _who(wait), wait.asked, depth)


def _let_go_of_ended(hold: Checkout, holds: dict[int, Checkout]) -> None:
    """Forget the ended holds that one is nested in.

    A holder that takes the next connection before it returns the last one would make a
    chain of all its holds, for as long as it goes on.
    """
    if hold.within:
        open_ones = set(holds.values())
        hold.within = tuple(each for each in hold.within if each in open_ones)


def _who(wait: Checkout) -> str:
    from poolwatch.text.naming import task_name

    if wait.task is None:
        return f"thread {wait.holder.name}"
    return f"task {task_name(wait.task.name)}"


def _same_stack(one: Path, other: Path) -> bool:
    """Whether the same lines made both requests, as in the turns of a loop."""
    from poolwatch.stacks.compare import taking_frames

    return one is other or taking_frames(one.frames()) == taking_frames(other.frames())


def _encloses(outer: Path, inner: Path) -> bool:
    """Whether all user frames that took the one were running when the other was asked.

    The same line again is a loop that has not let go of what it took in its last turn,
    or has leaked it; unless its function is on the stack once more: then it calls
    itself.
    """
    from poolwatch.stacks.compare import still_on_stack, taking_frames  # rarely needed

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
