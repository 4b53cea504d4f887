"""Where threads and tasks are now."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from poolwatch.stacks.capture import DEEPEST, Pairs, current_frames, pairs_of
from poolwatch.stacks.code_owner import is_ours

if TYPE_CHECKING:
    from collections.abc import Mapping

    from poolwatch.stacks.holder import Holder, TaskRef

_TRIES = 3
"""Looks at a greenlet that is suspended and resumed again and again."""


def task_stack(reference: TaskRef, thread: Pairs = ()) -> Pairs:
    """Where a task is now, innermost await first.

    ``Task.get_stack`` shows only the outermost frame; the rest hangs on
    ``cr_await`` and its kin. Of a task that is running, that is without the plain
    functions it has called: those are on the stack of its ``thread``.
    """
    task = reference.reference()
    pairs: list[tuple[Any, int]] = []
    coroutine: Any = None if task is None or task.done() else task.get_coro()
    awaited = coroutine
    while awaited is not None and len(pairs) < DEEPEST:
        frame = _first(awaited, "cr_frame", "gi_frame", "ag_frame")
        if frame is None:
            break
        if not is_ours(frame.f_code.co_filename):
            pairs.append((frame.f_code, frame.f_lasti))
        awaited = _first(awaited, "cr_await", "gi_yieldfrom", "ag_await")
    if pairs and _first(coroutine, "cr_running", "gi_running"):
        pairs += reversed(_called(thread, pairs[-1][0]))
    return tuple(reversed(pairs))


def _called(thread: Pairs, by: Any) -> Pairs:
    """The part of a thread's stack above the frame with that code."""
    for at, (code, _) in enumerate(thread):
        if code is by:
            return thread[:at]
        if code.co_name == "_run_once":  # the event loop: it runs no longer
            return ()
    return thread  # a greenlet's: its stack ends before the coroutine that runs it


def _first(thing: object, *names: str) -> Any:
    """The first attribute of those that is there and not None."""
    values = (getattr(thing, name, None) for name in names)
    return next((value for value in values if value is not None), None)


def holder_stack(holder: Holder, threads: Mapping[int, Pairs]) -> Pairs:
    """Where a holder is now, innermost frame first: nowhere once it has ended.

    ``threads`` are the stacks of all threads: of one that runs several greenlets they
    say where the one was that ran then, so that thread is read anew.
    """
    if holder.has_ended():  # then its ident may be another thread's by now
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
    """Where every thread is now, innermost frame first, by thread ident.

    The frames themselves are let go before this returns.
    """
    return {ident: pairs_of(frame) for ident, frame in current_frames().items()}
