"""Holders: the thread or greenlet that checks out a connection, and the asyncio task.

poolwatch keeps none of them alive, because they may refer to the connection that leaks.
There is one thread-local record per thread, which is dropped when the thread ends.
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

__all__ = [
    "Holder",
    "OtherThread",
    "PerGreenlet",
    "PerThread",
    "TaskRef",
    "UnknownHolder",
    "get_ident",
]
"""``get_ident`` is imported once: gevent may replace it, and idents would not match."""


class Holder:
    """The record of a thread, or of a greenlet in it, which it does not keep alive.

    Greenlets have records of their own if gevent or eventlet is loaded: see PerThread.
    """

    __slots__ = (
        "_greenlet",
        "_is_first",
        "_name",
        "_thread",
        "first_seen",
        "hold_count",
        "ident",
        "request",
        "thread_ident",
    )

    def __init__(self, greenlet: Any = None) -> None:
        """Record the running thread, and ``greenlet``, which runs in it."""
        thread = threading.current_thread()
        self.ident = get_ident()
        self.thread_ident = greenlets.thread_ident()
        """The interpreter's own ident of the thread."""
        self._name = thread.name
        self._thread = ref(thread)
        self._greenlet = None if greenlet is None else ref(greenlet)
        self._is_first = greenlet is None or greenlets.parent_of(greenlet) is None
        """Whether it is the thread itself, or the first greenlet of the thread."""
        if not self._is_first and not _is_named(thread, greenlet):
            self._name = greenlets.name_of_running(greenlet)
        self.first_seen = monotonic()
        """Time of its first checkout."""
        self.hold_count = 0
        """Number of its open holds, on all pools. Approximate: threads that return
        each other's connections write it without a lock."""
        self.request: Any = None
        """The FrameworkWork of the request that it serves, if an adapter knows it."""

    @property
    def name(self) -> str:
        """The thread's name; its last known one once it has ended."""
        thread = self._thread()
        return self._name if thread is None or not self._is_first else thread.name

    def has_ended(self) -> bool:
        """Whether the thread or greenlet has run to its end."""
        if self._greenlet is not None:
            kept = greenlets.kept(self._greenlet)
            if kept[0] is None or greenlets.is_dead(kept[0]):
                return True
            if not self._is_first:
                return False
        thread = self._thread()
        try:
            return thread is None or not (
                thread.is_alive() or _ends_the_process(thread)
            )
        except RuntimeError:  # an ended thread that Python did not start
            return True

    def shares_its_thread(self) -> bool:
        """Whether it is one of several greenlets that take turns in their thread."""
        return self._greenlet is not None and greenlets.are_scheduled()

    def suspended_frame(self) -> FrameType | None:
        """The innermost frame of its greenlet, if it is suspended."""
        if self._greenlet is None or not greenlets.are_scheduled():
            return None
        kept = greenlets.kept(self._greenlet)
        return None if kept[0] is None else greenlets.suspended_frame(kept[0])

    def stack_key(self) -> int:
        """The key of its current stack.

        This is the ident of its thread, or ``id()`` of its greenlet while suspended.
        """
        if self._greenlet is None or self.suspended_frame() is None:
            return self.thread_ident
        kept = greenlets.kept(self._greenlet)
        return self.thread_ident if kept[0] is None else id(kept[0])


def _ends_the_process(thread: threading.Thread) -> bool:
    """Whether it is the main thread, at exit: ended, and no other one keeps Python."""
    return thread is threading.main_thread() and all(
        each.daemon or each is thread for each in threading.enumerate()
    )


class OtherThread(Holder):
    """The record of another thread than the running one, without greenlets."""

    __slots__ = ()

    def __init__(self, thread: threading.Thread) -> None:
        super().__init__()
        self.ident = self.thread_ident = thread.ident or -1
        self._name, self._thread = thread.name, ref(thread)


class UnknownHolder(Holder):
    """Stands for a holder that nobody has seen: it never counts as ended."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__()
        self.ident = self.thread_ident = -1
        self._name, self._is_first = "unknown", False

    def has_ended(self) -> bool:
        """Whether it has ended: unknown, so it has not."""
        return False


def _is_named(thread: Any, greenlet: Any) -> bool:
    """Whether ``threading`` knows the greenlet as a thread with a name."""
    dummy = type(thread).__name__ == "_DummyThread"
    return getattr(thread, "ident", None) == id(greenlet) and not dummy


_local: Any = greenlets.original("_local")


class PerThread(_local):  # type: ignore[misc]
    """The Holder of the current thread.

    Always None if gevent or eventlet is loaded, before or after poolwatch: then a
    thread has many holders, which are in ``per_greenlet``.
    """

    holder: Holder | None = None


class PerGreenlet:
    """The Holders of living greenlets, by ``id()``."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[ref[Any], Holder]] = {}

    def holder_of(self, greenlet: Any) -> Holder:
        """The Holder of a greenlet, made at its first checkout."""
        key = id(greenlet)
        known = self._known.get(key)
        if known is not None and known[0]() is greenlet:
            return known[1]
        forget = partial(_forget, self._known, key)
        holder = Holder(greenlet)
        self._known[key] = ref(greenlet, forget), holder
        return holder

    def name_of(self, greenlet: Any) -> str:
        """The name of a greenlet, which stays the same during the greenlet's life."""
        known = self._known.get(id(greenlet))
        if known is not None and known[0]() is greenlet:
            return known[1].name
        return greenlets.name_of(greenlet)

    def names_of_running(self) -> dict[int, str]:
        """Names of living greenlets that have checked out connections, by
        Holder.stack_key().

        The key of a running one is the interpreter's ident of its thread.
        """
        names: dict[int, str] = {}
        for _, holder in list(self._known.values()):
            if not holder.has_ended():
                names.setdefault(holder.stack_key(), holder.name)
        return names

    def clear(self) -> None:
        """Forget all Holders."""
        self._known.clear()


def _forget(
    known: dict[int, tuple[ref[Any], Holder]], key: int, dead: ref[Any]
) -> None:
    if key in known and known[key][0] is dead:
        del known[key]


per_greenlet = PerGreenlet()


def tell_greenlets_apart() -> None:
    """Give each greenlet its own Holder from now on, in place of its thread's.

    The property on the class hides the existing Holders of threads.
    """
    if PerThread.holder is None:
        PerThread.holder = property(lambda _: None)  # type: ignore[assignment]


class TaskRef:
    """The record of an asyncio task, which it does not keep alive."""

    __slots__ = ("_name", "_task")

    def __init__(self, task: Task[Any]) -> None:
        self._name = task.get_name()
        self._task = ref(task)

    def __eq__(self, other: object) -> bool:
        """References to the same task are equal.

        All plain weak references to an object are one object, so the tasks themselves
        are not compared: their class may be the application's, with its own ``__eq__``.
        """
        return isinstance(other, TaskRef) and self._task is other._task

    def __hash__(self) -> int:
        """Hash by the task's identity."""
        return id(self._task)

    @property
    def reference(self) -> ref[Task[Any]]:
        """The weak reference to the task."""
        return self._task

    def is_of(self, task: Task[Any] | None) -> bool:
        """Whether this refers to ``task``."""
        return self._task() is task

    @property
    def name(self) -> str:
        """The task's name; once it is gone, its name at the checkout."""
        task = self._task()
        return self._name if task is None else task.get_name()

    def task(self) -> Task[Any] | None:
        """The task; None once it is gone."""
        return self._task()

    def has_ended(self) -> bool:
        """Whether the task is done or gone."""
        task = self._task()
        return task is None or task.done()
