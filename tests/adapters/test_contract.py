"""The contract of every kind of pool: what is recorded, and that nothing is broken.

See ``kinds/`` for the kinds. What is peculiar to one library has a file of its own.
"""

from __future__ import annotations

import gc
import inspect
import os
import warnings
from contextlib import suppress

import pytest
from adapters.kinds.kind import KEPT
from fix_core import Look
from helpers import until

import poolwatch
from poolwatch.agent.instrument import agent
from poolwatch.protocol import document as wire

pytestmark = pytest.mark.filterwarnings(
    # what a dropped asynchronous connection says of itself, wherever that happens
    "ignore:.*:ResourceWarning",
    "ignore:.*garbage collector.*",
    "ignore::pytest.PytestUnraisableExceptionWarning",
)

SIZE = 2


@pytest.fixture
def make(kind, postgres):
    """Makes pools of this kind: ``make(timeout=5)``."""
    pools = []

    def make(*, timeout=1.0):
        server = postgres.as_role("postgres", "hunter2")
        pools.append(kind.make(server, size=SIZE, timeout=timeout))
        return pools[-1]

    make.pools = pools
    yield make
    for pool in pools:
        with suppress(Exception):
            kind.run(kind.close, pool)


@pytest.fixture
def pool(make):
    """A pool of two connections that gives up soon."""
    return make()


def line_of_take(kind):
    """Where the user's code is that takes connections: file and function."""
    code = next(c.__dict__["take"] for c in type(kind).__mro__ if "take" in c.__dict__)
    return code.__code__.co_filename, "take"


def site_of(frame):
    return frame.file, frame.function


def traces(kind, pool):
    """Everything on the pool that may be called, and on its classes."""
    found = {}
    for each in kind.instances(pool):
        own = getattr(each, "__dict__", {})
        found[id(each)] = {k: v for k, v in own.items() if callable(v)}
        for base in kind.classes(each):
            found[base] = {k: v for k, v in base.__dict__.items() if callable(v)}
    return found


# -- take and return ---------------------------------------------------------------


def test_take_and_return(kind, pool, instrument):
    """One hold, with its call site, its holder and its backend; then none."""
    watch = instrument(pool, name="orders")
    connection = kind.run(kind.take, pool)
    backend = kind.run(kind.query, connection, "select pg_backend_pid()")
    (hold,) = Look().holds(watch)
    assert hold.backend_pid == backend
    assert site_of(hold.site) == line_of_take(kind)
    assert (hold.thread, hold.task) == kind.main
    assert hold.site in hold.stack
    assert hold.verdict == "ok"
    assert Look().pool(watch).checked_out == 1
    kind.run(kind.give, pool, connection)
    stats = Look().pool(watch)
    assert (stats.checked_out, stats.counters.checkouts, stats.counters.checkins) == (
        0,
        1,
        1,
    )
    assert stats.hold_s.count == 1
    assert stats.wait_s.count == 1
    assert Look().kinds() == []


def test_the_document(kind, pool, instrument):
    """What the pool is, in the document of section 5; its password is not in it."""
    watch = instrument(pool)
    connection = kind.run(kind.take, pool)
    look = Look()
    stats = look.pool(watch)
    assert stats.kind == kind.pool_class
    assert stats.name == "postgres"
    assert (stats.size, stats.max_overflow) == (SIZE, 0)
    assert stats.idle is not None
    assert stats.url.startswith("postgresql")
    assert "postgres:***@" in stats.url
    assert "hunter2" not in wire.to_json(poolwatch.snapshot(), viewers=True)
    kind.run(kind.give, pool, connection)


def test_beside(kind, pool, instrument):
    """A thread or task of its own is the holder of what it takes."""
    watch = instrument(pool)
    connection = kind.begin(kind.take, pool).result(30)
    (hold,) = Look().holds(watch)
    assert (hold.thread, hold.task) == kind.beside
    kind.run(kind.give, pool, connection)
    assert Look().holds(watch) == []


