"""Work items: the calls that other code has submitted to a worker thread.

The stack of a worker thread ends at the function that runs the work item. If no code of
the application is on it (``await Order.objects.acount()`` calls nothing but Django in
the worker), the call site is in the code that waits for the work item.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import CodeType, FrameType
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from poolwatch.stacks.holder import TaskRef

_WORKER_FILES = (
    "concurrent/futures/thread.py",
    "asgiref/current_thread_executor.py",
    "anyio/_backends/_asyncio.py",
)
_RUNNERS = ("_WorkItem.run", "WorkerThread.run")
"""Functions there that have the work item as ``self``, or its ``future``. Between this
one and the work item is ``WorkerContext.run``, from Python 3.14 on.
"""

Pairs = Sequence[tuple[CodeType, int]]
Submitter = Callable[[FrameType | None, bool], "tuple[TaskRef | None, Pairs]"]
"""Returns the task that waits for the running worker thread, by a frame of that thread,
and the stack of the task; None and an empty stack if there is none. The second argument
allows a moment's wait for the task.
"""


class PastFrame(NamedTuple):
    """The captured part of a frame."""

    f_code: CodeType
    f_lasti: int


def no_submitter(_: FrameType | None, __: bool) -> tuple[TaskRef | None, Pairs]:
    """A submitter that is never known."""
    return None, ()


def is_in(file: str, *endings: str) -> bool:
    """Whether the path of a file has one of these endings."""
    return file.replace("\\", "/").endswith(endings)


def runs_work_item(code: CodeType) -> bool:
    """Whether it is the function that runs the work items of a worker thread."""
    return code.co_qualname in _RUNNERS and is_in(code.co_filename, *_WORKER_FILES)


def work_item_at(stack: Pairs) -> int | None:
    """The index of the innermost frame that runs a work item; None without one."""
    for at, (code, _) in enumerate(stack):
        if runs_work_item(code):
            return at
    return None


def across_threads(worker: Pairs, submitter: Pairs) -> list[PastFrame]:
    """The frames of a work item, followed by those of the code that waits for it."""
    at = work_item_at(worker)
    item = () if at is None else worker[: at + 1]
    return [PastFrame(*pair) for pair in (*item, *submitter)]
