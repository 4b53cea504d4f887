"""Which caller distinguishes the connections that were taken at one call site.

Many applications take every connection in one helper, so the helper's line says
nothing. The stacks of one call site are compared from the site outwards, by the
application's own frames: the first frame at which they differ is the caller to name.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

from poolwatch.model import OTHER_SITES, Frame
from poolwatch.stacks.capture import USER_FRAMES_WANTED
from poolwatch.stacks.compare import taking_frames

if TYPE_CHECKING:
    from poolwatch.stacks.capture import Path

Stack = tuple[Frame, ...]
"""A call site and the application's frames outside of it, innermost first."""


class Request(NamedTuple):
    """A hold or wait whose caller is to be named."""

    site: Frame
    stack: tuple[Frame, ...]
    """Innermost first, library frames included."""
    asker: tuple[Frame, ...] = ()
    """The stack that handed the work to this thread, if known."""


def own_stack(site: Frame, stack: Sequence[Frame]) -> Stack:
    """The call site and the application's frames outside of it."""
    beyond = stack[stack.index(site) + 1 :] if site in stack else stack
    own = set(taking_frames(stack, site, launcher=True))
    return (site, *[frame for frame in beyond if frame in own])


def near_stack(path: Path) -> Stack:
    """The own_stack() of a path, as far as it is exact; empty without a call site."""
    site = path.site()
    return () if site is None else own_stack(site, path.exact())


def apart(one: Path, other: Path) -> tuple[Frame | None, Frame | None]:
    """The callers that distinguish two paths of one call site, None for neither."""
    stacks = near_stack(one), near_stack(other)
    at = fork(stacks) if stacks[0][:1] == stacks[1][:1] else None
    if at is None:
        return None, None
    return caller_at(stacks[0], at), caller_at(stacks[1], at)


def fork(stacks: Iterable[Stack]) -> int | None:
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

    ``known`` has the stacks that were seen earlier, by call site. They count when the
    fork is looked for, so that a request's caller stays the same while others end.
    """
    sites: dict[Frame, dict[tuple[int, int], list[int]]] = {}
    for number, (site, stack, asker) in requests.items():
        alike = id(stack), id(asker)  # requests of one path mostly share these objects
        sites.setdefault(site, {}).setdefault(alike, []).append(number)
    named: dict[int, Frame] = {}
    for site, groups in sites.items():
        stacks: dict[Stack, list[int]] = defaultdict(list)
        own: dict[tuple[int, ...], Stack] = {}
        for numbers in groups.values():
            first = requests[numbers[0]]
            whole = first.stack + first.asker
            frames = tuple(map(id, whole))
            if frames not in own:
                own[frames] = own_stack(site, whole)
            stacks[own[frames]] += numbers
            for caller in taking_frames(first.asker)[:1]:
                named.update(dict.fromkeys(numbers, caller))
        at = fork({*stacks, *known.get(site, ())})
        for stack, numbers in stacks.items():
            differs = None if at is None else caller_at(stack, at)
            if differs is not None:
                named.update(dict.fromkeys(numbers, differs))
    return named
