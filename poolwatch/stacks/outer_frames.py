"""The outer frames of a captured stack: those of which one can be certain."""

from __future__ import annotations

import itertools
from typing import TypeVar

from poolwatch.model import Frame

T = TypeVar("T")


def common(one: tuple[T, ...], other: tuple[T, ...]) -> tuple[T, ...]:
    """The frames that two stacks share, from the near end."""
    both = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(one, other))  # noqa: B905 - to the shorter end
    return tuple([item for item, _ in both])


def extended(
    near: tuple[Frame, ...], tail: tuple[Frame, ...], live: tuple[Frame, ...]
) -> tuple[Frame, ...]:
    """Return the exact part of a stack, extended by outer frames that are certain.

    ``near`` is the exact part. ``tail`` is what all compared captures of the stack
    share. If the holder still seems to run ``near``, its current stack ``live`` shows
    the outer frames. But that may be the stack of a later call: if ``live`` and
    ``tail`` disagree, only the frames that they share are returned.
    """
    last = near[-1] if near else None
    places = [at for at, frame in enumerate(live) if frame is last]
    if len(places) != 1:
        return near + tail
    beyond = live[places[0] + 1 :]
    if beyond[: len(tail)] == tail:
        return near + beyond
    return near + common(tail, beyond)
