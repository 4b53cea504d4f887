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
from typing import Any

from poolwatch.diagnosis.references.describe import in_words, is_near
from poolwatch.diagnosis.references.follow import Guide
from poolwatch.diagnosis.references.places import UNOWNED, Place, stack_places
from poolwatch.diagnosis.references.walk import Walk
from poolwatch.stacks import greenlets

_MOST = 2000
"""Objects visited, in about a millisecond: it is the application's own thread."""
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)


def used_by_running_code(
    connections: Sequence[Any], several: Collection[int]
) -> list[int]:
    """Return the index of each connection that a variable of this thread's running
    code leads to closely. A connection that is None is skipped.

    For an index in ``several`` that variable must be a collection. Those connections
    were taken at the line that runs now, by a loop: a plain variable still has the
    connection of the last turn, which the assignment is about to replace.
    """
    wanted = {id(each): at for at, each in enumerate(connections) if each is not None}
    places = [place for frame in _own_stacks() for place in _users(frame)]
    guide = Guide()
    walk = Walk(places, guide, {key: str(at) for key, at in wanted.items()}, set())
    walk.go(_MOST)
    found = []
    for index in walk.hits:
        chain, place = walk.chain(index)
        at = wanted[id(chain[-1])]
        if at in several and type(chain[0]) not in _CONTAINERS:
            continue
        if is_near(in_words(place, chain), place):
            found.append(at)
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
    places = stack_places(frame, UNOWNED, "running frame")
    return [place for place in places if place.is_user]
