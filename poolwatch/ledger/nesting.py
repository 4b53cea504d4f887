"""Nested requests: a holder requests a second connection while it uses the first.

A nested request that is served at once does not show in any snapshot, yet a pool whose
connections all go to such callers deadlocks. So nested requests are detected when they
are made: the requesting code is running then, and its variables show whether it still
uses its first connection. Nested requests are rare; plain checkouts never get here.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any

from poolwatch.model import NestedRequests
from poolwatch.stacks.callers import distinguishing_callers
from poolwatch.stacks.compare import still_on_stack, user_frames
from poolwatch.text.naming import task_name

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout
    from poolwatch.model import Frame
    from poolwatch.stacks.capture import CapturedStack

InUse = Callable[[Sequence[Any], Collection[int]], list[int]]
"""Returns the indexes of the connections that the running code uses.

The collection holds the indexes of connections that the running line checked out in a
loop. A plain variable that refers to one of these does not count as a use.
"""

_MAX_NESTINGS = 64
"""Maximum number of nestings recorded per pool."""
_MAX_HOLDS = 256
"""Nested requests are not searched for in a pool with more holds."""
_MAX_OUTER = 16
"""Only this many of a holder's latest holds are examined."""
_MAX_MISSES = 256
"""Maximum number of pairs of stacks remembered as not nested."""


class Nesting:
    """A pair of stacks: the inner request was made while the outer hold was in use."""

    __slots__ = (
        "count",
        "depth",
        "inner",
        "last",
        "logged",
        "outer",
        "outer_unused",
        "who",
    )

    def __init__(
        self,
        outer: CapturedStack,
        inner: CapturedStack,
        who: str,
        last: float,
        depth: int,
    ) -> None:
        self.outer = outer
        self.inner = inner
        self.who = who
        """Name of the first such holder."""
        self.last = last
        """``time.monotonic()`` of the last such request."""
        self.count = 1
        self.depth = depth
        """The most connections that one holder used or requested at once."""
        self.outer_unused = True
        """Whether no statement had been sent over the outer one at any request."""
        self.logged = False
        """Whether this nesting was already logged."""

    @property
    def callers(self) -> tuple[Frame | None, Frame | None]:
        """Callers of the outer and the inner request, if both have one call site."""
        return distinguishing_callers(self.outer, self.inner)

    def record(self, now: float) -> NestedRequests:
        """Return the record for a snapshot taken at ``now`` (``time.monotonic()``)."""
        return NestedRequests(
            self.outer.site(),
            self.inner.site(),
            self.callers,
            self.who,
            now - self.last,
            self.count,
            self.depth,
            self.outer_unused,
        )


class Nestings:
    """The nested requests of one pool."""

    def __init__(self, in_use: InUse) -> None:
        self._in_use = in_use
        self.seen: dict[tuple[CapturedStack, CapturedStack], Nesting] = {}
        self._misses: dict[tuple[CapturedStack, CapturedStack], int] = {}
        """By pair of stacks: how often it was found not to be nested."""

    def forget(self) -> None:
        """Start over in a forked child."""
        self.seen.clear()
        self._misses.clear()

    def note(self, wait: Checkout, holds: dict[int, Checkout]) -> None:
        """Record the holds of this pool that a request is nested in.

        A hold counts if the requesting thread or task checked it out and still uses
        it. A leaked connection or one that was handed over does not count. Must run in
        the requesting thread.
        """
        if len(holds) > _MAX_HOLDS:
            return
        requester = wait.requester()
        own_holds = [
            hold
            for hold in list(holds.values())
            if hold.requester() == requester
            if not hold.context.long_hold  # declared: other connections are expected
            if hold.usage is None or not hold.usage.by_others
        ][-_MAX_OUTER:]
        outer = self._enclosing(own_holds, wait)
        if outer:
            wait.within = tuple(outer)
            for hold in outer:
                _drop_ended(hold, holds)
                self._count(hold, wait, len(outer) + 1)

    def _enclosing(
        self, own_holds: Sequence[Checkout], wait: Checkout
    ) -> list[Checkout]:
        """Return the holds that the holder still uses at this request."""
        found, unclear = [], []
        for hold in own_holds:
            pair = hold.stack, wait.stack
            if pair in self.seen or _encloses(*pair):
                found.append(hold)
            elif self._worth_a_search(pair):
                unclear.append(hold)
        if unclear:
            proxies = [hold.proxy() for hold in unclear]
            same_line = {
                at
                for at, hold in enumerate(unclear)
                if _same_stack(hold.stack, wait.stack)
            }
            found += [unclear[at] for at in self._in_use(proxies, same_line)]
            self._missed(
                (hold.stack, wait.stack) for hold in unclear if hold not in found
            )
        return found

    def _worth_a_search(self, pair: tuple[CapturedStack, CapturedStack]) -> bool:
        """Whether to examine a pair again: only after 0, 1, 2, 4, 8 ... misses."""
        misses = self._misses.get(pair, 0)
        if not misses & (misses - 1):
            return True
        self._misses[pair] = misses + 1
        return False

    def _missed(self, pairs: Iterable[tuple[CapturedStack, CapturedStack]]) -> None:
        for pair in pairs:
            if len(self._misses) >= _MAX_MISSES:
                self._misses.clear()
            self._misses[pair] = self._misses.get(pair, 0) + 1

    def _count(self, outer: Checkout, wait: Checkout, depth: int) -> None:
        pair = outer.stack, wait.stack
        known = self.seen.get(pair)
        if known is not None:
            known.count += 1
            known.last = wait.requested_at
            known.depth = max(known.depth, depth)
        elif len(self.seen) < _MAX_NESTINGS:
            known = Nesting(*pair, _who(wait), wait.requested_at, depth)
            self.seen[pair] = known
        if known is not None and outer.usage is not None:
            known.outer_unused = False


def _drop_ended(hold: Checkout, holds: dict[int, Checkout]) -> None:
    """Drop ended holds from ``hold.within``.

    Otherwise a holder that always checks out the next connection before it returns
    the last one would keep a chain of all its ended holds alive.
    """
    if hold.within:
        open_ones = set(holds.values())
        hold.within = tuple(outer for outer in hold.within if outer in open_ones)


def _who(wait: Checkout) -> str:
    if wait.task is None:
        return f"thread {wait.holder.name}"
    return f"task {task_name(wait.task.name)}"


def _same_stack(one: CapturedStack, other: CapturedStack) -> bool:
    """Whether the same lines made both requests, as in a loop."""
    return one is other or user_frames(one.frames()) == user_frames(other.frames())


def _encloses(outer: CapturedStack, inner: CapturedStack) -> bool:
    """Whether all user frames of the outer request still ran at the inner request.

    If both have the same call site, it is a loop that still holds the connection of its
    last iteration, or has leaked it. If its function is on the stack twice, it is a
    recursion, which does count.
    """
    at_checkout, now = outer.frames(), inner.frames()
    site = outer.site()
    if site is not None and site == inner.site():
        name = site.file, site.function
        outer_calls, inner_calls = (
            sum((frame.file, frame.function) == name for frame in stack)
            for stack in (at_checkout, now)
        )
        if inner_calls <= outer_calls:
            return False
    wanted = len(user_frames(at_checkout))
    return bool(wanted) and still_on_stack(at_checkout, now) == wanted