def test_return_twice(kind, pool, instrument):
    """A second return is what it was without us, and is counted once."""
    watch = instrument(pool)
    connection = kind.run(kind.take, pool)
    kind.run(kind.give, pool, connection)
    if kind.twice is None:
        kind.run(kind.give, pool, connection)
    else:
        with pytest.raises(kind.twice):
            kind.run(kind.give, pool, connection)
    stats = Look().pool(watch)
    assert (stats.checked_out, stats.counters.checkins) == (0, 1)
    again = kind.run(kind.take, pool)
    assert len(Look().holds(watch)) == 1
    kind.run(kind.give, pool, again)
    assert not stats.switched_off


def test_a_connection_is_lent_again(kind, pool, instrument):
    """Each time is a hold of its own; the connection was opened once."""
    watch = instrument(pool)
    pids = set()
    for _ in range(3):
        connection = kind.run(kind.take, pool)
        (hold,) = Look().holds(watch)
        pids.add(hold.backend_pid)
        kind.run(kind.give, pool, connection)
    counters = Look().counters(watch)
    assert (counters.checkouts, counters.checkins) == (3, 3)
    if kind.keeps:
        assert len(pids) <= SIZE
    assert None not in pids


# -- waiting -----------------------------------------------------------------------


def test_wait(kind, make, instrument):
    """Somebody who waits is seen, with his call site; then he has a hold."""
    if not kind.waits:
        pytest.skip("this library never waits")
    pool = make(timeout=30)
    watch = instrument(pool)
    held = [kind.run(kind.take, pool) for _ in range(SIZE)]
    waiting = kind.begin(kind.take, pool)
    (wait,) = until(lambda: Look().waits(watch))
    assert site_of(wait.site) == line_of_take(kind)
    assert (wait.thread, wait.task) == kind.beside
    assert "exhausted" in Look().kinds()
    kind.run(kind.give, pool, held.pop())
    held.append(waiting.result(30))
    assert Look().waits(watch) == []
    for connection in held:
        kind.run(kind.give, pool, connection)
    stats = Look().pool(watch)
    assert (stats.checked_out, stats.wait_s.count) == (0, SIZE + 1)
    assert stats.wait_s.max >= wait.waited_s


def test_exhausted(kind, pool, instrument):
    """The library's own error, with a note that names the holders; it is counted."""
    watch = instrument(pool, name="orders")
    held = [kind.run(kind.take, pool) for _ in range(SIZE)]
    with pytest.raises(kind.exhausted) as caught:
        kind.run(kind.take, pool)
    (note,) = caught.value.__notes__
    assert "'orders'" in note
    assert "take" in note
    stats = Look().pool(watch)
    assert (stats.counters.timeouts, stats.waiting) == (1, 0)
    assert stats.counters.checkouts == SIZE
    for connection in held:
        kind.run(kind.give, pool, connection)
    kind.run(kind.give, pool, kind.run(kind.take, pool))
    assert Look().counters(watch).checkins == SIZE + 1


# -- connections that end ----------------------------------------------------------


def test_discard(kind, pool, instrument):
    """A connection that must not be used again is closed, and counted."""
    watch = instrument(pool)
    connection = kind.run(kind.take, pool)
    backend = kind.run(kind.query, connection, "select pg_backend_pid()")
    kind.run(kind.discard, pool, connection)
    counters = until(lambda: (c := Look().counters(watch)).closes and c)
    assert (counters.closes, counters.checkins) == (1, 1)
    assert counters.invalidated == kind.counts_invalidated
    connection = kind.run(kind.take, pool)
    assert kind.run(kind.query, connection, "select pg_backend_pid()") != backend
    kind.run(kind.give, pool, connection)
    assert Look().holds(watch) == []


