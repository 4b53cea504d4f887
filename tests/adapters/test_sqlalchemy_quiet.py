"""Checkouts in a run of tests: those that go the short way, and those that must not."""

from __future__ import annotations

import asyncio
import functools
import gc
import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import weakref
from contextlib import suppress
from pathlib import Path

import pytest
from fix_core import book_of
from poolwatch.adapters.sqlalchemy.quiet import LISTENERS
from sqlalchemy import Pool, QueuePool, StaticPool, create_engine, event, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

import poolwatch
from poolwatch.adapters.sqlalchemy import quiet
from poolwatch.adapters.sqlalchemy.engines import Engines
from poolwatch.adapters.sqlalchemy.hooks import PoolHooks
from poolwatch.agent.instrument import agent, watch_quietly
from poolwatch.ledger.observers import MOST_UNSEEN
from poolwatch.model import Collected
from poolwatch.stacks.capture import LonePath, Node
from poolwatch.testing.judge import Judge
from poolwatch.testing.owners import Lengths, Owner


class Item:
    """Stands for a test."""

    nodeid = "test_it.py::test_it"


class Rising:
    """Stands for a fixture of a wider scope that is being set up."""

    is_up = False

    def __init__(self, owner):
        self.owner = owner


@pytest.fixture
def owner(owners):
    """Whoever the main thread works for."""
    owners.current = Owner("test", Item)
    return owners.current


@pytest.fixture
def general(monkeypatch):
    """Notes the checkouts that go the general way."""
    seen = []
    make = PoolHooks.general

    def noting(self, *args):
        general = make(self, *args)

        def note(above, *pool):
            seen.append(above)
            return general(above + 1, *pool)

        return note

    monkeypatch.setattr(PoolHooks, "general", noting)
    return seen


@pytest.fixture
def engine(owner, general, sqlite):
    """One whose thread has been met."""
    engine = sqlite(pool_size=2, max_overflow=0, pool_timeout=0.05)
    with engine.connect():
        pass
    general.clear()
    return engine


def counted(engine):
    """Checkouts, checkins, and the holds and waits whose times are known."""
    pools = poolwatch.snapshot().processes[0].pools
    [pool] = [each for each in pools if each.id == book_of(engine).id]
    counters = pool.counters
    return (
        counters.checkouts,
        counters.checkins,
        pool.hold_s.count,
        pool.wait_s.count,
    )


def test_a_plain_one(engine, owner, general):
    """It is noted with all that a report needs, and taken off."""
    with engine.connect() as connection:
        connection.execute(text("select 1 as plain"))
        [hold] = owner.out
        assert owner.out[hold].book is book_of(engine)
        assert book_of(engine).open_holds() == [hold]
        assert hold.account is owner
        assert hold.path.frames()[0].function == "test_a_plain_one"
        assert isinstance(hold.path, LonePath)
        assert hold.statement() == "select 1 as plain"
        assert hold.asked <= hold.taken
        assert hold.proxy() is connection.connection
        assert hold.connection is not None
        assert hold.holder.ident == threading.get_ident()
        assert hold.holder.out == 1
    assert owner.out == {}
    assert owner.peak == 1
    assert hold.holder.out == 0
    assert book_of(engine).open_holds() == []
    assert general == []


def test_one_more(engine, owner, general):
    """Whoever holds one may have to wait for himself: that is noted the general way."""
    with engine.connect():  # noqa: SIM117 - on one line it would be a loop's
        with engine.connect():
            assert len(owner.out) == owner.peak == 2
    assert general == [3]
    [nesting] = book_of(engine).nestings.seen.values()
    with engine.connect():
        assert len(owner.out) == 1
    assert owner.peak == 2
    assert general == [3]
    assert nesting.depth == 2


def test_all_are_counted(engine):
    """Also when their times are folded on the way."""
    before, more = counted(engine)[0], MOST_UNSEEN + 7
    agent.reachable = False
    for _ in range(more):
        with engine.connect():
            pass
    assert len(book_of(engine).unseen) < MOST_UNSEEN
    assert counted(engine) == (before + more,) * 4


def test_out_of_connections(engine, general):
    """The pool's own error tells who has them."""
    lent = [engine.connect() for _ in range(2)]
    with pytest.raises(PoolTimeoutError) as caught:
        engine.connect()
    assert "test_out_of_connections" in "\n".join(caught.value.__notes__)
    assert book_of(engine).timeouts == 1
    assert general == [3, 3]
    for each in lent:
        each.close()


