"""The garbage collector, kept waiting for a moment.

Twice it must not come in between, and once it need not. CPython holds an internal lock
while it lists the frames or exceptions of all threads; a collection at that moment may
run a finalizer that needs the lock, and the process stands still: cpython gh-106883,
mended there in this same way. A picture of a thousand holds is tens of thousands of
new objects, enough to set off a full collection, which stops every thread of the
application: for 30 ms in a small process, for seconds in a large one. And what is
loaded into somebody's process is thousands of objects that stay: nothing to collect.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class _Pause:
    """Counts who wants it to wait: the last one lets it go on, if the first found it
    going.
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
        """Whoever wanted it is a thread of the parent."""
        if self.wanted and self.was_on:
            gc.enable()
        self.forget()


_pause = _Pause()
os.register_at_fork(after_in_child=_pause.after_fork_in_child)


def undisturbed(call: Callable[[], T]) -> T:
    """Call without a garbage collection in between."""
    _pause.begin()
    try:
        return call()
    finally:
        _pause.end()