def test_a_broken_connection(kind, pool, instrument, postgres):
    """The server has ended it: its return ends the hold, and the pool goes on."""
    if kind.may_lose_broken:
        pytest.skip("this asyncpg may lose the slot of what the server ends")
    watch = instrument(pool)
    connection = kind.run(kind.take, pool)
    backend = kind.run(kind.query, connection, "select pg_backend_pid()")
    postgres.execute(f"select pg_terminate_backend({backend})")
    with pytest.raises(Exception, match=r"\w"):
        kind.run(kind.query, connection, "select 1")
    with suppress(Exception):
        kind.run(kind.give, pool, connection)
    del connection
    until(lambda: Look().holds(watch) == [])

    def goes_on():
        connection = kind.run(kind.take, pool)
        try:
            return kind.run(kind.query, connection, "select 1") == 1
        except Exception:  # it may be lent once more before its end is noticed
            return False
        finally:
            with suppress(Exception):
                kind.run(kind.give, pool, connection)

    until(goes_on)
    assert not Look().pool(watch).switched_off


def test_a_closed_pool(kind, pool, instrument):
    """What is out when the pool is closed ends then, or when it is given back."""
    watch = instrument(pool)
    connection = kind.run(kind.take, pool)
    closing = kind.begin(kind.close, pool)
    if kind.holds_outlive_close:
        kind.run(kind.give, pool, connection)
    closing.result(30)
    assert Look().holds(watch) == []
    if not kind.holds_outlive_close:
        with suppress(Exception):
            kind.run(kind.give, pool, connection)
    assert Look().counters(watch).checkins == 1
    if kind.reopens:
        kind.run(kind.give, pool, kind.run(kind.take, pool))
    else:
        with pytest.raises(Exception, match=r"\w"):
            kind.run(kind.take, pool)
        assert Look().counters(watch).timeouts == 0
    assert not Look().pool(watch).switched_off


# -- leaks -------------------------------------------------------------------------


def test_dropped(kind, pool, instrument):
    """A connection that was lost is proven to be, at the line that took it."""
    watch = instrument(pool)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kind.run(kind.drop, pool)
        kind.collect()

        def proven():
            return [f for f in Look().process.findings if f.kind == "leaked.collected"]

        (finding,) = until(proven)
    assert [site_of(site) for site in finding.sites] == [line_of_take(kind)]
    assert "take" in finding.text or "kinds" in finding.text
    assert Look().counters(watch).leaked == 1


def test_what_is_in_use_is_not_dropped(kind, pool, instrument):
    """Nor what is kept by anybody at all, however often one looks."""
    watch = instrument(pool)
    kind.run(kind.keep, pool)
    kind.collect()
    for _ in range(4):
        look = Look()
        assert look.kinds() == []
        assert [hold.verdict for hold in look.holds(watch)] == ["ok"]
    kind.run(kind.give, pool, KEPT.pop())
    assert Look().counters(watch).leaked == 0


# -- instrument and its undo -------------------------------------------------------


def test_what_was_out_before(kind, pool, instrument):
    """A connection taken before the pool was instrumented comes back as it would."""
    early = kind.run(kind.take, pool)
    watch = instrument(pool)
    assert Look().holds(watch) == []
    late = kind.run(kind.take, pool)
    kind.run(kind.give, pool, early)
    assert len(Look().holds(watch)) == 1
    kind.run(kind.give, pool, late)
    stats = Look().pool(watch)
    assert (stats.checked_out, stats.counters.checkins) == (0, 1)
    assert not stats.switched_off


def test_twice_is_once(kind, pool, instrument):
    """instrument() again changes the settings, and nothing is counted twice."""
    first = instrument(pool)
    before = traces(kind, pool)
    second = instrument(pool, name="orders", long_after=5)
    assert first._pool_id == second._pool_id
    assert traces(kind, pool) == before
    stats = Look().pool(first)
    assert (stats.name, stats.long_after_s) == ("orders", 5)
    kind.run(kind.give, pool, kind.run(kind.take, pool))
    assert Look().counters(first).checkouts == 1


