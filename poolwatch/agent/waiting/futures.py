"""Finds the task, the thread or the executor that will complete a future.

Only what asyncio, concurrent.futures and anyio store in futures themselves is read.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from types import FunctionType
from typing import Any

from poolwatch.agent.waiting.threads import Threads
from poolwatch.diagnosis.references.attributes import attribute_of, class_name
from poolwatch.diagnosis.references.futures import callbacks_of, is_of_asyncio
from poolwatch.diagnosis.wait_graph import Node, thread_node

_SOURCES = {"_outer_done_callback": "inner", "_call_check_cancel": "source"}
"""Callbacks of shield() and of chained futures: the variable with the other future."""
_MAX_STEPS = 8
"""Longest chain of futures that is followed."""
_MAX_FUTURES = 1000
"""Most futures of one gather()."""

Refer = Callable[[str, Any], Node]
"""Makes a node of a task, or of the queue of an executor."""


def completed_by(
    future: Any, threads: Threads, refer: Refer, steps: int = 0
) -> tuple[Node, ...] | None:
    """The nodes of which one will complete a future; None if it is not known."""
    if not is_pending(future) or steps > _MAX_STEPS:
        return None
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is not None and issubclass(type(future), asyncio.Task):
        return (refer("task", future),)
    key = id(future)
    if key in threads.running:
        return (thread_node(threads.running[key]),)
    if key in threads.queued:
        return (refer("executor", threads.executors[threads.queued[key]]),)
    if class_name(type(future)) == "_GatheringFuture":
        return any_of(attribute_of(future, "_children"), threads, refer, steps + 1)
    sources = map(_source, callbacks_of(future))
    source = next((each for each in sources if each is not None), None)
    return completed_by(source, threads, refer, steps + 1)


def is_pending(future: Any) -> bool:
    """Whether a future is not done; False for anything else."""
    return attribute_of(future, "_state") in ("PENDING", "RUNNING")


def any_of(
    futures: Any, threads: Threads, refer: Refer, steps: int = 0
) -> tuple[Node, ...] | None:
    """The nodes that will complete one of several futures; None if one is not known."""
    if type(futures) not in (list, set, frozenset, tuple) or not futures:
        return None
    nodes: dict[Node, None] = {}
    for future in list(futures)[:_MAX_FUTURES]:
        if not is_pending(future):
            continue
        found = completed_by(future, threads, refer, steps)
        if found is None:
            return None
        nodes.update(dict.fromkeys(found))
    return tuple(nodes) or None


def has_deadline(task: Any) -> bool:
    """Whether wait_for() will cancel a task (until Python 3.11)."""
    return any(
        type(callback) is partial
        and type(callback.func) is FunctionType
        and callback.func.__name__ == "_release_waiter"
        for callback in callbacks_of(task)
    )


def _source(callback: Any) -> Any:
    """The future whose end completes the one with this callback."""
    if type(callback) is not FunctionType:
        return None
    code = callback.__code__
    name = _SOURCES.get(code.co_name)
    if name is None or name not in code.co_freevars or not is_of_asyncio(callback):
        return None
    cell = (callback.__closure__ or ())[code.co_freevars.index(name)]
    try:
        return cell.cell_contents
    except ValueError:
        return None
