"""The threads of the process: which event loop or work item each one runs.

Frames are read, never run. A frame whose trace function is running is not read, see
:mod:`poolwatch.diagnosis.references.frames`.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterator
from itertools import islice
from types import CodeType, FrameType
from typing import Any

from poolwatch.diagnosis.references.attributes import attribute_of
from poolwatch.diagnosis.references.frames import traces, variables_of
from poolwatch.diagnosis.references.futures import future_of_work_item
from poolwatch.diagnosis.references.places import MAX_FRAMES
from poolwatch.stacks.capture import current_frames
from poolwatch.stacks.work_items import is_in, runs_work_item

_ROLES = {
    ("run_forever", "asyncio/base_events.py"): "loop",
    ("run", "asyncio/runners.py"): "runner",
    ("_worker", "concurrent/futures/thread.py"): "worker",
}
"""Functions that have an event loop, or the queue of an executor, in a variable."""
_MAX_ITEMS = 20_000
"""Most queued work items of an executor that are read."""


class Executor:
    """The workers of one ThreadPoolExecutor, and its queue."""

    def __init__(self, queue: Any, weak_ref: Any) -> None:
        self.queue = queue
        self.workers: list[int] = []
        executor = weak_ref()
        size = attribute_of(executor, "_max_workers") if executor is not None else 0
        self.size: int = size if type(size) is int else 0

    def is_complete(self) -> bool:
        """Whether it starts no further worker for what is queued."""
        return 0 < self.size <= len(self.workers)


class Threads:
    """The frames of all threads at one moment. Dropped within one reading."""

    def __init__(self) -> None:
        self.frames = current_frames()
        self.loops: dict[int, int] = {}
        """Idents of the threads that run event loops, by the id of the loop."""
        self.running: dict[int, int] = {}
        """Idents of the threads that complete futures, by the id of the future."""
        self.executors: dict[int, Executor] = {}
        """By the id of the queue."""
        self.queued: dict[int, int] = {}
        """Ids of the queues in which work items wait, by the id of the future."""
        roles: dict[int, tuple[CodeType, str]] = {}
        for ident, innermost in self.frames.items():
            for frame, above in with_callee(innermost, MAX_FRAMES):
                code = frame.f_code
                if id(code) not in roles:
                    roles[id(code)] = code, _role(code)
                role = roles[id(code)][1]
                if role:
                    self._note(role, variables(frame, above), ident)
        for key, executor in self.executors.items():
            for future in _futures_in(executor.queue):
                self.queued[id(future)] = key

    def _note(self, role: str, known: dict[str, Any], ident: int) -> None:
        owner = known.get("self")
        if role == "loop":
            self.loops[id(owner)] = ident
        elif role == "runner":  # of a loop without Python frames, as uvloop's
            self.loops.setdefault(id(attribute_of(owner, "_loop")), ident)
        elif role == "worker" and "work_queue" in known:
            queue = known["work_queue"]
            if id(queue) not in self.executors:
                weak_ref = known.get("executor_reference")
                self.executors[id(queue)] = Executor(queue, weak_ref)
            self.executors[id(queue)].workers.append(ident)
        elif role == "item" and (future := future_of_work_item(known)) is not None:
            self.running[id(future)] = ident

    def forget(self) -> None:
        """Drop the frames: this thread's own makes a cycle."""
        self.frames.clear()


def with_callee(
    frame: FrameType | None, most: int
) -> Iterator[tuple[FrameType, FrameType | None]]:
    """Yield each frame of a stack, the innermost first, with the one it has called."""
    above = None
    for _ in range(most):
        if frame is None:
            return
        yield frame, above
        above, frame = frame, frame.f_back


def variables(frame: FrameType, above: FrameType | None = None) -> dict[str, Any]:
    """The variables of a frame that has called ``above``; empty while it is traced."""
    if sys.version_info < (3, 13) and above is not None:
        if frame.f_trace is not None or traces(above):
            return {}
    return variables_of(frame)


def _role(code: CodeType) -> str:
    for (name, file), role in _ROLES.items():
        if code.co_name == name and is_in(code.co_filename, file):
            return role
    return "item" if runs_work_item(code) else ""


def _futures_in(queue: Any) -> Iterator[Any]:
    """The futures of the work items in a queue."""
    for held in islice(gc.get_referents(queue), _MAX_ITEMS):
        items = list(islice(held, _MAX_ITEMS)) if type(held) is list else [held]
        for item in items:
            if type(item).__name__ == "_WorkItem":
                yield attribute_of(item, "future")
