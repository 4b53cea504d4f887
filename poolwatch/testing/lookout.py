"""Looks at a run of tests about once a second, from a thread of its own.

The thread begins with the first request for a connection, since nothing else could tell
that a statement lasts. It sleeps between two looks. It is no ``threading.Thread``: a
test may compare ``threading.enumerate()`` before and after. Like the agent's thread it
is stopped while the process forks.
"""

from __future__ import annotations

import os
from _thread import LockType, allocate_lock, start_new_thread
from collections.abc import Callable
from weakref import WeakSet

from poolwatch.runtime.guard import Guard

_PATIENCE_S = 1.0
"""How long a fork waits for the end of a look."""


class Lookout:
    """Calls ``look`` every ``period_s`` seconds."""

    def __init__(self, look: Callable[[], None], period_s: float) -> None:
        self._look = look
        self._period_s = period_s
        self._guard = Guard("the lookout for tests that stand still")
        self._pid: int | None = None
        """The process in which the thread was started."""
        self._locks: tuple[LockType, LockType] | None = None
        """Released to stop the running thread, and by that thread at its end."""
        _lookouts.add(self)

    def start(self) -> None:
        """Start the thread, once per process."""
        if self._pid != os.getpid() and not self._guard.tripped:
            self._pid = os.getpid()
            self.resume()

    def resume(self) -> None:
        """Start the thread."""
        stop, ended = allocate_lock(), allocate_lock()
        stop.acquire()
        ended.acquire()
        try:
            start_new_thread(self._run, (stop, ended))
        except RuntimeError:  # no thread can be started
            return
        self._locks = stop, ended

    def pause(self) -> bool:
        """Stop the thread; return whether it was running."""
        locks, self._locks = self._locks, None
        if locks is None:
            return False
        stop, ended = locks
        stop.release()
        ended.acquire(timeout=_PATIENCE_S)
        return True

    def forget(self) -> None:
        """In a forked child, which does not have the thread."""
        self._locks = None

    def close(self) -> None:
        """Stop for good."""
        _lookouts.discard(self)
        self._pid = os.getpid()
        self.pause()

    def _run(self, stop: LockType, ended: LockType) -> None:
        try:
            while not stop.acquire(timeout=self._period_s):
                self._look()
        except Exception as error:  # noqa: BLE001 - no error may reach the tests
            self._guard.failed(error)
        finally:
            ended.release()


_lookouts: WeakSet[Lookout] = WeakSet()
_paused: list[Lookout] = []


def _before_fork() -> None:
    _paused.extend([each for each in list(_lookouts) if each.pause()])


def _after_fork_in_parent() -> None:
    while _paused:
        _paused.pop().resume()


def _after_fork_in_child() -> None:
    _paused.clear()
    for each in list(_lookouts):
        each.forget()


os.register_at_fork(
    before=_before_fork,
    after_in_parent=_after_fork_in_parent,
    after_in_child=_after_fork_in_child,
)
