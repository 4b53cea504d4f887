"""``poolwatch.no_leaks``: for any runner, and for production code."""

from __future__ import annotations

import asyncio
import threading
import time
import unittest
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest
from fix_core import book_of
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

import poolwatch


@pytest.fixture
def engine(sqlite, instrument):
    return sqlite(connect_args={"check_same_thread": False})


@pytest.fixture
async def aengine(tmp_path, instrument):
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path}/a.db", poolclass=AsyncAdaptedQueuePool
    )
    yield engine
    await engine.dispose()


def test_a_block_in_order(engine):
    with poolwatch.no_leaks(engine), engine.connect() as connection:
        connection.execute(text("select 1"))


@pytest.mark.parametrize("named", [True, False])
def test_a_block_that_leaks(engine, named):
    before, block = engine.connect(), poolwatch.no_leaks(engine if named else None)
    block.__enter__()
    kept = engine.connect()
    engine.connect()
    with pytest.raises(poolwatch.PoolLeakError) as caught:
        block.__exit__(None, None, None)
    assert {leak.kind for leak in caught.value.leaks} == {"held", "collected"}
    held = next(leak for leak in caught.value.leaks if leak.kind == "held")
    assert held.site.function == "test_a_block_that_leaks"
    assert "'kept'" in held.kept
    assert "this block leaked 2 connections" in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 15
    assert isinstance(caught.value, AssertionError)
    kept.close()
    before.close()


def test_the_failure_of_a_block_is_its_own(engine):
    with pytest.raises(ZeroDivisionError), poolwatch.no_leaks(engine):
        print(1 / len(engine.connect().info))


def test_a_decorator(engine):
    held = []

    @poolwatch.no_leaks(engine)
    def work(leak):
        connection = engine.connect()
        held.append(connection)
        if not leak:
            connection.close()
        return 42

    assert work(False) == 42
    with pytest.raises(poolwatch.PoolLeakError):
        work(True)
    assert work(False) == 42
    held[1].close()


async def test_async(aengine):
    async with poolwatch.no_leaks(aengine), aengine.connect() as connection:
        await connection.execute(text("select 1"))
    with pytest.raises(poolwatch.PoolLeakError):
        async with poolwatch.no_leaks(aengine):
            kept = await aengine.connect()
    await kept.close()

    held = []

    @poolwatch.no_leaks(aengine)
    async def work():
        held.append(await aengine.connect())

    with pytest.raises(poolwatch.PoolLeakError) as caught:
        await work()
    (leak,) = caught.value.leaks
    assert leak.site.function == "work"
    assert leak.task
    await held[0].close()


async def test_tasks_inside_and_beside(aengine):
    async def hold(gate):
        async with aengine.connect():
            await gate.wait()

    beside, inside = asyncio.Event(), asyncio.Event()
    other = asyncio.create_task(hold(beside))
    async with poolwatch.no_leaks(aengine, grace=5):
        task = asyncio.create_task(hold(inside))
        await asyncio.sleep(0.05)
        asyncio.get_running_loop().call_later(0.05, inside.set)
    await task
    beside.set()
    await other


def test_grace_and_allow(engine):
    def work(last):
        with engine.connect():
            taken.set()
            last()

    def start(last):
        taken.clear()
        threads.append(threading.Thread(target=work, args=(last,)))
        threads[-1].start()
        assert taken.wait(60)

    taken, release, threads = threading.Event(), threading.Event(), []
    with poolwatch.no_leaks(engine, grace=30):
        start(lambda: time.sleep(0.05))
    with pytest.raises(poolwatch.PoolLeakError), poolwatch.no_leaks(engine):
        start(release.wait)
    release.set()
    with poolwatch.no_leaks(engine, allow=1):
        kept = engine.connect()
    kept.close()
    for thread in threads:
        thread.join()
    for wrong in ({"grace": -1}, {"allow": -1}):
        with pytest.raises(ValueError, match="must be"):
            poolwatch.no_leaks(engine, **wrong)


