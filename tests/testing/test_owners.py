"""Owners: whose code takes a connection, as the ledger tells it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import subprocess
import sys
import threading
from contextlib import suppress
from contextvars import Context, ContextVar, copy_context
from pathlib import Path

import pytest
from fix_core import book_of
from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool

import poolwatch
from poolwatch.agent.instrument import agent
from poolwatch.ledger import site_costs
from poolwatch.testing.judge import Judge
from poolwatch.testing.owners import Owner


class Item:
    """Stands for a test."""

    nodeid = "test_it.py::test_it"


class FixtureInSetup:
    """Stands for a fixture of a wider scope that is being set up."""

    is_set_up = False

    def __init__(self, owner):
        self.owner = owner


@pytest.fixture
def owner(owners):
    """The owner of the main thread's work."""
    owners.current = Owner("test", Item)
    return owners.current


def drop(connection):
    """Leave it to the collector."""
    cycle = [connection]
    cycle.append(cycle)


def leaks_of(owner):
    judge = Judge(grace=None, ignore=[], root=Path())
    return judge.leaks(owner, lambda _: None)


def test_a_hold_is_charged_to_its_owner(owner, sqlite):
    """With all that a report needs, until it ends."""
    engine = sqlite()
    with engine.connect() as connection:
        connection.execute(text("select 1 as plain"))
        [(hold, pool)] = owner.open_holds.items()
        assert pool is book_of(engine)
        assert pool.open_holds() == [hold]
        assert hold.stack.frames()[0].function == "test_a_hold_is_charged_to_its_owner"
        assert hold.statement() == "select 1 as plain"
        assert hold.requested_at <= hold.checked_out_at
        assert hold.proxy() is connection.connection
        assert hold.facts is not None
        assert hold.holder.ident == threading.get_ident()
        assert hold.holder.hold_count == 1
        with engine.connect():
            assert len(owner.open_holds) == 2
    assert owner.open_holds == {}
    assert owner.peak == 2
    assert hold.holder.hold_count == 0


def test_a_dropped_connection(owner, sqlite):
    """The owner is told, with the facts and the statement."""
    engine = sqlite()
    connection = engine.connect()
    connection.execute(text("select 1 as lost"))
    drop(connection)
    del connection
    gc.collect()
    [(pool, hold, _)] = owner.dropped
    assert pool is book_of(engine)
    assert hold.facts is not None
    assert hold.statement() == "select 1 as lost"
    assert owner.open_holds == {}


def test_a_connection_dropped_with_its_engine(owner, tmp_path):
    engine = create_engine(f"sqlite:///{tmp_path}/gone.db")
    drop(engine.connect())
    del engine
    gc.collect()
    [(pool, hold, now)] = owner.dropped
    assert owner.open_holds == {}
    assert hold.holder.hold_count == 0
    assert pool.leaked == 1
    [found] = site_costs.collected(pool.by_site())
    assert (found.site, found.count, found.callers) == (hold.stack.site(), 1, ())
    assert hold.checked_out_at <= now
    assert hold.facts is not None


