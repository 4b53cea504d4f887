"""The submitter of a work item: the code that waits for what a worker thread does.

Behind ``sync_to_async``, ``to_thread`` and thread pools the stack of a worker ends in
the worker: the submitting view is in another thread or task, where it waits for the
result. It is found by the future of the work item. A work item may have stored its
connection and ended, and the worker has gone on: so the call that took the connection
must still be running, and the work item must be the one that was seen with it before.

Nothing of the application is called: only frames and futures of the standard library,
asgiref and anyio are read.
"""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future
from functools import partial
from itertools import pairwise
from types import BuiltinMethodType, FrameType, FunctionType, MethodType
from typing import Any, NamedTuple
from weakref import ref

from poolwatch.diagnosis.references.follow import local_variables
from poolwatch.ledger.checkout import Checkout
from poolwatch.model import Frame
from poolwatch.stacks.capture import Pairs, Path, current_frames, pairs_of, resolve
from poolwatch.stacks.compare import taking_frames
from poolwatch.stacks.current import task_stack
from poolwatch.stacks.holder import TaskRef

_WORKERS = (
    "concurrent/futures/thread.py",
    "asgiref/current_thread_executor.py",
    "anyio/_backends/_asyncio.py",
)
"""Where a worker's ``run`` has its work item (``self``), or its ``future``."""
_WAITING = "concurrent/futures/_base.py"
_ASYNCIO = f"{os.sep}asyncio{os.sep}"
_WAKES = ("task_wakeup", "__wakeup", "_on_task_done")
"""Methods of tasks and task groups that are called when a future is done."""
_SLEEPS = "threading.py"
"""Called by a thread that waits for a future. Any other file above its frame may be a
trace function: then the frame must not be read (see diagnosis.references.follow)."""
_INNERMOST = 6
"""Frames of a thread that waits for a future, until the one with the future."""
_FARTHEST = 3
"""Tasks that wait one for the other, until one is in the application's code."""
_MOST = 200
"""Objects that are visited from one future on."""


class Submitter(NamedTuple):
    """The code that waits for the work of a thread."""

    stack: tuple[Frame, ...]
    task: str | None


NO_SUBMITTER = Submitter((), None)


class Submitters:
    """Finds submitters; remembers which work item each hold was seen with."""

    def __init__(self) -> None:
        self._items: dict[int, ref[Any]] = {}
        """The future of its work item, by the number of a hold."""

    def of(self, holds: Iterable[Checkout]) -> dict[int, Submitter]:
        """The submitters of holds and waits, by number."""
        newest: dict[tuple[Path, int], Checkout] = {}
        numbers = set()
        for hold in holds:
            numbers.add(hold.number)
            if hold.task is None:  # a worker of one function takes one after the other
                newest[hold.path, hold.holder.ident] = hold
        items = list(self._items.items())  # at once: another thread may be here
        self._items = {number: item for number, item in items if number in numbers}
        paths = {path for path, _ in newest}
        in_workers = {path for path in paths if _item_at(path.pairs()) is not None}
        workers = [hold for (path, _), hold in newest.items() if path in in_workers]
        if not workers:
            return {}
        frames = current_frames()
        try:
            found = {hold.number: self._of(hold, frames) for hold in workers}
        finally:
            frames.clear()  # our own is among them: it would keep itself alive
        return {number: each for number, each in found.items() if each is not None}

    def _of(self, hold: Checkout, frames: Mapping[int, FrameType]) -> Submitter | None:
        future = _future_of(frames, hold)
        if future is None:
            return None
        known = self._items.setdefault(hold.number, ref(future))
        submitter = _submitter(future, frames) if known() is future else None
        return submitter if _future_of(frames, hold) is future else None


def _item_at(stack: Pairs) -> int | None:
    """The position in a stack of the frame that runs a work item."""
    for at, (code, _) in enumerate(stack):
        if code.co_name == "run" and _is_in(code.co_filename, *_WORKERS):
            return at
    return None


def _is_in(file: str, *endings: str) -> bool:
    return file.replace("\\", "/").endswith(endings)


