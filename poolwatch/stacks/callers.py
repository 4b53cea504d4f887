"""The callers that distinguish connections checked out at the same call site.

Many applications check out all connections in one helper, so the helper's line alone is
not informative. The application's own frames are compared from the call site outwards:
the first frame that differs between the stacks is the caller to report.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from poolwatch.model import OTHER_SITES, Frame
from poolwatch.stacks.capture import USER_FRAMES_WANTED
from poolwatch.stacks.compare import user_frames

if TYPE_CHECKING:
    from poolwatch.stacks.capture import CapturedStack

Stack = tuple[Frame, ...]
"""A call site and the application's frames outside of it, innermost first."""


class Request(NamedTuple):
    """A hold or wait whose caller is wanted."""

    site: Frame
    stack: tuple[Frame, ...]
    """Innermost first, library frames included."""
    submitter: tuple[Frame, ...] = ()
    """The stack that handed the work to this thread, if known."""


def own_stack(site: Frame, stack: Sequence[Frame]) -> Stack:
    """The call site and the application's frames outside of it."""
    beyond = stack[stack.index(site) + 1 :] if site in stack else stack
    own = set(user_frames(stack, site, launcher=True))
    return (site, *[frame for frame in beyond if frame in own])


def near_stack(captured: CapturedStack) -> Stack:
    """The own_stack() of the exact part; empty without a call site."""
    site = captured.site()
    return () if site is None else own_stack(site, captured.exact())


def distinguishing_callers(
    one: CapturedStack, other: CapturedStack
) -> tuple[Frame | None, Frame | None]:
    """The callers that distinguish two stacks of one call site; None if none do."""
    stacks = near_stack(one), near_stack(other)
    at = first_difference(stacks) if stacks[0][:1] == stacks[1][:1] else None
    if at is None:
        return None, None
    return caller_at(stacks[0], at), caller_at(stacks[1], at)


def first_difference(stacks: Iterable[Stack]) -> int | None:
    """The first position at which the stacks of one call site differ, if any."""
    known = [stack for stack in stacks if OTHER_SITES not in stack]
    for at in range(1, max(map(len, known), default=0)):
        frames = {
            stack[at] if at < len(stack) else None
            for stack in known
            if at < len(stack) or len(stack) < USER_FRAMES_WANTED
        }
        if len(frames) > 1:
            return at
    return None


def caller_at(stack: Stack, at: int) -> Frame | None:
    """The caller at that position; None if the stack ends before it."""
    if OTHER_SITES in stack:
        return OTHER_SITES
    return stack[at] if at < len(stack) else None


def callers(
    requests: Mapping[int, Request], known: Mapping[Frame, Iterable[Stack]]
) -> dict[int, Frame]:
    """The callers of those requests that need one to be distinguished, by number.

    ``known`` has earlier stacks by call site. They are compared as well, so that the
    caller of a request does not change when other requests end.
    """
    sites: dict[Frame, dict[tuple[int, int], list[int]]] = {}
    for number, (site, stack, submitter) in requests.items():
        key = (
            id(stack),
            id(submitter),
        )  # often shared
        sites.setdefault(site, {}).setdefault(key, []).append(number)
    found: dict[int, Frame] = {}
    for site, groups in sites.items():
        stacks: dict[Stack, list[int]] = defaultdict(list)
        own: dict[tuple[int, ...], Stack] = {}
        for numbers in groups.values():
            first = requests[numbers[0]]
            whole = first.stack + first.submitter
            frames = tuple(map(id, whole))
            if frames not in own:
                own[frames] = own_stack(site, whole)
            stacks[own[frames]] += numbers
            for caller in user_frames(first.submitter)[:1]:
                found.update(dict.fromkeys(numbers, caller))
        at = first_difference({*stacks, *known.get(site, ())})
        for stack, numbers in stacks.items():
            differs = None if at is None else caller_at(stack, at)
            if differs is not None:
                found.update(dict.fromkeys(numbers, differs))
    return found