DROPPED = """
import gc, sys
from poolwatch.agent.instrument import agent, instrument_without_agent
from poolwatch.testing.owners import Owner, Owners
owners = Owners()
agent.ledger.observers.append(owners)
instrument_without_agent()
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


def test_nothing_is_imported_in_a_collection(tmp_path):
    done = subprocess.run(
        [sys.executable, "-c", DROPPED, f"sqlite:///{tmp_path}/lost.db"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert (done.stdout, done.stderr) == ("\n", "")


def test_another_thread_has_its_own_owner(owner, owners, sqlite):
    engine, theirs = sqlite(), Owner("test", Item)
    owners.start_tracking()

    def take():
        for _ in range(2):
            with engine.connect():
                assert len(theirs.open_holds) == 1
                assert owner.open_holds == {}

    owners.current = theirs
    thread = threading.Thread(target=take)
    thread.start()
    owners.current = owner
    thread.join()
    owners.stop_tracking()
    assert theirs.peak == 1
    assert owner.open_holds == {}


def legacy(loop, coro):
    """A task factory from before 3.11, without a context."""
    return asyncio.Task(coro, loop=loop)


def with_options(loop, coro, **options):
    return asyncio.Task(coro, loop=loop, **options)


EAGER = getattr(asyncio, "eager_task_factory", None)
LOOPS = [("asyncio", each) for each in (None, legacy, with_options, EAGER)]


@pytest.mark.parametrize(("kind", "factory"), [*LOOPS, ("uvloop", None)])
def test_a_task_belongs_to_who_creates_it(request, owner, owners, kind, factory):
    """With any loop and task factory, and in the context that the caller passes."""
    found, seen = [], ContextVar("seen")

    async def work():
        seen.set(True)
        found.append(owners.owner())
        await asyncio.sleep(0)
        found.append(owners.owner())

    async def work_in_thread():
        await work()
        found.append(await asyncio.to_thread(owners.owner))

    async def main():
        loop = asyncio.get_running_loop()
        loop.set_task_factory(factory)
        tasks, contexts = [asyncio.create_task(work_in_thread())], []
        if factory is not legacy:
            contexts = [copy_context(), Context()]
            tasks += [loop.create_task(work(), context=each) for each in contexts]
        owners.current = Owner("test", Item)
        await asyncio.gather(*tasks)
        assert all(seen in each for each in contexts)
        loop.set_task_factory(None)

    new_loop = pytest.importorskip(kind).new_event_loop
    request.addfinalizer(owners.stop_tracking)
    owners.start_tracking()
    with asyncio.Runner(loop_factory=new_loop) as runner:
        runner.run(main())
    assert set(found) == {owner}


def test_a_declared_long_hold_has_no_owner(owner, sqlite):
    engine = sqlite()
    with poolwatch.long_hold("listens"), engine.connect():
        assert owner.open_holds == {}
        assert len(book_of(engine).open_holds()) == 1
    assert book_of(engine).open_holds() == []


def test_a_limit_keeps_the_stacks_of_the_peak(owner, sqlite):
    """And that of the longest hold."""
    owner.records_peak = True
    with sqlite().connect():
        pass
    [stack] = owner.at_peak
    assert stack[0].function == "test_a_limit_keeps_the_stacks_of_the_peak"
    assert owner.longest[0] > 0
    assert owner.longest[1] == stack


def test_an_owner_that_was_judged(owner, owners, sqlite):
    """A connection it takes after that is not forgotten."""
    owner.judged = True
    lent = sqlite().connect()
    assert list(owners.checked_out_after_judging.values()) == [owner]
    lent.close()


def test_a_fixture_that_is_set_up(owner, owners, sqlite):
    """It answers for the connections of its setup, and no longer."""
    engine, fixture = sqlite(), Owner("fixture", Item)
    owners.in_setup.append(in_setup := FixtureInSetup(fixture))
    with engine.connect():
        assert len(fixture.open_holds) == 1
        assert owner.open_holds == {}
    in_setup.is_set_up = True  # pytest does not tell at once
    with engine.connect():
        assert fixture.open_holds == {}
        assert len(owner.open_holds) == 1


def test_outside_of_all_tests(owners, sqlite):
    engine = sqlite()
    with engine.connect():
        assert len(book_of(engine).open_holds()) == 1
    assert book_of(engine).open_holds() == []


def test_an_observer_that_fails(owners, sqlite, caplog):
    """The application does not notice; the hooks of that pool are off."""
    engine = sqlite()
    owners.current = object()
    with caplog.at_level(logging.ERROR, "poolwatch"):
        for _ in range(2):
            with engine.connect() as connection:
                assert connection.scalar(text("select 1")) == 1
    assert len(caplog.records) == 1
    assert book_of(engine).switched_off()


def test_a_pool_with_one_connection_for_all(owner, owners, sqlite):
    """Its holds have no owner: the summary names the pool."""
    engine = sqlite(poolclass=StaticPool)
    for _ in range(2):
        with engine.connect() as connection:
            connection.execute(text("select 2"))
            [hold] = book_of(engine).open_holds()
            assert hold.statement() == "select 2"
    assert book_of(engine).open_holds() == []
    assert owners.unjudged == {book_of(engine).name: "StaticPool"}
    assert owner.open_holds == {}


def test_judged_after_uninstrument(owner, sqlite):
    """A hold that was taken before is told with its pool."""
    engine = sqlite(pool_logging_name="of old")
    connection = engine.connect()
    poolwatch.uninstrument()
    [(hold, pool)] = owner.open_holds.items()
    assert pool.name == "of old"
    assert pool.open_holds() == [hold]
    assert pool.id not in agent.ledger.pools
    [leak] = leaks_of(owner)
    assert (leak.kind, leak.pool) == ("held", "of old")
    connection.close()


def test_no_leaks_of_one_engine_opens_no_socket(owner, sqlite):
    engine = sqlite()
    kept = []
    with (
        pytest.raises(poolwatch.PoolLeakError, match="test_no_leaks_of_one_engine"),
        poolwatch.no_leaks(engine),
    ):
        kept.append(engine.connect())
    assert not agent.listens
    kept.pop().close()
    assert owner.open_holds == {}


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_judged_in_a_forked_child(owner, tmp_path):
    """A connection that was lost before the fork can be told on both sides."""
    drop(create_engine(f"sqlite:///{tmp_path}/gone.db").connect())
    gc.collect()
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        gc.collect()
        with suppress(Exception):
            os.write(writer, str(len(leaks_of(owner))).encode())
        os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    assert os.read(reader, 9) == b"1"
    os.close(reader)
    assert len(leaks_of(owner)) == 1
