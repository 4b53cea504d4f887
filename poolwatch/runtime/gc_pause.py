"""Pauses the garbage collector for one call, for one of three reasons, or runs it.

- A deadlock: CPython holds an internal lock while it lists the frames or exceptions of
  all threads, and a collection may run a finalizer that needs the lock (cpython
  gh-106883, fixed there in the same way).
- A long pause: a snapshot of a thousand holds creates tens of thousands of objects,
  enough to trigger a full collection. That stops every thread of the application, for
  30 ms in a small process, for seconds in a large one.
- Waste: importing our modules creates thousands of long-lived objects.
"""

from __future__ import annotations

import gc
import os
import threading
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class _Pause:
    """Counts the calls in progress that need the pause; the last one ends it.

    A threshold of 0 pauses automatic collections. gc.disable() would do so, too, but
    gc.enable() at the end would undo what the application has called in the meantime.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.lock = threading.Lock()
        self.active_calls = 0
        self.thresholds = (0, 0, 0)

    def begin(self) -> None:
        with self.lock:
            if not self.active_calls:
                self.thresholds = gc.get_threshold()
                gc.set_threshold(0, *self.thresholds[1:])
            self.active_calls += 1

    def end(self) -> None:
        with self.lock:
            self.active_calls -= 1
            if not self.active_calls:
                self._restore()

    def after_fork_in_child(self) -> None:
        """Drop the calls in progress: their threads exist only in the parent."""
        if self.active_calls:
            self._restore()
        self.reset()

    def _restore(self) -> None:
        if gc.get_threshold()[0] == 0:  # else the application has set another one
            gc.set_threshold(*self.thresholds)


_pause = _Pause()
os.register_at_fork(after_in_child=_pause.after_fork_in_child)


def undisturbed(call: Callable[[], T]) -> T:
    """Make a call during which no garbage collection runs."""
    _pause.begin()
    try:
        return call()
    finally:
        _pause.end()


_PATIENCE_S, _STEP_S = 1.0, 0.005


def collect() -> None:
    """Run a full collection, even if another thread is in the middle of one.

    gc.collect() returns at once then, and what has just become garbage stays.
    """
    until = time.monotonic() + _PATIENCE_S
    while True:
        before = gc.get_stats()[-1]["collections"]
        gc.collect()
        if gc.get_stats()[-1]["collections"] > before or time.monotonic() >= until:
            return
        time.sleep(_STEP_S)