def _future_of(frames: Mapping[int, FrameType], hold: Checkout) -> Any:
    """The future of the work item that took a hold, if that is what runs now."""
    frame = frames.get(hold.holder.ident)
    now = pairs_of(frame)
    at = _item_at(now)
    if (
        at is None
        or hold.holder.has_ended()
        or not _goes_on(hold.path.pairs(), now[:at])
    ):
        return None
    while frame is not None and frame.f_code is not now[at][0]:
        frame = frame.f_back
    if frame is None:
        return None
    variables = _variables(frame)
    item = variables.get("self")
    if type(item).__name__ == "_WorkItem":
        return object.__getattribute__(item, "__dict__").get("future")
    return variables.get("future")


def _variables(frame: FrameType) -> dict[str, Any]:
    return dict(zip(*local_variables(frame), strict=True))


def _goes_on(taken: Pairs, now: Pairs) -> bool:
    """Whether the call that took a hold is still running, inside the work item.

    Compared from the outside in: the first frame that differs has gone on.
    """
    at = _item_at(taken)
    if at is None:
        return False
    for before, after in zip(reversed(taken[:at]), reversed(now), strict=False):
        if before != after:
            return before[0] is after[0] and after[1] > before[1]
    return at <= len(now)


def _submitter(future: Any, frames: Mapping[int, FrameType]) -> Submitter | None:
    stack: tuple[Frame, ...] = ()
    name = None
    for _ in range(_FARTHEST):
        task = _awaiting(future)
        if task is None:
            break
        reference = TaskRef(task)
        stack += resolve(task_stack(reference))
        name, future = reference.name, task
        if taking_frames(stack):
            return Submitter(stack, name)
    else:
        return None
    waiting = resolve(_waiting(future, frames)) if name is None else ()
    return Submitter(stack + waiting, name) if stack or waiting else None


def _awaiting(future: Any) -> Any:
    """The one task that waits for a future, by its callbacks; None if none does."""
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is None:
        return None
    tasks, seen, queue = [], {id(future)}, list(_callbacks(future))
    while queue and len(seen) < _MOST:
        each = queue.pop()
        if id(each) in seen:
            continue
        seen.add(id(each))
        if issubclass(type(each), asyncio.Task):
            tasks.append(each)
        elif issubclass(type(each), asyncio.Future | Future):
            queue += _callbacks(each)
        elif type(each) is asyncio.TaskGroup:
            queue.append(object.__getattribute__(each, "_parent_task"))
        else:
            queue += _leads_to(each)
    return tasks[0] if len(tasks) == 1 else None


def _leads_to(callback: Any) -> Iterable[Any]:
    """The objects behind asyncio's own callbacks; others may refer to idle tasks."""
    kind = type(callback)
    if kind in (BuiltinMethodType, MethodType):
        named = callback.__func__ if kind is MethodType else callback
        if type(named) not in (BuiltinMethodType, FunctionType):
            return ()  # an object of the application's may have no name, or make one
        return (callback.__self__,) if named.__name__ in _WAKES else ()
    if kind is partial:
        return callback.args if _is_asyncios(callback.func) else ()
    if kind is FunctionType:
        cells = callback.__closure__ or () if _is_asyncios(callback) else ()
        held = [each for cell in cells for each in gc.get_referents(cell)]
        return [each for each in held if type(each) is not list]  # gather()'s others
    return gc.get_referents(callback) if kind in (list, tuple) else ()


def _is_asyncios(function: Any) -> bool:
    kind = type(function)
    return kind is FunctionType and _ASYNCIO in function.__code__.co_filename


def _callbacks(future: Any) -> Iterable[Any]:
    if issubclass(type(future), Future):
        return tuple(object.__getattribute__(future, "_done_callbacks"))
    return gc.get_referents(future)


def _waiting(future: Any, frames: Mapping[int, FrameType]) -> Pairs:
    """The stack of the thread that waits for a future, from the call on."""
    for each in frames.values():
        for above, frame in pairwise(_innermost(each)):
            if not _is_in(frame.f_code.co_filename, _WAITING):
                continue
            if not _is_in(above.f_code.co_filename, _SLEEPS):
                continue
            variables = _variables(frame)
            several: Any = variables.get("fs")
            known = list(several) if type(several) in (list, set, frozenset) else []
            if any(one is future for one in (variables.get("self"), *known)):
                return pairs_of(frame)
    return ()


def _innermost(frame: FrameType | None) -> Iterator[FrameType]:
    for _ in range(_INNERMOST):
        if frame is None:
            return
        yield frame
        frame = frame.f_back
