"""The submitter of a work item: the code that waits for the result of a worker thread.

With ``sync_to_async``, ``to_thread`` and thread pools, a worker's stack does not show
the view that submitted the work: the view waits in another thread or task. The future
of the work item leads to it. A work item may store its connection and end before the
worker runs the next one. Therefore the call that checked the connection out must still
be running, and the work item must be the one in which the hold was first seen.

No application code is called: only frames, and futures of the standard library, asgiref
and anyio, are read.
"""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Iterable, Mapping
from concurrent.futures import Future
from functools import partial
from itertools import pairwise
from types import BuiltinMethodType, CodeType, FrameType, FunctionType, MethodType
from typing import Any, NamedTuple
from weakref import ref

from poolwatch.diagnosis.references.frames import variables_of
from poolwatch.diagnosis.references.futures import (
    callbacks_of,
    future_of_work_item,
    is_of_asyncio,
)
from poolwatch.ledger.checkout import Checkout
from poolwatch.model import Frame
from poolwatch.runtime.guard import Guard
from poolwatch.stacks import greenlets
from poolwatch.stacks.capture import (
    CapturedStack,
    Pairs,
    current_frames,
    pairs_of,
    resolve,
)
from poolwatch.stacks.compare import user_frames
from poolwatch.stacks.current import task_stack, with_callers
from poolwatch.stacks.holder import TaskRef
from poolwatch.stacks.work_items import is_in, work_item_at

_FUTURE_WAIT_FILE = "concurrent/futures/_base.py"
_WAKEUP_METHODS = ("task_wakeup", "__wakeup", "_on_task_done")
"""Methods of tasks and task groups that asyncio calls when a future is done."""
_SLEEP_FILE = "threading.py"
"""A thread that waits for a future sleeps in this file. Any other frame there may be a
trace function's; then the waiting frame must not be read (see references.frames)."""
_MAX_FRAMES = 6
"""Innermost frames of a waiting thread among which its future is searched."""
_MAX_TASKS = 3
"""Longest chain of waiting tasks that leads to the application's code."""
_PAUSES = (0.0001, 0.0005, 0.002)
"""Seconds in which a worker thread lets the code run that has submitted its work item,
until that code waits for it."""
_MAX_OBJECTS = 200
"""Objects that are visited per future."""


class Submitter(NamedTuple):
    """The code that waits for the result of a worker thread."""

    stack: tuple[Frame, ...]
    task: str | None


NO_SUBMITTER = Submitter((), None)


_guard = Guard("the search for the code that waits for worker threads")


def submitter_of(
    frame: FrameType | None, patient: bool
) -> tuple[TaskRef | None, Pairs]:
    """The task that waits for the work item of the running thread, and its stack.

    ``frame`` is one of that thread. If no code of the application is on the stack of
    the task, the stack of the task that waits for it follows, and so on. None if no
    such task is known.

    A worker may begin before the task has come as far as to wait for it. With
    ``patient``, this thread lets others run for a moment then.
    """
    try:
        worker = pairs_of(frame)
        at = None if _guard.tripped else work_item_at(worker)
        future = None if at is None else _future_in(frame, worker[at][0])
        if future is None:
            return None, ()
        found = _waiting_tasks(future)
        for pause in _PAUSES if patient and not greenlets.are_scheduled() else ():
            if found[0] is None:
                time.sleep(pause)
                found = _waiting_tasks(future)
    except Exception as error:  # noqa: BLE001 - the application must get its connection
        _guard.failed(error)
        return None, ()
    return found


def _waiting_tasks(future: Any) -> tuple[TaskRef | None, Pairs]:
    """The last task of the chain that waits for a future, and the stack of all."""
    task: TaskRef | None = None
    stack: Pairs = ()
    for _ in range(_MAX_TASKS):
        future = _waiting_task(future)
        if future is None:
            break
        task = TaskRef(future)
        stack += task_stack(task)
        if user_frames(resolve(stack)):
            break
    return task, stack


class Submitters:
    """Finds submitters; remembers the work item in which each hold was first seen."""

    def __init__(self) -> None:
        self._items: dict[int, ref[Any]] = {}
        """By hold number: the future of the work item."""

    def find(self, holds: Iterable[Checkout]) -> dict[int, Submitter]:
        """Return the submitters of holds and waits, by number."""
        newest: dict[tuple[CapturedStack, int], Checkout] = {}
        numbers = set()
        for hold in holds:
            numbers.add(hold.number)
            if hold.task is None:  # a worker runs one item at a time
                newest[hold.stack, hold.holder.ident] = hold
        items = list(self._items.items())  # one atomic copy: another thread may be here
        self._items = {number: item for number, item in items if number in numbers}
        stacks = {stack for stack, _ in newest}
        in_workers = {
            stack for stack in stacks if work_item_at(stack.pairs()) is not None
        }
        workers = [hold for (stack, _), hold in newest.items() if stack in in_workers]
        if not workers:
            return {}
        frames = current_frames()
        try:
            found = {hold.number: self._find(hold, frames) for hold in workers}
        finally:
            frames.clear()  # includes this frame: a reference cycle
        return {number: each for number, each in found.items() if each is not None}

    def _find(
        self, hold: Checkout, frames: Mapping[int, FrameType]
    ) -> Submitter | None:
        future = _future_of(frames, hold)
        if future is None:
            return None
        known = self._items.setdefault(hold.number, ref(future))
        submitter = _submitter(future, frames) if known() is future else None
        return submitter if _future_of(frames, hold) is future else None


