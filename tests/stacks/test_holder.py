"""Threads that took connections."""

from __future__ import annotations

import _thread
import threading

from fix_core import null_pool_of
from helpers import until


def test_threads_that_python_did_not_start(instrument):
    """A thread started below ``threading`` is a holder like others, and its end is seen
    or at least not an error."""
    pool = null_pool_of()
    watch = instrument(pool, long_after=1e-9)
    taken, go, ended = [], threading.Event(), threading.Event()

    def work():
        taken.append(pool.connect())
        go.set()
        ended.wait()

    _thread.start_new_thread(work, ())
    go.wait()
    assert watch.holds()[0].verdict == "long"
    ended.set()
    until(lambda: watch.holds()[0].now == ())
    assert watch.holds()[0].verdict in ("long", "leaked")
    taken.pop().close()
    assert watch.holds() == ()
