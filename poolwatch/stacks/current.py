"""The current stacks of threads, tasks and greenlets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolwatch.stacks.capture import MAX_FRAMES, Pairs, current_frames, pairs_of
from poolwatch.stacks.code_owner import is_ours

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from types import FrameType

    from poolwatch.stacks.holder import Holder, TaskRef

_TRIES = 3
"""Attempts to read a greenlet that is suspended and resumed again and again."""


def task_stack(reference: TaskRef, thread: Pairs = ()) -> Pairs:
    """The current stack of a task, innermost frame first.

    ``Task.get_stack`` returns only the outermost frame; the others are found through
    ``cr_await`` and its equivalents. If the task is running, the plain functions that
    it has called are on ``thread``, the stack of its thread.
    """
    coroutine = _coroutine_of(reference)
    pairs = [(frame.f_code, frame.f_lasti) for frame in _awaited_frames(coroutine)]
    if pairs and _first(coroutine, "cr_running", "gi_running"):
        pairs += reversed(_called(thread, pairs[-1][0]))
    return tuple(reversed(pairs))


def task_frames(reference: TaskRef) -> list[FrameType]:
    """The frames of a task's coroutines, outermost first."""
    return list(_awaited_frames(_coroutine_of(reference)))


def _coroutine_of(reference: TaskRef) -> Any:
    task = reference.reference()
    return None if task is None or task.done() else task.get_coro()


def _awaited_frames(awaited: Any) -> Iterator[FrameType]:
    for _ in range(MAX_FRAMES):
        frame = _first(awaited, "cr_frame", "gi_frame", "ag_frame")
        if frame is None:
            return
        if not is_ours(frame.f_code.co_filename):
            yield frame
        awaited = _first(awaited, "cr_await", "gi_yieldfrom", "ag_await")


def holder_frames(holder: Holder) -> list[FrameType]:
    """The frames of a thread or greenlet, outermost first; empty once it has ended."""
    frame = None if holder.has_ended() else holder.suspended_frame()
    if frame is None and not holder.has_ended():
        frame = current_frames().get(holder.thread_ident)
    frames = list(with_callers(frame, MAX_FRAMES + 1))
    return frames[::-1] if len(frames) <= MAX_FRAMES else []


def with_callers(frame: FrameType | None, most: int) -> Iterator[FrameType]:
    """A frame and its callers, innermost first, up to a number of frames."""
    for _ in range(most):
        if frame is None:
            return
        yield frame
        frame = frame.f_back


def _called(thread: Pairs, by: Any) -> Pairs:
    """The part of a thread's stack above the frame with that code."""
    for at, (code, _) in enumerate(thread):
        if code is by:
            return thread[:at]
        if code.co_name == "_run_once":  # the event loop: the task is no longer running
            return ()
    return thread  # a greenlet: its stack ends before the coroutine that runs it


def _first(thing: object, *names: str) -> Any:
    """The first of these attributes that exists and is not None."""
    values = (getattr(thing, name, None) for name in names)
    return next((value for value in values if value is not None), None)


def holder_stack(holder: Holder, threads: Mapping[int, Pairs]) -> Pairs:
    """The current stack of a holder, innermost frame first; empty once it has ended.

    ``threads`` are the stacks of all threads. A thread with several greenlets is read
    again, because ``threads`` has the stack of the greenlet that was running then.
    """
    if holder.has_ended():  # its ident may belong to another thread by now
        return ()
    if not holder.shares_its_thread():
        return threads.get(holder.thread_ident, ())
    for _ in range(_TRIES):
        frame = holder.suspended_frame()
        if frame is not None:
            return pairs_of(frame)
        pairs = pairs_of(current_frames().get(holder.thread_ident))
        if holder.suspended_frame() is None:
            return pairs
    return ()


def thread_stacks() -> dict[int, Pairs]:
    """The current stack of every thread, innermost frame first, by thread ident.

    No reference to a frame is kept.
    """
    return {ident: pairs_of(frame) for ident, frame in current_frames().items()}
