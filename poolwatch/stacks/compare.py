"""Comparison of two stacks: is the code of a checkout still running?

Only the application's own frames are compared, by file and function: the line changes
while a function runs. The comparison starts at the outermost frame, because a stack
unwinds from the innermost one.
"""

from __future__ import annotations

from collections.abc import Sequence

from poolwatch.model import Frame
from poolwatch.stacks.capture import MAX_FRAMES
from poolwatch.stacks.code_owner import application_frames, home_of, library_of

_LOOPS = frozenset({"asyncio", "uvloop", "anyio", "greenlet", "uvicorn"})
"""Libraries that run the event loop, whose frames are outside of any task."""

Name = tuple[str, str]


def user_frames(
    stack: Sequence[Frame], site: Frame | None = None, *, launcher: bool = False
) -> tuple[Frame, ...]:
    """The frames of a stack that are the application's own, innermost first.

    With ``site``, only frames of the same code as that call site. The frames that
    launched the program are left out, unless ``launcher`` is set or there are no other
    frames.
    """
    own = _user_positions(stack, site, launcher=launcher)
    return tuple([stack[at] for at in own])


def _user_positions(
    stack: Sequence[Frame], site: Frame | None = None, *, launcher: bool = False
) -> list[int]:
    site_name = _name(site) if site is not None else None
    names = list(map(_name, stack))
    return application_frames(names, site=site_name, launcher=launcher)


def still_on_stack(stack_at_checkout: Sequence[Frame], now: Sequence[Frame]) -> int:
    """Count the frames of a checkout that are still on the holder's stack.

    Both stacks are innermost first; the count starts at the outermost frame. If a
    helper has returned the connection to its caller, all frames but one are left; if a
    worker has gone on to its next job, only its loop is left (compare with
    ``len(user_frames(...))``). Additional frames in between do not matter: a
    generator may be resumed from elsewhere, a decorator may have been entered. A second
    call of the same function counts as the first, because two stacks do not show the
    difference: a leak may be missed, but there is no false positive.
    """
    return count_and_pair(stack_at_checkout, now)[0]


def count_and_pair(
    stack_at_checkout: Sequence[Frame], now: Sequence[Frame]
) -> tuple[int, list[tuple[int, int]]]:
    """The count of still_on_stack(), and the positions of the frames on both stacks.

    The pairs are ordered from the outermost frame on.
    """
    positions = _user_positions(stack_at_checkout)[::-1]
    at_checkout = [_name(stack_at_checkout[at]) for at in positions]
    homes = {home_of(*name) for name in at_checkout}
    names = [(at, _name(frame)) for at, frame in reversed(list(enumerate(now)))]
    present = [(at, name) for at, name in names if home_of(*name) in homes]
    if not at_checkout or not present:
        return 0, []
    outside = _outside(
        stack_at_checkout, now, at_checkout, [name for _, name in present]
    )
    both: list[tuple[int, int]] = []
    for at, name in present:
        next_one = outside + len(both)
        if next_one < len(at_checkout) and name == at_checkout[next_one]:
            both.append((positions[next_one], at))
    return outside + len(both) if both else 0, both


def _outside(
    stack: Sequence[Frame],
    now: Sequence[Frame],
    at_checkout: list[Name],
    present: list[Name],
) -> int:
    """Count the outermost frames of ``stack`` that ``now`` cannot contain.

    A task's stack begins with the task's coroutine, while the checkout also recorded
    the frames that run the event loop. Of a very deep stack only the inner part is
    recorded.
    """
    if at_checkout[0] in present or present[0] not in at_checkout:
        return 0
    at = at_checkout.index(present[0])
    outer = user_frames(stack)[::-1][at - 1]
    beyond = list(stack)[: len(stack) - 1 - list(stack)[::-1].index(outer)]
    begun = any(library_of(frame.file) in _LOOPS for frame in beyond)
    return at if begun or len(now) >= MAX_FRAMES else 0


def matching_frames(
    at_checkout: Sequence[Frame], present: Sequence[Frame]
) -> list[tuple[Frame, Frame]]:
    """Pair the frames of ``at_checkout`` and ``present`` that are in the same function.

    Both stacks are outermost first.
    """
    pairs: list[tuple[Frame, Frame]] = []
    for frame in present:
        at = len(pairs)
        if at < len(at_checkout) and _name(frame) == _name(at_checkout[at]):
            pairs.append((at_checkout[at], frame))
    return pairs


def _name(frame: Frame) -> Name:
    return frame.file, frame.function
