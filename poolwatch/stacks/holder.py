"""Who takes a connection: the thread or greenlet and, under asyncio, the task.

Neither is kept alive by us: what they carry may be the very thing that leaks. A thread
is met once, in a thread-local record that dies with it.
"""

from __future__ import annotations

import threading
from functools import partial
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import ref

from poolwatch.stacks import greenlets

if TYPE_CHECKING:
    from asyncio import Task
    from types import FrameType

__all__ = ["Holder", "PerGreenlet", "PerThread", "TaskRef", "get_ident"]
"""``get_ident`` is imported once: it may be another's before or after it is patched."""


class Holder:
    """A thread, or a greenlet that is scheduled in one, as far as it may be remembered.

    Greenlets are told apart where gevent or eventlet is loaded: see PerThread.
    """

    __slots__ = (
        "_greenlet",
        "_is_first",
        "_name",
        "_thread",
        "ident",
        "met",
        "out",
        "thread_ident",
    )

    def __init__(self, greenlet: Any = None) -> None:
        """Meet the thread that runs, and ``greenlet``, which runs in it."""
        thread = threading.current_thread()
        self.ident = get_ident()
        self.thread_ident = greenlets.thread_ident()
        """The interpreter's own ident of the thread."""
        self._name = thread.name
        self._thread = ref(thread)
        self._greenlet = None if greenlet is None else ref(greenlet)
        self._is_first = greenlet is None or greenlets.parent_of(greenlet) is None
        """It is the thread itself, or the greenlet that the thread began as."""
        if not self._is_first and not _is_named(thread, greenlet):
            self._name = greenlets.own_name(greenlet)
        self.met = monotonic()
        """When it was met: at its first checkout."""
        self.out = 0
        """Holds of this thread that are open, on all pools. A hint: threads that give
        back each other's connections write it without a lock."""

    @property
    def name(self) -> str:
        """The thread's name; its last known one once it has ended."""
        thread = self._thread()
        return self._name if thread is None or not self._is_first else thread.name

    def has_ended(self) -> bool:
        """Whether the thread or greenlet has run to its end."""
        if self._greenlet is not None:
            greenlet = self._greenlet()
            if greenlet is None or greenlets.is_dead(greenlet):
                return True
            if not self._is_first:
                return False
        thread = self._thread()
        try:
            return thread is None or not thread.is_alive()
        except RuntimeError:  # how a thread that Python did not start says it has
            return True

    def shares_its_thread(self) -> bool:
        """Whether its greenlet is one of several that take turns in their thread."""
        return self._greenlet is not None and greenlets.are_scheduled()

    def suspended_frame(self) -> FrameType | None:
        """The innermost frame of its greenlet, if that is suspended."""
        greenlet = self._greenlet() if self.shares_its_thread() else None  # type: ignore[misc]
        return None if greenlet is None else greenlets.suspended_frame(greenlet)

    def stack_key(self) -> int:
        """Tells whose stack its frames are on now: the ident of the thread it runs in,
        or the ``id()`` of its greenlet while that is suspended.
        """
        greenlet = None if self._greenlet is None else self._greenlet()
        if greenlet is None or self.suspended_frame() is None:
            return self.thread_ident
        return id(greenlet)


def _is_named(thread: Any, greenlet: Any) -> bool:
    """Whether ``threading`` knows the greenlet as a thread, and by a name."""
    dummy = type(thread).__name__ == "_DummyThread"
    return getattr(thread, "ident", None) == id(greenlet) and not dummy


_local: Any = greenlets.original("_local")


class PerThread(_local):  # type: ignore[misc]
    """The holder record of the thread that looks.

    It is always None where gevent or eventlet is loaded, whether before or after us:
    there a thread has many holders, and ``per_greenlet`` has them.
    """

    holder: Holder | None = None


class PerGreenlet:
    """The holder records of the greenlets that are alive, by ``id()``."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[ref[Any], Holder]] = {}

    def meet(self, greenlet: Any) -> Holder:
        """The record of a greenlet, made at its first checkout."""
        key = id(greenlet)
        known = self._known.get(key)
        if known is not None and known[0]() is greenlet:
            return known[1]
        forget = partial(_forget, self._known, key)
        holder = Holder(greenlet)
        self._known[key] = ref(greenlet, forget), holder
        return holder

    def name_of(self, greenlet: Any) -> str:
        """The name of a greenlet, the same in every report."""
        known = self._known.get(id(greenlet))
        if known is not None and known[0]() is greenlet:
            return known[1].name
        return greenlets.name_of(greenlet)

    def names_of_running(self) -> dict[int, str]:
        """Names of the greenlets that run and have taken connections.

        By the interpreter's ident of their thread. Under other keys are the names of
        suspended ones: see ``Holder.stack_key``.
        """
        names: dict[int, str] = {}
        for _, holder in list(self._known.values()):
            if not holder.has_ended():
                names.setdefault(holder.stack_key(), holder.name)
        return names

    def clear(self) -> None:
        """Forget all."""
        self._known.clear()


def _forget(
    known: dict[int, tuple[ref[Any], Holder]], key: int, dead: ref[Any]
) -> None:
    if key in known and known[key][0] is dead:
        del known[key]


per_greenlet = PerGreenlet()


def tell_greenlets_apart() -> None:
    """Give each greenlet a record of its own from now on, in place of its thread's.

    Threads that were met before are met again: what is on the class hides what each of
    them has.
    """
    if PerThread.holder is None:
        PerThread.holder = property(lambda _: None)  # type: ignore[assignment]


class TaskRef:
    """An asyncio task, as far as it may be remembered."""

    __slots__ = ("_name", "_task")

    def __init__(self, task: Task[Any]) -> None:
        self._name = task.get_name()
        self._task = ref(task)

    def __eq__(self, other: object) -> bool:
        """Two references to one task are equal.

        Plain weak references to one object are one, so the task is not compared: its
        class may be the application's, with an ``__eq__`` or ``__hash__`` of its own.
        """
        return isinstance(other, TaskRef) and self._task is other._task

    def __hash__(self) -> int:
        """By the task."""
        return id(self._task)

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
