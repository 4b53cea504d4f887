"""Is the code that took a connection still running? A comparison of two stacks.

A stack is compared by the application's own frames, by file and function: lines move
on while a function runs. It is compared from the outside in, because that is how it
unwinds: of the frames that took the hold, the innermost ended first.
"""

from __future__ import annotations

from collections.abc import Sequence

from poolwatch.model import Frame
from poolwatch.stacks.capture import DEEPEST
from poolwatch.stacks.code_owner import application_frames, home_of, library_of

_LOOPS = frozenset({"asyncio", "uvloop", "anyio", "greenlet", "uvicorn"})
"""Libraries whose frames run the event loop, outside of a task."""

Name = tuple[str, str]


def taking_frames(
    stack: Sequence[Frame], site: Frame | None = None, *, launcher: bool = False
) -> tuple[Frame, ...]:
    """The frames of a stack that are the application's own, innermost first.

    With ``site``, those of the same code as that call site. What started the program is
    left out, unless it is asked for or all there is.
    """
    known = _name(site) if site is not None else None
    names = list(map(_name, stack))
    mine = application_frames(names, site=known, launcher=launcher)
    return tuple([stack[at] for at in mine])


def still_on_stack(stack_at_checkout: Sequence[Frame], now: Sequence[Frame]) -> int:
    """How many of the frames that took a hold are on its holder's stack now.

    Both stacks are innermost first. Counted from the outermost inwards: a helper that
    returned the connection to its caller leaves all but one; a worker that went on to
    its next job leaves only the loop (compare with ``len(taking_frames(...))``). Frames
    that have come between do not matter: a generator may be resumed from elsewhere, a
    decorator may have been entered. A second call of the same function counts as the
    first: two stacks cannot tell them apart, which may spare a leak but accuses nobody.
    """
    taken = [_name(frame) for frame in reversed(taking_frames(stack_at_checkout))]
    homes = {home_of(*name) for name in taken}
    names = [_name(frame) for frame in reversed(now)]
    present = [name for name in names if home_of(*name) in homes]
    if not taken or not present:
        return 0
    outside = _outside(stack_at_checkout, now, taken, present)
    matched = _in_order(taken[outside:], present)
    return outside + matched if matched else 0


def _outside(
    stack: Sequence[Frame], now: Sequence[Frame], taken: list[Name], present: list[Name]
) -> int:
    """Outermost frames of the one stack that the other one never shows.

    A task's stack ends where the task begins, while the checkout also saw what runs the
    event loop. And of a very deep stack only the inner part is kept.
    """
    if taken[0] in present or present[0] not in taken:
        return 0
    at = taken.index(present[0])
    outer = taking_frames(stack)[::-1][at - 1]
    beyond = list(stack)[: len(stack) - 1 - list(stack)[::-1].index(outer)]
    begun = any(library_of(frame.file) in _LOOPS for frame in beyond)
    return at if begun or len(now) >= DEEPEST else 0


def _in_order(taken: Sequence[Name], present: Sequence[Name]) -> int:
    """How many of ``taken`` are among ``present``, one after the other."""
    matched = 0
    for name in present:
        if matched < len(taken) and name == taken[matched]:
            matched += 1
    return matched


def matching(
    taken: Sequence[Frame], present: Sequence[Frame]
) -> list[tuple[Frame, Frame]]:
    """Frames of ``taken`` with those in ``present`` that are in the same function.

    Both are the outermost first.
    """
    pairs: list[tuple[Frame, Frame]] = []
    for frame in present:
        at = len(pairs)
        if at < len(taken) and _name(frame) == _name(taken[at]):
            pairs.append((taken[at], frame))
    return pairs


def _name(frame: Frame) -> Name:
    return frame.file, frame.function