async def test_the_advice(aengine):
    """Code that is still in its with block does not need one, but an end."""

    async def hold():
        async with aengine.connect():
            begun.set()
            await end.wait()

    async def take():
        return await aengine.connect()

    async def keep():
        connection = await take()
        begun.set()
        await end.wait()
        await connection.close()

    for work, advice in ((hold, "still runs: end its thread"), (keep, "use a with")):
        begun, end = asyncio.Event(), asyncio.Event()
        block = poolwatch.no_leaks(aengine)
        await block.__aenter__()
        task = asyncio.create_task(work())
        await begun.wait()
        with pytest.raises(poolwatch.PoolLeakError, match=advice):
            await block.__aexit__(None, None, None)
        end.set()
        await task


def test_a_poller_that_goes_on_is_no_leak(engine):
    def poll():
        while not end.is_set():
            with engine.connect():
                time.sleep(0.01)

    end = threading.Event()
    thread = threading.Thread(target=poll)
    with poolwatch.no_leaks(engine, grace=1):
        thread.start()
        time.sleep(0.05)
    end.set()
    thread.join()


def test_nested_and_reused(engine):
    block = poolwatch.no_leaks(engine)
    with block, block:
        engine.connect().close()
    with pytest.raises(poolwatch.PoolLeakError), block, suppress(AssertionError), block:
        kept = engine.connect()
    kept.close()


@pytest.mark.parametrize("named", [True, False])
async def test_blocks_of_tasks_overlap(aengine, named):
    """One decorated function, and one instance, in two requests at the same time."""
    block = poolwatch.no_leaks(aengine if named else None)

    async def work(ends):
        async with block, aengine.connect():
            await ends.wait()

    kept = []

    @block
    async def decorated(ends, leak=False):
        connection = await aengine.connect()
        await ends.wait()
        kept.append(connection) if leak else await connection.close()

    for one, other in ((work, work), (decorated, decorated), (work, decorated)):
        first, second = asyncio.Event(), asyncio.Event()
        tasks = [asyncio.create_task(one(first)), asyncio.create_task(other(second))]
        while aengine.pool.checkedout() < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        for end, task in zip((first, second), tasks, strict=True):
            end.set()
            await task
    first.clear()
    fine = asyncio.create_task(work(first))
    with pytest.raises(poolwatch.PoolLeakError, match="in decorated"):
        await decorated(second, leak=True)
    first.set()
    await fine
    await kept[0].close()


@pytest.mark.parametrize("targets", ["one", "all", "both"])
def test_blocks_of_threads_overlap(engine, targets):
    """Whoever instrumented the engine: nobody stops before the last one ends."""
    blocks = {
        "one": [poolwatch.no_leaks(engine)] * 2,
        "all": [poolwatch.no_leaks(), poolwatch.no_leaks()],
        "both": [poolwatch.no_leaks(engine), poolwatch.no_leaks()],
    }[targets]

    def work(block, begun, end):
        with block, engine.connect():
            begun.set()
            assert end.wait(60)

    for order in (1, -1):
        with ThreadPoolExecutor() as threads:
            running = []
            for block in blocks:
                begun, end = threading.Event(), threading.Event()
                running.append((threads.submit(work, block, begun, end), end))
                assert begun.wait(60)
            for job, end in running[::order]:
                end.set()
                job.result(60)
        assert "connect" not in vars(engine.pool)


def test_blocks_end_in_any_order(engine):
    first, second = poolwatch.no_leaks(engine), poolwatch.no_leaks(engine)
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    kept = engine.connect()
    with pytest.raises(poolwatch.PoolLeakError):
        second.__exit__(None, None, None)
    kept.close()


def test_what_others_do_meanwhile(engine):
    """Threads that others start, and jobs that others submit, do not count."""

    def hold(begun):
        with engine.connect():
            begun.set()
            assert release.wait(60)

    def serve(pool):
        assert requested.wait(60)
        begun = [threading.Event(), threading.Event()]
        started.append(threading.Thread(target=hold, args=begun[:1]))
        started[0].start()
        pool.submit(hold, begun[1])
        assert all(each.wait(60) for each in begun)

    requested, release, started = threading.Event(), threading.Event(), []
    with ThreadPoolExecutor(1) as pool:
        server = threading.Thread(target=serve, args=(pool,))
        server.start()
        with poolwatch.no_leaks(engine):
            pool.submit(engine.connect().close).result()
            requested.set()
            server.join()
        release.set()
    started[0].join()