class Refusing(QueuePool):
    """Says that it has none, however many it has."""

    def _do_get(self):
        if self.refuses:
            raise self.refuses
        return super()._do_get()

    refuses = None


@pytest.mark.parametrize(
    ("error", "timeouts", "gave_up"),
    [
        (PoolTimeoutError("none"), 1, 0),
        (KeyboardInterrupt(), 0, 1),
        (OSError("no server"), 0, 0),
    ],
)
def test_it_gets_none(owner, general, sqlite, error, timeouts, gave_up):
    """Though there seemed to be one: the error passes, and what it was is counted."""
    engine = sqlite(poolclass=Refusing)
    with engine.connect():
        pass
    general.clear()
    engine.pool.refuses = error
    with pytest.raises(type(error)) as caught:
        engine.raw_connection()
    assert caught.value is error
    assert (book_of(engine).timeouts, book_of(engine).gave_up) == (timeouts, gave_up)
    assert book_of(engine).open_holds() == []
    assert book_of(engine).waits == {}
    assert owner.out == {}
    assert general == []


def test_others_have_them_all(engine, general):
    """Whoever waits for them is seen to, though he holds none himself."""
    lent = []
    thread = threading.Thread(target=lambda: lent.append(engine.connect()))
    thread.start()
    thread.join()
    lent.append(engine.connect())
    assert general == [3]
    agent.per_thread.holder.out = 0  # as if another thread had that one, too
    with pytest.raises(PoolTimeoutError):
        engine.connect()
    assert general == [3, 3]
    assert book_of(engine).most_wanted == 3
    agent.per_thread.holder.out = 1
    for each in lent:
        each.close()


def test_dropped(engine, owner):
    """Nobody returns it: its owner is told."""
    engine.raw_connection()
    gc.collect()
    [(where, hold, _)] = owner.dropped
    assert where is book_of(engine)
    assert hold.path.frames()[0].function == "raw_connection"
    assert owner.out == {}
    assert counted(engine)[1] == 2


def test_another_thread(engine, owner, owners, general):
    """It has an owner of its own."""
    theirs = Owner("test", Item)
    owners.follow()

    def take():
        for _ in range(2):  # it is a stranger only once
            with engine.connect():
                assert len(theirs.out) == 1
                assert owner.out == {}

    owners.current = theirs
    thread = threading.Thread(target=take)
    thread.start()
    owners.current = owner
    thread.join()
    owners.unfollow()
    assert general == [3, 3]
    assert theirs.peak == 1
    assert owner.out == {}


def test_in_an_event_loop(engine, general):
    """There a task has it."""

    async def take():
        with engine.connect():
            [hold] = book_of(engine).open_holds()
            return hold.task.name

    async def main():
        return await asyncio.create_task(take(), name="worker")

    assert asyncio.run(main()) == "worker"
    assert general == [3]


def test_a_long_one(engine, owner, general):
    """One that is declared is nobody's."""
    with poolwatch.long_hold("listens"), engine.connect():
        assert owner.out == {}
        assert len(book_of(engine).open_holds()) == 1
    assert book_of(engine).open_holds() == []
    assert general == []


def test_a_limit(engine, owners):
    """Who wants to see the stacks at the peak does."""
    limited = owners.current = Owner("test", Item)
    limited.keeps_peak = True
    with engine.connect():
        pass
    [stack] = limited.at_peak
    assert stack[0].function == "test_a_limit"


def test_a_limit_of_its_time(engine, owner, general):
    """Whoever else observes is told, as ever."""
    owner.keeps_peak = True
    lengths = Lengths()
    with engine.connect():
        agent.ledger.observers.append(lengths)
    assert owner.longest[1][0].function == "test_a_limit_of_its_time"
    assert general == []
    with engine.connect():
        pass
    assert general == [3]
    agent.ledger.observers.remove(lengths)


def test_an_owner_that_was_judged(engine, owner, owners):
    """What it takes after that is not forgotten."""
    owner.over = True
    lent = engine.connect()
    assert list(owners.again.values()) == [owner]
    lent.close()


def test_a_fixture_that_rises(engine, owner, owners, general):
    """It answers for what is taken meanwhile, until it is up."""
    fixture = Owner("fixture", Item)
    owners.rising.append(rising := Rising(fixture))
    with engine.connect():
        assert len(fixture.out) == 1
        assert owner.out == {}
    rising.is_up = True  # pytest does not tell at once
    with engine.connect():
        assert fixture.out == {}
        assert len(owner.out) == 1
    assert general == []
    owners.rising.clear()


