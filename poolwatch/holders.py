"""Who takes a connection: the thread and, under asyncio, the task.

Neither is kept alive by us: what they carry may be the very thing that leaks. A thread
is met once, in a thread-local record that dies with it.
"""

from __future__ import annotations

import threading
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

if TYPE_CHECKING:
    from asyncio import Task


class Holder:
    """A thread, as far as it may be remembered."""

    __slots__ = ("_name", "_thread", "ident", "met", "out")

    def __init__(self) -> None:
        thread = threading.current_thread()
        self.ident = threading.get_ident()
        self._name = thread.name
        self._thread = ref(thread)
        self.met = monotonic()
        """When it was met: at its first checkout."""
        self.out = 0
        """Holds of this thread that are open, on all pools. A hint: threads that give
        back each other's connections write it without a lock."""

    @property
    def name(self) -> str:
        """The thread's name; its last known one once it has ended."""
        thread = self._thread()
        return self._name if thread is None else thread.name

    def has_ended(self) -> bool:
        """Whether the thread has run to its end."""
        thread = self._thread()
        try:
            return thread is None or not thread.is_alive()
        except RuntimeError:  # how a thread that Python did not start says it has
            return True


class PerThread(threading.local):
    """The holder record of the thread that looks."""

    holder: Holder | None = None


class TaskRef:
    """An asyncio task, as far as it may be remembered."""

    __slots__ = ("_hash", "_name", "_task")

    def __init__(self, task: Task[Any]) -> None:
        self._name = task.get_name()
        self._task = ref(task)
        self._hash = hash(self._task)

    def __eq__(self, other: object) -> bool:
        """Two references to one task are equal, as long as it lives."""
        return isinstance(other, TaskRef) and self._task == other._task

    def __hash__(self) -> int:
        """By the task."""
        return self._hash

    @property
    def reference(self) -> ref[Task[Any]]:
        """A weak reference to it."""
        return self._task

    def is_of(self, task: Task[Any] | None) -> bool:
        """Whether this refers to that very task."""
        return self._task() is task

    @property
    def name(self) -> str:
        """The task's name; the one it had when it took the hold once it is gone."""
        task = self._task()
        return self._name if task is None else task.get_name()

    def has_ended(self) -> bool:
        """Whether the task is done, or gone altogether."""
        task = self._task()
        return task is None or task.done()
