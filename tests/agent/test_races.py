"""A hold that ends while it is looked at is not judged."""

from __future__ import annotations

import threading

import pytest
from fix_core import null_pool_of
from helpers import until

from poolwatch.agent import leak_search, snapshots
from poolwatch.agent.instrument import agent
from poolwatch.agent.watchdog import Watchdog

LONG_AFTER = 1e-9
KEPT = []


@pytest.fixture
def source(monkeypatch):
    """Looks at the ledger; the agent's own looks do not come in between."""
    monkeypatch.setattr(agent._guard, "tripped", True)  # no watchdog but the test's own
    return snapshots.LedgerSource(agent.ledger)


@pytest.fixture
def during_a_search(monkeypatch):
    """Run something between a search and what follows it."""
    search = leak_search._search
    actions = []

    def ask(asked):
        answer = search(asked)
        if actions:
            actions.pop(0)()
        return answer

    monkeypatch.setattr(leak_search, "_search", ask)
    return actions.append


class Worker:
    """A thread that takes a connection in one function, and then obeys."""

    def __init__(self, pool):
        self._pool = pool
        self._go, self._done = threading.Event(), threading.Event()
        self._kept = []
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        assert self._done.wait(30)

    def _run(self):
        self._take()
        self._done.set()
        self._go.wait(60)

    def _take(self):
        KEPT.append(self._pool.connect())

    def end(self):
        self._go.set()
        self.thread.join()


@pytest.fixture
def pool(instrument):
    pool = null_pool_of()
    instrument(pool, long_after=LONG_AFTER)
    yield pool
    for connection in KEPT:
        connection.close()
    KEPT.clear()


def test_a_hold_that_went_back_meanwhile(pool, source, during_a_search):
    worker = Worker(pool)
    during_a_search(lambda: KEPT.pop().close())
    process = source.process()
    worker.end()
    assert process.holds == ()
    assert process.findings == ()
    assert process.pools[0].counters.checkins == process.pools[0].counters.checkouts


def test_a_wait_that_was_served_meanwhile(instrument, source, during_a_search):
    """Nothing is said of a request with the holds of another moment."""
    pool = null_pool_of(pool_size=1, max_overflow=0)
    watch = instrument(pool, long_after=LONG_AFTER)
    worker = Worker(pool)
    second = threading.Thread(target=lambda: pool.connect().close())
    second.start()
    until(lambda: source.process(search=False).waits)
    during_a_search(lambda: (KEPT.pop().close(), second.join()))
    process = source.process()
    worker.end()
    assert process.waits == ()
    assert process.findings == ()
    assert watch.holds() == ()


def test_a_leak_is_counted_when_two_looks_agree(pool, source):
    worker = Worker(pool)
    assert source.process().pools[0].counters.leaked == 0
    until(lambda: source.process().pools[0].counters.leaked == 1)
    assert [hold.verdict for hold in source.process().holds] == ["leaked"]
    worker.end()


def test_a_leak_is_logged_when_two_looks_agree(pool, source, caplog):
    watchdog = Watchdog(source, agent.ledger)
    worker = Worker(pool)
    watchdog.tick()
    assert caplog.records == []  # one look is not enough
    until(lambda: watchdog.tick() or caplog.records)
    assert len(caplog.records) == 1
    KEPT.pop().close()
    worker.end()


def test_a_connection_that_moves_while_it_is_searched_for(
    pool, source, during_a_search
):
    """From a frame that was not read yet to one that was."""
    worker = Worker(pool)
    borrowed = threading.Event(), threading.Event()

    def uses(connection):
        borrowed[0].set()
        borrowed[1].wait(60)
        connection.close()

    def lend():
        threading.Thread(target=uses, args=(KEPT.pop(),)).start()
        borrowed[0].wait(60)

    during_a_search(lend)
    (hold,) = source.process().holds
    borrowed[1].set()
    worker.end()
    assert hold.verdict == "long"