def test_nobody(engine, owners, general):
    """Outside of all tests it has no owner."""
    owners.current = None
    with engine.connect():
        [hold] = book_of(engine).open_holds()
        assert hold.account is None
    assert book_of(engine).open_holds() == []
    assert general == []


def test_somebody_looks(engine, general):
    """From then on all is kept that can be seen."""
    with engine.connect():
        poolwatch.snapshot()
    with engine.connect() as connection:
        connection.execute(text("select 1"))
        [hold] = book_of(engine).open_holds()
        assert isinstance(hold.path, Node)
        assert hold.usage.statement == "select 1"
    assert general == [3]
    assert counted(engine) == (3,) * 4


def test_a_new_pool(engine, owner, general):
    """After dispose() it goes on, and the old one is let go."""
    old = engine.pool
    engine.dispose()
    with engine.connect():
        assert len(owner.out) == 1
        assert len(book_of(engine).open_holds()) == 1
    assert engine.pool is not old
    assert owner.out == {}
    assert general == []
    watched = weakref.ref(old)
    gc.collect()
    gc.disable()
    try:
        del old
        assert watched() is None  # as without us: no collection is needed
    finally:
        gc.enable()


def test_a_hook_that_fails(engine, owners, caplog):
    """The application does not notice; there the hooks are off."""
    owners.current = object()
    with caplog.at_level(logging.ERROR, "poolwatch"):
        for _ in range(2):
            with engine.connect() as connection:
                assert connection.scalar(text("select 1")) == 1
    assert len(caplog.records) == 1
    assert book_of(engine).switched_off()


def test_uninstrument(engine):
    """Nothing of ours is left."""
    poolwatch.uninstrument()
    assert "connect" not in vars(engine.pool)
    assert not engine.pool.dispatch.checkin


# -- many pools ------------------------------------------------------------------------

COUNTED = """
import json, sys
from poolwatch.agent.instrument import agent, watch_quietly
from poolwatch.testing.owners import Owner, Owners
if sys.argv[2] != "before SQLAlchemy":
    import sqlalchemy
if sys.argv[2] == "in the middle":
    import threading
    inside, done = threading.Event(), threading.Event()
    def creator():
        inside.set()
        done.wait()
        raise RuntimeError
    def work():
        try:
            sqlalchemy.create_engine("sqlite://", creator=creator).connect()
        except RuntimeError:
            pass
    threading.Thread(target=work).start()
    inside.wait()
owners = Owners()
agent.ledger.observers.append(owners)
watch_quietly()
import sqlalchemy as sa
import poolwatch

def ours(pool, *, own):
    told = ("checkin", "close", "close_detached", "connect", "detach", "invalidate")
    found = []
    for name in told:
        event = getattr(pool.dispatch, name)
        listeners = event.listeners if own else event
        if any("poolwatch" in each.__module__ for each in listeners):
            found.append(name)
    return found

own = "connect", "_return_conn", "recreate"
bare = [vars(kind)[name] for kind in (sa.Pool, sa.QueuePool) for name in own
        if name in vars(kind)]
engine = sa.create_engine(sys.argv[1], poolclass=sa.QueuePool)
owner = owners.current = Owner("test", None)
with engine.connect() as connection:
    connection.execute(sa.text("select 1"))
raw = engine.raw_connection()
raw.detach()
out = [len(owner.out), len(agent.ledger.books[agent.pools.id_of(engine)].detached)]
raw.close()
raw = engine.raw_connection()
raw.invalidate()
raw.close()
engine.dispose()
with engine.connect():
    pass
hung = ours(engine.pool, own=True)
hung += [name for name in own if name in vars(engine.pool)]
[pool] = [p for p in poolwatch.snapshot().processes[0].pools if p.kind == "QueuePool"]
counters = pool.counters
said = [counters.checkouts, counters.checkins, counters.connects, counters.closes]
said += [counters.invalidated, len(owner.out)]
agent.ledger.observers.remove(owners)
poolwatch.uninstrument()
left = ours(engine.pool, own=False)
left += [name for name in own if name in vars(engine.pool)]
left += [str(method) for kind in (sa.Pool, sa.QueuePool) for name in own
         if name in vars(kind) and (method := vars(kind)[name]) not in bare]
if sys.argv[2] == "in the middle":
    done.set()
print(json.dumps([said, out, hung, left]))
"""