def _future_of(frames: Mapping[int, FrameType], hold: Checkout) -> Any:
    """Return the future of the work item that made a checkout, if it still runs."""
    frame = frames.get(hold.holder.ident)
    now = pairs_of(frame)
    at = work_item_at(now)
    if (
        at is None
        or hold.holder.has_ended()
        or not _still_running(hold.stack.pairs(), now[:at])
    ):
        return None
    return _future_in(frame, now[at][0])


def _future_in(frame: FrameType | None, runner: CodeType) -> Any:
    """Return the future of the work item that ``runner`` runs on this stack."""
    while frame is not None and frame.f_code is not runner:
        frame = frame.f_back
    if frame is None:
        return None
    return future_of_work_item(variables_of(frame))


def _still_running(checkout: Pairs, now: Pairs) -> bool:
    """Whether the call that made a checkout is still running, inside the work item.

    Stacks are compared from the outermost frame: in the first frame that differs,
    execution must have advanced within the same function.
    """
    at = work_item_at(checkout)
    if at is None:
        return False
    for before, after in zip(reversed(checkout[:at]), reversed(now), strict=False):
        if before != after:
            return before[0] is after[0] and after[1] > before[1]
    return at <= len(now)


def _submitter(future: Any, frames: Mapping[int, FrameType]) -> Submitter | None:
    stack: tuple[Frame, ...] = ()
    name = None
    for _ in range(_MAX_TASKS):
        task = _waiting_task(future)
        if task is None:
            break
        reference = TaskRef(task)
        stack += resolve(task_stack(reference))
        name, future = reference.name, task
        if user_frames(stack):
            return Submitter(stack, name)
    else:
        return None
    waiting = resolve(_waiting_stack(future, frames)) if name is None else ()
    return Submitter(stack + waiting, name) if stack or waiting else None


def _waiting_task(future: Any) -> Any:
    """Return the task that waits for a future; None unless there is exactly one."""
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is None:
        return None
    tasks, seen, queue = [], {id(future)}, callbacks_of(future)
    while queue and len(seen) < _MAX_OBJECTS:
        each = queue.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if issubclass(type(each), asyncio.Task):
            tasks.append(each)
        elif issubclass(type(each), asyncio.Future | Future):
            queue += callbacks_of(each)
        elif type(each) is asyncio.TaskGroup:
            queue.append(object.__getattribute__(each, "_parent_task"))
        else:
            queue += _callback_targets(each)
    return tasks[0] if len(tasks) == 1 else None


def _callback_targets(callback: Any) -> Iterable[Any]:
    """Return what asyncio's own callbacks lead to; others may refer to idle tasks."""
    kind = type(callback)
    if kind in (BuiltinMethodType, MethodType):
        function = callback.__func__ if kind is MethodType else callback
        if type(function) not in (BuiltinMethodType, FunctionType):
            return ()  # an application's object may compute its name
        return (callback.__self__,) if function.__name__ in _WAKEUP_METHODS else ()
    if kind is partial:
        return callback.args if is_of_asyncio(callback.func) else ()
    if kind is FunctionType:
        cells = callback.__closure__ or () if is_of_asyncio(callback) else ()
        contents = [each for cell in cells for each in gc.get_referents(cell)]
        return [
            each for each in contents if type(each) is not list
        ]  # gather()'s other futures
    return ()


def _waiting_stack(future: Any, frames: Mapping[int, FrameType]) -> Pairs:
    """Return the stack of the thread that waits for a future, from the waiting call."""
    for each in frames.values():
        for above, frame in pairwise(with_callers(each, _MAX_FRAMES)):
            if not is_in(frame.f_code.co_filename, _FUTURE_WAIT_FILE):
                continue
            if not is_in(above.f_code.co_filename, _SLEEP_FILE):
                continue
            variables = variables_of(frame)
            futures: Any = variables.get("fs")
            others = list(futures) if type(futures) in (list, set, frozenset) else []
            if any(one is future for one in (variables.get("self"), *others)):
                return pairs_of(frame)
    return ()
