"""Connections that the code running in this thread uses, as its variables show.

A session takes its connection in some helper, which returns; the session stays in a
variable of a caller. So the stack at checkout says little about who uses a connection,
and the variables of the running frames say it at once.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Collection, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from poolwatch import greenlets
from poolwatch.keeping.references import Guide
from poolwatch.keeping.roots import NOBODY, Place, stack_places
from poolwatch.keeping.walk import Walk
from poolwatch.keeping.words import is_near, told

if TYPE_CHECKING:
    from poolwatch.checkout import Checkout

_MOST = 2000
"""Objects visited, in about a millisecond: it is the application's own thread."""
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)


def used_by_running_code(
    holds: Sequence[Checkout], several: Collection[int]
) -> list[Checkout]:
    """The holds that a variable of this thread's running code leads to closely.

    For holds whose ``id()`` is in ``several`` that variable must be a collection. They
    were taken at the line that runs now, by a loop: a plain variable still has the
    connection of the last turn, which the assignment is about to replace.
    """
    wanted: dict[int, int] = {}
    proxies = []
    for at, hold in enumerate(holds):
        proxy = hold.proxy()
        if proxy is not None:
            wanted[id(proxy)] = at
            proxies.append(proxy)  # an id stays its own as long as the object lives
    places = [place for frame in _own_stacks() for place in _users(frame)]
    guide = Guide()
    walk = Walk(places, guide, {key: str(at) for key, at in wanted.items()}, set())
    walk.go(_MOST)
    found = []
    for index in walk.hits:
        chain, place = walk.chain(index)
        hold = holds[wanted[id(chain[-1])]]
        if id(hold) in several and type(chain[0]) not in _CONTAINERS:
            continue
        if is_near(told(place, chain), place):
            found.append(hold)
    guide.forget()
    return found


def _own_stacks() -> Iterator[FrameType]:
    """The innermost frame of this thread and, where greenlets run, of their parents."""
    yield sys._getframe(1)  # noqa: SLF001 - the documented way
    greenlet = greenlets.current_greenlet()
    while greenlet is not None:
        frame = greenlets.suspended_frame(greenlet)  # none of the one that runs
        if frame is not None:
            yield frame
        greenlet = greenlets.parent_of(greenlet)


def _users(frame: FrameType) -> list[Place]:
    places = stack_places(frame, NOBODY, "running frame")
    return [place for place in places if place.is_user]