def test_jobs_and_threads_of_the_block(engine):
    """Also of a pool that began before, and of threads that a thread starts."""
    kept = []

    def leak():
        kept.append(engine.connect())

    def start(target):
        thread = threading.Thread(target=target)
        thread.start()
        thread.join()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(engine.connect().close).result()
        for cause in (lambda: pool.submit(leak).result(), lambda: start(leak)):
            for begin in (cause, lambda cause=cause: start(cause)):
                with (
                    pytest.raises(poolwatch.PoolLeakError),
                    poolwatch.no_leaks(engine),
                ):
                    begin()
                kept.pop().close()


@pytest.mark.parametrize("named", [True, False])
def test_what_the_application_instrumented_stays(engine, instrument, named):
    instrument(engine, name="ours")
    with poolwatch.no_leaks(engine if named else None):
        pass
    assert book_of(engine).name == "ours"
    poolwatch.uninstrument()
    with poolwatch.no_leaks(engine if named else None):
        instrument()
    assert book_of(engine)


@pytest.mark.parametrize("named", [True, False])
def test_uninstrumented_in_a_block(engine, named):
    """Ends that are not recorded are no leaks, but what is out is one."""
    block = poolwatch.no_leaks(engine if named else None)
    with block, engine.connect() as connection:
        proxy = connection.connection
        poolwatch.uninstrument()
    assert not proxy.is_valid
    block.__enter__()
    kept = engine.connect()
    poolwatch.uninstrument()
    with pytest.raises(poolwatch.PoolLeakError):
        block.__exit__(None, None, None)
    kept.close()


@pytest.mark.parametrize("error", [None, ZeroDivisionError])
def test_nothing_is_left_behind(engine, error):
    patched = threading.Thread.start, ThreadPoolExecutor.submit
    with suppress(ZeroDivisionError), poolwatch.no_leaks(engine):
        engine.connect().close()
        thread = threading.Thread(target=engine.connect().close)
        thread.start()
        thread.join()
        if error is not None:
            raise error
    assert "run" not in vars(thread)
    assert "connect" not in vars(engine.pool)
    with suppress(ZeroDivisionError), poolwatch.no_leaks():
        if error is not None:
            raise error
    assert not poolwatch.agent.instrument.agent.ledger.observers
    assert patched == (threading.Thread.start, ThreadPoolExecutor.submit)


def test_what_cannot_be_decorated():
    """The call of a generator function ends before its code runs."""

    def generator():
        yield

    async def async_generator():
        yield

    for each in (generator, async_generator, unittest.TestCase):
        with pytest.raises(TypeError, match="inside it"):
            poolwatch.no_leaks()(each)


def test_unittest(engine):
    class Case(unittest.TestCase):
        def test_fine(self):
            with poolwatch.no_leaks(engine):
                engine.connect().close()

        @poolwatch.no_leaks(engine)
        def test_leaks(self):
            kept.append(engine.connect())

        def test_enter_context(self):
            self.enterContext(poolwatch.no_leaks(engine))
            engine.connect().close()

    kept = []
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    assert result.testsRun == 3
    assert result.errors == []
    ((case, said),) = result.failures
    assert case.id().endswith("test_leaks")
    assert "leaked 1 connection" in said
    kept[0].close()


def helper(engine):
    return engine.connect()


def first_caller(engine):
    return helper(engine)


def second_caller(engine):
    return helper(engine)


def test_callers_of_a_shared_helper_are_told_apart(engine):
    with pytest.raises(poolwatch.PoolLeakError) as caught, poolwatch.no_leaks(engine):
        kept = [take(engine) for take in (first_caller, first_caller, second_caller)]
    lines = [line.strip() for line in str(caught.value).splitlines()]
    assert "3 connections checked out at" in lines[1]
    assert "in helper, pool" in lines[1]
    assert lines[3].endswith("in first_caller (2 of 3)")
    assert lines[4].endswith("in second_caller (1 of 3)")
    for each in kept:
        each.close()
