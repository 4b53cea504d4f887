"""Holders that take a second connection of their pool."""

from __future__ import annotations

import threading
import weakref

from fix_core import Look, null_pool_of
from helpers import LONG_S, until


def test_nested_and_deadlock(instrument):
    """Holders that wait for a second connection of an exhausted pool are a deadlock; a
    pool without a limit never is."""
    pool = null_pool_of(pool_size=1, max_overflow=0, timeout=LONG_S)
    watch = instrument(pool)
    outers = []

    def nests():
        outer = pool.connect()
        outers.append(weakref.ref(outer))  # this thread alone could return it
        pool.connect().close()

    thread = threading.Thread(target=nests)
    thread.start()
    until(lambda: Look().waits(watch))
    assert {"pool_deadlock", "nested", "exhausted"} <= set(Look().kinds())
    outers.pop()().close()
    thread.join()

    endless = null_pool_of(pool_size=1, max_overflow=-1)
    watch = instrument(endless)
    first = endless.connect()
    second = endless.connect()
    assert "pool_deadlock" not in Look().kinds()
    assert "nested" in Look().kinds()
    first.close()
    second.close()
    mine = Look().pool(watch).id
    past = [each for each in Look().process.findings if each.pool == mine]
    assert [(each.kind, each.severity) for each in past] == [("nested", "info")]


AT_EXIT = """
    from sqlalchemy.pool import QueuePool
    import poolwatch

    class Driver:
        def rollback(self): pass
        def close(self): pass

    class Last:
        def __del__(self):
            pool.connect().close()
            print("done")

    pool = QueuePool(Driver)
    poolwatch.instrument(pool)
    held = pool.connect()
    last = Last()
"""


def test_a_nested_request_at_interpreter_exit(apps):
    """A finalizer may request a connection when nothing can be imported any more."""
    done = apps.run(AT_EXIT)
    assert (done.stdout, done.stderr) == ("done\n", "")
