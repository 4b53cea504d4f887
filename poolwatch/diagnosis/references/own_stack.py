"""Connections that variables of the code running in this thread refer to.

A session checks out its connection in some helper function, which returns; the session
stays in a variable of a caller. So the stack at checkout says little about which code
uses a connection, while the variables of the running frames show it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Sequence
from itertools import chain as joined
from types import FrameType
from typing import Any

from poolwatch.diagnosis.references.describe import is_near, is_own
from poolwatch.diagnosis.references.follow import CONTAINERS, Guide
from poolwatch.diagnosis.references.places import NO_OWNER, Place, stack_places
from poolwatch.diagnosis.references.walk import Walk
from poolwatch.diagnosis.references.words import in_words
from poolwatch.stacks import greenlets

_MAX_VISITED = 2000
"""Most objects visited: about a millisecond of the application's own thread."""


def used_by_running_code(
    connections: Sequence[Any], several: Collection[int]
) -> list[int]:
    """Return the index of each connection near a variable of this thread's stack.

    A connection that is None is skipped. For an index in ``several`` that variable must
    be a collection. Those connections were checked out in a loop, at the line that
    runs now: a plain variable still has the previous iteration's connection, and the
    assignment is about to replace it.
    """
    wanted = {id(each): at for at, each in enumerate(connections) if each is not None}
    # no variable gets a frame: one that had itself would keep all of this alive
    places = list(joined.from_iterable(map(_users, _own_stacks())))
    guide = Guide()
    walk = Walk(places, guide, {key: str(at) for key, at in wanted.items()}, set())
    walk.go(_MAX_VISITED)
    found = []
    for index in walk.hits:
        chain, place = walk.chain(index)
        at = wanted[id(chain[-1])]
        if at in several and type(chain[0]) not in CONTAINERS:
            continue
        words = in_words(place, chain)
        if is_near(words, place, chain) and is_own(words, chain):
            found.append(at)
    guide.forget()
    return found


def _own_stacks() -> Iterator[FrameType]:
    """The innermost frame of this thread and, where greenlets run, of their parents."""
    yield sys._getframe(1)  # noqa: SLF001 - the documented way
    greenlet = greenlets.current_greenlet()
    while greenlet is not None:
        frame = greenlets.suspended_frame(greenlet)  # None for the running greenlet
        if frame is not None:
            yield frame
        greenlet = greenlets.parent_of(greenlet)


def _users(frame: FrameType) -> list[Place]:
    places = stack_places(frame, NO_OWNER, "running frame")
    return [place for place in places if place.is_user]