def test_nothing_is_left(kind, pool, instrument):
    """uninstrument() leaves the pool and its classes as they were."""
    kind.run(kind.give, pool, kind.run(kind.take, pool))
    before = traces(kind, pool)
    instrument(pool)
    assert traces(kind, pool) != before
    connection = kind.run(kind.take, pool)
    poolwatch.uninstrument(pool)
    assert traces(kind, pool) == before
    kind.run(kind.give, pool, connection)
    kind.run(kind.give, pool, kind.run(kind.take, pool))
    assert agent.ledger.pools == {}


def test_every_pool(kind, make, instrument):
    """Those there are and those to come, until uninstrument()."""
    early = make()
    before = traces(kind, early)
    instrument(long_after=7)
    late = make()
    for pool in (early, late):
        pool_id = agent.pools.id_of(pool)
        assert agent.ledger.pools[pool_id].long_after == 7
        connection = kind.run(kind.take, pool)
        assert [h.pool for h in Look().process.holds] == [pool_id]
        kind.run(kind.give, pool, connection)
    poolwatch.uninstrument()
    assert traces(kind, early) == before
    assert agent.pools is None
    later = make()
    kind.run(kind.give, later, kind.run(kind.take, later))
    assert agent.ledger.pools == {}


def test_its_class_says_what_it_takes(kind, make, instrument):
    """Whoever reads the parameters of a pool's class reads them as they were."""

    def parameters(pool):
        inits = [each.__dict__.get("__init__") for each in type(pool).__mro__]
        codes = [init.__code__ for init in inits if inspect.isfunction(init)]
        return [
            code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
            for code in codes
        ], inspect.signature(type(pool))

    before = parameters(make())
    instrument()
    assert parameters(make()) == before


def test_a_pool_that_is_gone(kind, make, instrument):
    """A pool is not kept alive: once it is gone, so are its books."""
    pool = make()
    pool_id = instrument(pool)._pool_id
    kind.run(kind.give, pool, kind.run(kind.take, pool))
    kind.run(kind.close, pool)
    make.pools.clear()
    del pool

    def gone():
        kind.collect()
        gc.collect()
        return pool_id not in agent.ledger.pools

    until(gone)


# -- nothing of ours reaches the application ---------------------------------------


class _Broken:
    """An observer that fails."""

    def __init__(self, when):
        self.when = when

    def checked_out(self, book, hold):
        if self.when == "checked_out":
            raise ZeroDivisionError("ours")

    def ended(self, book, hold, now, collected):
        if self.when == "ended":
            raise ZeroDivisionError("ours")


@pytest.mark.parametrize("when", ["checked_out", "ended"])
def test_a_hook_that_fails(kind, pool, instrument, caplog, when):
    """It is logged once and switched off; the pool goes on."""
    watch = instrument(pool, name="orders")
    observer = _Broken(when)
    agent.ledger.observers.append(observer)
    try:
        for _ in range(3):
            connection = kind.run(kind.take, pool)
            assert kind.run(kind.query, connection, "select 1") == 1
            kind.run(kind.give, pool, connection)
    finally:
        agent.ledger.observers.remove(observer)
    assert caplog.text.count("is switched off for it") == 1
    assert Look().pool(watch).switched_off
    held = [kind.run(kind.take, pool) for _ in range(SIZE)]
    with pytest.raises(kind.exhausted):
        kind.run(kind.take, pool)
    for connection in held:
        kind.run(kind.give, pool, connection)


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_fork(kind, pool, instrument):
    """The child begins anew: what is out is the parent's, who goes on."""
    watch = instrument(pool)
    connection = kind.run(kind.take, pool)
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            look = Look()
            own = look.pool(watch)
            clean = look.holds(watch) == [] and own.counters.checkouts == 0
            code = 0 if clean and not own.switched_off else 2
        finally:
            os._exit(code)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    assert len(Look().holds(watch)) == 1
    kind.run(kind.give, pool, connection)
    assert Look().counters(watch).checkins == 1
