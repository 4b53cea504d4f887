"""Finds the requests for connections that began before their pool was hooked.

Such a request is a call on the stack of a thread, or in a suspended task, of the method
that lends a connection, and not made by a hook.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Iterator
from types import CodeType, FrameType
from typing import Any, NamedTuple

from poolwatch.diagnosis.references.frames import (
    awaits,
    frame_of,
    stored_in,
    variables_of,
)
from poolwatch.stacks import greenlets
from poolwatch.stacks.capture import MAX_FRAMES, current_frames
from poolwatch.stacks.code_owner import is_ours
from poolwatch.stacks.current import with_callers


class OpenRequest(NamedTuple):
    """One call that is waiting now."""

    who: Any
    """Its thread or task."""
    pool: Any
    callers: list[FrameType]
    """The frames of its callers, the nearest first."""


def of_threads(
    threads: Iterable[threading.Thread], codes: Collection[CodeType]
) -> Iterator[OpenRequest]:
    """The calls of functions with these codes on the stacks of threads."""
    frames = current_frames()
    for thread in threads:
        stack = list(with_callers(frames.get(thread.ident or 0), MAX_FRAMES))
        yield from _requests(thread, stack, codes)


def of_tasks(
    tasks: Iterable[Any], codes: Collection[CodeType]
) -> Iterator[OpenRequest]:
    """The calls of functions with these codes in tasks that are suspended."""
    for task in tasks:
        if not task.done():
            yield from _requests(task, _stack_of(task), codes)


def _stack_of(task: Any) -> list[FrameType]:
    """The frames of a suspended task, innermost first, with SQLAlchemy's greenlet."""
    stack: list[FrameType] = []
    for each in awaits(task.get_coro()):
        frame = frame_of(each)
        if frame is None or frame.f_back is not None:  # it is running
            return []
        stack.insert(0, frame)
        for stored in stored_in(each):
            if greenlets.is_greenlet(stored):
                suspended = greenlets.suspended_frame(stored)
                stack = [*with_callers(suspended, MAX_FRAMES), *stack]
    return stack


def _requests(
    who: Any, stack: list[FrameType], codes: Collection[CodeType]
) -> Iterator[OpenRequest]:
    """The outermost call among the frames, unless a hook has made it."""
    for at in range(len(stack) - 1, -1, -1):
        if stack[at].f_code in codes:
            callers = stack[at + 1 :]
            if not any(is_ours(each.f_code.co_filename) for each in callers):
                pool = variables_of(stack[at]).get(stack[at].f_code.co_varnames[0])
                yield OpenRequest(who, pool, callers)
            return
