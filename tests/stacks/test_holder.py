"""Threads that took connections."""

from __future__ import annotations

import _thread
import subprocess
import sys
import threading

from fix_core import null_pool_of
from fix_processes import ROOT
from helpers import LONG_S, until


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


ENDED_MEANWHILE = """
import sys, threading, time
from weakref import ref
import greenlet
from poolwatch.stacks import greenlets, holder as module

def work():
    global holder, first
    first = greenlets.first_greenlet()
    holder, first = module.Holder(first), ref(first)
    asked.set()
    told.wait()

def note():
    global second
    second = ref(greenlet.getcurrent())

class Slow:
    # the module, but the thread ends before one of its functions is called

    def __getattr__(self, name):
        if name != "is_dead":
            return getattr(greenlets, name)
        told.set()
        thread.join()
        later = threading.Thread(target=note)
        later.start()
        later.join()
        while second() is not None:  # greenlet cleans up in the main thread, in order
            time.sleep(0.01)
        return lambda each: first() is each

asked, told = threading.Event(), threading.Event()
thread = threading.Thread(target=work)
thread.start()
asked.wait()
module.greenlets = Slow()
sys.exit(not holder.has_ended())
"""


def test_a_thread_that_ends_while_its_greenlet_is_read():
    """greenlet takes a local variable for a leftover, and frees what it refers to."""
    ran = subprocess.run(
        [sys.executable, "-c", ENDED_MEANWHILE],
        capture_output=True,
        check=False,
        timeout=LONG_S,
        cwd=ROOT,
    )
    assert (ran.returncode, ran.stderr) == (0, b"")