@pytest.mark.parametrize(
    "when", ["before SQLAlchemy", "after SQLAlchemy", "in the middle"]
)
def test_what_is_counted(tmp_path, when):
    """The same, whether hooks hang on each pool, or are in the classes of all."""
    url = f"sqlite:///{tmp_path}/counted.db"
    done = subprocess.run(
        [sys.executable, "-c", COUNTED, url, when],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert done.stderr == ""
    said, out, hung, left = json.loads(done.stdout)
    assert said == [4, 4, 3, 2, 1, 0]
    assert out == [1, 1]
    own = ["close", "close_detached", "connect", "detach", "invalidate"]
    own += ["connect", "_return_conn", "recreate"]
    assert hung == (own if when == "in the middle" else ["close_detached"])
    assert left == []


def test_one_connection_for_all(owner, owners, sqlite):
    """Nothing hangs on such a pool until somebody looks; the summary names it."""
    engine = sqlite(poolclass=StaticPool)
    with engine.connect() as connection:
        assert connection.scalar(text("select 1")) == 1
    assert owners.unjudged == {book_of(engine).name: "StaticPool"}
    assert not engine.pool.dispatch.checkin.listeners
    assert "do_execute" not in vars(engine.dialect)
    poolwatch.snapshot()
    for _ in range(2):
        with engine.connect() as connection:
            connection.execute(text("select 2"))
            [hold] = book_of(engine).open_holds()
            assert hold.statement() == "select 2"
            assert hold.path.frames()[0].function == "test_one_connection_for_all"
        assert book_of(engine).open_holds() == []
    assert owner.out == {}
    assert counted(engine) == (2, 2, 2, 2)


def test_an_engine_for_each_test(owner):
    """What is ours goes in the very collection in which the engine goes."""
    engine = create_engine("sqlite:///", poolclass=QueuePool)
    with engine.connect():
        pass
    pool_id = book_of(engine).id
    books, seen = weakref.ref(book_of(engine)), []
    weakref.finalize(engine.pool, lambda: seen.append(books()))
    del engine
    gc.collect()
    assert seen == [None]
    assert pool_id not in agent.ledger.books


def test_an_engine_that_is_not_used(owner, sqlite):
    """It has no books before somebody looks, but is seen by whoever does."""
    gc.collect()  # engines of other tests
    engine, other = sqlite(), sqlite(poolclass=StaticPool)
    assert not agent.ledger.books
    engine.dispose()
    assert not agent.ledger.books
    seen = {each.id: each.kind for each in poolwatch.snapshot().processes[0].pools}
    assert seen[book_of(engine).id] == "QueuePool"
    assert seen[book_of(other).id] == "StaticPool"
    with engine.connect() as connection:
        connection.execute(text("select 1 as seen"))
        [hold] = book_of(engine).open_holds()
        assert hold.usage.statement == "select 1 as seen"
        assert hold.path.frames()[0].function == "test_an_engine_that_is_not_used"


def test_an_engine_that_is_used(owner, sqlite):
    """It has none either, and what was noted is in them once somebody asks."""
    sqlite().connect().close()  # the first goes another way
    gc.collect()  # engines of other tests
    before = len(agent.ledger.books)
    engine = sqlite()
    for _ in range(3):
        with engine.connect() as connection:
            connection.execute(text("select 1"))
        engine.dispose()
    raw = engine.raw_connection()
    raw.invalidate()
    raw.close()
    connection = engine.connect()
    assert len(agent.ledger.books) == before
    assert counted(engine) == (5, 4, 4, 4)
    book = book_of(engine)
    assert (book.connects, book.closes, book.invalidated) == (5, 4, 1)
    assert book.open_holds() == list(owner.out)
    connection.close()
    assert counted(engine) == (5, 5, 5, 5)


def test_judged_when_nobody_watches_any_more(owner, sqlite):
    """What was taken before is told with its pool, which nobody sees any more."""
    sqlite().connect().close()  # the first goes another way
    engine = sqlite(pool_logging_name="of old")
    connection = engine.connect()
    poolwatch.uninstrument()
    [(hold, lender)] = owner.out.items()
    assert lender.book.name == "of old"
    assert hold.connection is not None
    assert lender.book.open_holds() == [hold]
    assert lender.book.id not in agent.ledger.books
    connection.close()


def test_leaks_of_one_engine(owner, sqlite):
    """It is enough that it was made: that is no reason to listen for viewers."""
    engine = sqlite()
    kept = []
    with (
        pytest.raises(poolwatch.PoolLeakError, match="test_leaks_of_one_engine"),
        poolwatch.no_leaks(engine),
    ):
        kept.append(engine.connect())
    assert not agent.reachable
    kept.pop().close()
    assert owner.out == {}


def test_what_was_lost(owner, sqlite):
    """Of a connection that only the collector returned, it is known which it was."""
    engine = sqlite()
    connection = engine.connect()
    connection.execute(text("select 1 as lost"))
    del connection
    gc.collect()
    [(book, hold, _)] = owner.dropped
    assert book is book_of(engine)
    assert hold.connection is not None
    assert hold.statement() == "select 1 as lost"


LOST = """
import gc, sys
from poolwatch.agent.instrument import agent, watch_quietly
from poolwatch.testing.owners import Owner, Owners
owners = Owners()
agent.ledger.observers.append(owners)
watch_quietly()
import sqlalchemy as sa

def engine(query):
    return sa.create_engine(sys.argv[1] + query, poolclass=sa.QueuePool)

owner = owners.current = Owner("test", None)
engine("").connect().close()
cycle = [engine("?timeout=5").connect()]
cycle.append(cycle)
before = set(sys.modules)
del cycle
gc.collect()
assert len(owner.dropped) == 1
print(*sorted(set(sys.modules) - before))
"""


def test_lost_in_a_collection(tmp_path):
    """Books may be made in the middle of one: nothing is imported there."""
    done = subprocess.run(
        [sys.executable, "-c", LOST, f"sqlite:///{tmp_path}/lost.db"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("\n", "")


def drop(connection):
    """Leave it to the collector."""
    cycle = [connection]
    cycle.append(cycle)


def test_lost_with_its_engine(owner, sqlite, tmp_path):
    """Until somebody asks for the books the pool is kept, and then no longer."""
    sqlite().connect().close()  # the first goes another way
    engine = create_engine(f"sqlite:///{tmp_path}/gone.db")
    pool = weakref.ref(engine.pool)
    drop(engine.connect())
    del engine
    gc.collect()
    [(lender, hold, now)] = owner.dropped
    assert owner.out == {}
    assert hold.holder.out == 0
    assert pool() is not None
    book = lender.book
    assert book.leaked == 1
    assert book.collected_at() == [Collected(hold.path.site(), 1)]
    assert hold.taken <= now
    assert hold.connection is not None
    owner.dropped = ()
    del lender, hold
    gc.collect()
    assert pool() is None


def test_many_lost(owner, sqlite, monkeypatch):
    """Then the books are made all the same, with all of them."""
    monkeypatch.setattr(quiet, "_MOST_LOST", 2)
    sqlite().connect().close()  # the first goes another way
    engine = sqlite()
    for _ in range(4):
        drop(engine.connect())
        gc.collect()
    assert len(owner.dropped) == 4
    assert book_of(engine).leaked == 4


def test_lost_while_books_are_made(owner, owners, sqlite, monkeypatch):
    """By another thread, say: it is in these."""
    sqlite().connect().close()  # the first goes another way
    engine = sqlite()
    lose, made = owners.lost, []

    def losing(lender, *args):
        made.append(lender.book)
        lose(lender, *args)

    monkeypatch.setattr(owners, "lost", losing)
    drop(engine.connect())
    gc.collect()
    assert made == [book_of(engine)]
    assert made[0].leaked == len(owner.dropped) == 1


def test_a_detached_record_that_is_lent_again(owner, sqlite):
    """Another thread has it before SQLAlchemy tells of it: both holds stay."""
    engine = sqlite(poolclass=QueuePool, pool_size=1, max_overflow=0)
    engine.connect().close()  # the first goes another way
    raw = engine.raw_connection()
    [hold] = owner.out
    pool, others = engine.pool, []
    given_back = pool._do_return_conn

    def give_back_and_lend(record):
        given_back(record)
        del pool._do_return_conn
        other = threading.Thread(target=lambda: others.append(engine.raw_connection()))
        other.start()
        other.join()

    pool._do_return_conn = give_back_and_lend
    raw.detach()
    book = book_of(engine)
    assert list(book.detached.values()) == [hold]
    [other] = book.holds.values()
    assert other.holder is not hold.holder
    raw.close()
    others.pop().close()
    assert book.open_holds() == []
    assert (hold.holder.out, other.holder.out) == (0, 0)


def test_facts_of_one_detached(owner, sqlite):
    """Nobody knows any more when it was opened; of one that is closed nothing."""
    engine = sqlite()
    engine.connect().close()  # the first goes another way
    raw = engine.raw_connection()
    [hold] = owner.out
    raw.detach()
    assert hold.connection.met
    raw.close()
    raw = engine.raw_connection()
    [hold] = owner.out
    raw.invalidate()
    assert hold.connection is None
    raw.close()


def test_facts_of_the_next_one(owner, sqlite):
    """A record that has opened another connection is asked again."""
    engine = sqlite(pool_size=1, max_overflow=0)
    facts = []
    for _ in range(3):
        raw = engine.raw_connection()
        [hold] = owner.out
        facts.append(hold.connection)
        raw.invalidate()
        raw.close()
    assert len(set(map(id, facts))) == 3
    assert facts[0].opened < facts[1].opened < facts[2].opened


def test_watched_again(owner, owners, sqlite):
    """What an earlier watch has marked and hung up does not count twice."""
    engine, unused = sqlite(), sqlite()
    with engine.connect():
        pass
    poolwatch.uninstrument()
    watch_quietly()
    for each in (engine, unused, sqlite()):
        with each.connect() as connection:
            connection.execute(text("select 1"))
            assert len(owner.out) == 1
            assert book_of(each).open_holds() == list(owner.out)
        assert owner.out == {}
        each.dispose()


def test_below_somebody_elses(owner, monkeypatch, sqlite):
    """Ours that could not be taken off pass through, and the next are on top."""
    sqlite()
    ours = Pool.connect
    calls = []

    def theirs(pool):
        calls.append(pool)
        return ours(pool)

    monkeypatch.setattr(Pool, "connect", theirs)
    poolwatch.uninstrument()
    assert Pool.connect is theirs
    watch_quietly()
    engine = sqlite()
    with engine.connect():
        [hold] = owner.out
        assert hold.holder.out == 1
    assert hold.holder.out == 0
    assert calls == [engine.pool]


def test_somebody_clears_all_listeners(owner, sqlite):
    """What is not there need not be taken off."""
    engine = sqlite()
    for name, listener in LISTENERS.items():
        event.remove(Pool, name, listener)
    with engine.connect():
        assert len(owner.out) == 1
    poolwatch.uninstrument()
    assert not any(event.contains(Pool, *each) for each in LISTENERS.items())


class Counting(QueuePool):
    """A pool that does something of its own."""

    lent = 0

    def connect(self):
        """Count it."""
        self.lent += 1
        return super().connect()


def test_a_pool_with_a_connect_of_its_own(owner, sqlite):
    """It keeps it, and each of its connections is noted once."""
    plain, engine = sqlite(), sqlite(poolclass=Counting)
    for each in (plain, engine):
        with each.connect() as connection:
            connection.execute(text("select 1"))
            [hold] = owner.out
            assert hold.holder.out == 1
            assert hold.statement() == "select 1"
    assert owner.out == {}
    assert engine.pool.lent == 1


class Standing:
    """An object that stands for a function, as tracers put it into classes."""

    def __init__(self, below):
        self.below = below
        self.called = 0

    def __get__(self, pool, kind=None):
        """Bind it."""

        def connect():
            self.called += 1
            return self.below(pool)

        return connect


def test_a_class_that_somebody_traces(owner, monkeypatch, sqlite):
    """It is left alone: hooks are hung on the pool then."""
    theirs = Standing(Pool.connect)
    monkeypatch.setattr(Pool, "connect", theirs)
    engine = sqlite()
    with engine.connect():
        assert len(owner.out) == 1
    assert theirs.called == 1
    assert vars(Pool)["connect"] is theirs


class Odd(QueuePool):
    """A pool whose new one is made by that of its base, and may be none."""

    gone = False

    def recreate(self):
        """Make a new one, or none."""
        return None if self.gone else super().recreate()


def test_a_recreate_of_its_own(owner, sqlite):
    """Each pool is followed once; what cannot be followed fails nobody."""
    plain, engine = sqlite(), sqlite(poolclass=Odd)
    for each in (plain, engine):
        each.connect().close()
        each.dispose()
    book = book_of(engine)
    raw = engine.raw_connection()
    raw.detach()
    raw.close()
    assert (book.connects, book.closes) == (2, 2)
    engine.pool.gone = True
    assert engine.pool.recreate() is None


def test_made_in_the_middle_of_making(owner, sqlite, monkeypatch):
    """A connection that is dropped meanwhile is in the books that are kept."""
    sqlite().connect().close()  # the first goes another way
    engine = sqlite()
    kept = [engine.connect()]
    make = PoolHooks.__init__

    def dropping(self, *args, **kwargs):
        kept.clear()  # as a collection might
        make(self, *args, **kwargs)

    monkeypatch.setattr(PoolHooks, "__init__", dropping)
    book = book_of(engine)
    assert book.leaked == 1
    assert [each[0].book for each in owner.dropped] == [book]


class Vague(QueuePool):
    """A pool that answers whatever it is asked."""

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)


def test_a_pool_that_answers_everything(engine, owner, tmp_path):
    """It has no engine, so nobody watches it, and it is not asked for a mark."""
    with engine.connect():
        pass
    pool = Vague(lambda: sqlite3.connect(tmp_path / "vague.db"))
    raw = pool.connect()
    assert owner.out == {}
    raw.close()
    assert pool.checkedin() == 1


def nobody_else(owner):
    """Who answers for what an owner has."""


def test_lost_while_another_is_judged(owner, owners, sqlite, monkeypatch):
    """Both are told: the books of the first are made in the middle of judging."""
    sqlite().connect().close()  # the first goes another way
    engine, other = sqlite(), sqlite()
    drop(engine.connect())
    gc.collect()
    name_of = Engines.name_of
    late = [other]

    def losing(self, target):
        if late:
            drop(late.pop().connect())
            gc.collect()
        return name_of(self, target)

    monkeypatch.setattr(Engines, "name_of", losing)
    leaks = Judge(grace=None, ignore=[], root=Path()).leaks(owner, nobody_else)
    assert [leak.kind for leak in leaks] == ["collected", "collected"]
    assert owner.dropped == ()


def test_judged_in_a_forked_child(owner, sqlite, tmp_path):
    """What was lost before the fork can be told on both sides."""
    sqlite().connect().close()  # the first goes another way
    drop(create_engine(f"sqlite:///{tmp_path}/gone.db").connect())
    gc.collect()
    judge = Judge(grace=None, ignore=[], root=Path())
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        gc.collect()
        with suppress(Exception):
            os.write(writer, str(len(judge.leaks(owner, nobody_else))).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert os.read(reader, 9) == b"1"
    os.close(reader)
    assert len(judge.leaks(owner, nobody_else)) == 1


def test_in_a_forked_child(owner, sqlite):
    """What the parent has out is not the child's."""
    sqlite().connect().close()  # the first goes another way
    engine = sqlite()
    with engine.connect():
        reader, writer = os.pipe()
        child = os.fork()
        if not child:
            os.write(writer, str(len(book_of(engine).open_holds())).encode())
            os._exit(0)
        os.waitpid(child, 0)
        assert os.read(reader, 9) == b"0"
        os.close(reader)
        os.close(writer)
        assert len(book_of(engine).open_holds()) == 1


def test_a_second_thread_is_first(owners, owner, sqlite):
    """Whoever comes first makes the hooks; they are made once."""
    engine = sqlite(pool_size=8)
    ready = threading.Barrier(4)
    seen = set()

    def work():
        ready.wait()
        with engine.connect():
            seen.add(book_of(engine).id)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1
    assert counted(engine) == (4, 4, 4, 4)


def test_no_site(engine):
    """Where it was taken is told of none that has ended before somebody looked."""
    assert counted(engine) == (1,) * 4
    sites = poolwatch.snapshot().processes[0].sites
    assert book_of(engine).id not in {each.pool for each in sites}


def test_taken_off_in_its_sleep(owner, owners, sqlite):
    """It does not wake under somebody else's wrapper."""
    engine = sqlite(poolclass=StaticPool)
    ours = engine.pool.connect
    engine.pool.connect = functools.partial(ours)
    agent.ledger.observers.remove(owners)
    poolwatch.uninstrument()
    with engine.connect() as connection:
        assert connection.scalar(text("select 1")) == 1
    assert not engine.pool.dispatch.checkin.listeners
    assert "do_execute" not in vars(engine.dialect)
