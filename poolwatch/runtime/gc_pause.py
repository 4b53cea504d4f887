"""Pauses the garbage collector for one call, for one of three reasons.

- A deadlock: CPython holds an internal lock while it lists the frames or exceptions of
  all threads, and a collection may run a finalizer that needs the lock (cpython
  gh-106883, fixed there in the same way).
- A long pause: a snapshot of a thousand holds makes tens of thousands of objects,
  enough to start a full collection. That stops every thread of the application, for
  30 ms in a small process, for seconds in a large one.
- Waste: loading our modules makes thousands of objects that stay.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class _Pause:
    """Counts the calls that need the pause. The last one enables the collector again,
    if the first one found it enabled.
    """

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        self.lock = threading.Lock()
        self.wanted = 0
        self.was_on = False

    def begin(self) -> None:
        with self.lock:
            if not self.wanted:
                self.was_on = gc.isenabled()
                gc.disable()
            self.wanted += 1

    def end(self) -> None:
        with self.lock:
            self.wanted -= 1
            if not self.wanted and self.was_on:
                gc.enable()

    def after_fork_in_child(self) -> None:
        """Forget the calls: their threads are the parent's."""
        if self.wanted and self.was_on:
            gc.enable()
        self.forget()


_pause = _Pause()
os.register_at_fork(after_in_child=_pause.after_fork_in_child)


def undisturbed(call: Callable[[], T]) -> T:
    """Make a call without a garbage collection during it."""
    _pause.begin()
    try:
        return call()
    finally:
        _pause.end()
