"""The view that asked, behind a bridge to a thread: real pools, loops and executors."""

from __future__ import annotations

import asyncio
import gc
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor, wait
from functools import partial
from types import MethodType

import anyio
import anyio.to_thread
import pytest
from asgiref.sync import async_to_sync, sync_to_async
from fix_core import Look
from sqlalchemy import event, text
from sqlalchemy.orm import Session

from poolwatch.agent.submitters import Submitters

KEPT = []


@pytest.fixture
def engine(instrument, sqlite):
    made = sqlite(pool_size=9, connect_args={"check_same_thread": False})
    instrument(made)
    yield made
    while KEPT:
        KEPT.pop().close()


class Work:
    """A helper that takes a connection, and holds it until it is told to end."""

    def __init__(self, engine):
        self.engine = engine
        self.taken = threading.Semaphore(0)
        self.over = threading.Event()

    def query(self):
        with self.engine.connect():
            self.taken.release()
            assert self.over.wait(20)

    async def until_taken(self, count=1):
        for _ in range(count):
            while not self.taken.acquire(blocking=False):  # noqa: ASYNC110 - of threads
                await asyncio.sleep(0.005)


async def by_to_thread(work):
    await asyncio.to_thread(work.query)


async def by_default_executor(work):
    await asyncio.get_running_loop().run_in_executor(None, work.query)


async def by_sync_to_async(work):
    await sync_to_async(work.query)()


async def by_sync_to_async_in_any_thread(work):
    await sync_to_async(work.query, thread_sensitive=False)()


async def by_anyio(work):
    await anyio.to_thread.run_sync(work.query)


async def by_gather(work):
    await asyncio.gather(asyncio.to_thread(work.query), asyncio.sleep(0))


async def by_wait_for(work):
    await asyncio.wait_for(asyncio.to_thread(work.query), 20)


async def by_wait(work):
    await asyncio.wait([asyncio.ensure_future(asyncio.to_thread(work.query))])


async def by_shield(work):
    await asyncio.shield(asyncio.to_thread(work.query))


async def by_task_group(work):
    async with asyncio.TaskGroup() as group:
        group.create_task(asyncio.to_thread(work.query))


BRIDGES = [
    by_to_thread, by_default_executor, by_sync_to_async, by_sync_to_async_in_any_thread,
    by_anyio, by_gather, by_wait_for, by_wait, by_shield, by_task_group,
]  # fmt: skip


async def seen_behind(*views):
    """The holds while each of these views waits for its helper."""
    work = views[0].args[0]
    tasks = [
        asyncio.create_task(view(), name=f"job {n}") for n, view in enumerate(views)
    ]
    await work.until_taken(len(tasks))
    process = Look().process
    work.over.set()
    await asyncio.gather(*tasks)
    return process.holds


def functions(hold):
    return [frame.function for frame in hold.stack]


@pytest.mark.parametrize("view", BRIDGES)
def test_the_view_that_waits_is_told(engine, view):
    work = Work(engine)
    (hold,) = asyncio.run(seen_behind(partial(view, work)))
    assert hold.site.function == "query"
    assert hold.caller.function == view.__name__
    assert functions(hold).index("query") < functions(hold).index(view.__name__)
    assert hold.verdict == "ok"


def test_the_task_is_named(engine):
    work = Work(engine)
    (hold,) = asyncio.run(seen_behind(partial(by_sync_to_async, work)))
    assert hold.task == "job 0"


async def another_view(work):
    await asyncio.to_thread(work.query)


def test_two_views_behind_one_executor_are_told_apart(engine):
    work = Work(engine)
    views = [partial(by_to_thread, work), partial(another_view, work)]
    holds = asyncio.run(seen_behind(*views))
    assert {hold.caller.function for hold in holds} == {"by_to_thread", "another_view"}
    assert len({hold.task for hold in holds}) == 2


def submit_and_ask(executor, work):
    executor.submit(work.query).result(20)


def map_over(executor, work):
    list(executor.map(lambda _: work.query(), [1]))


def wait_for_it(executor, work):
    wait([executor.submit(work.query)])


@pytest.mark.parametrize("view", [submit_and_ask, map_over, wait_for_it])
def test_a_thread_that_waits_for_the_result_is_told(engine, view):
    work = Work(engine)
    with ThreadPoolExecutor(1) as executor:
        asker = threading.Thread(target=view, args=(executor, work))
        asker.start()
        assert work.taken.acquire(timeout=20)
        found = Look().process.holds
        while view.__name__ not in functions(found[0]):  # it has yet to wait
            found = Look().process.holds
        work.over.set()
        asker.join()
    (hold,) = found
    assert hold.caller.function == view.__name__
    assert hold.task is None


def test_nobody_waits(engine):
    work = Work(engine)
    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(work.query)
        assert work.taken.acquire(timeout=20)
        (hold,) = Look().process.holds
        work.over.set()
        future.result()
    assert hold.caller is None
    assert hold.task is None


def test_an_async_view_under_a_synchronous_server(engine):
    work = Work(engine)
    caught = []

    def look():
        assert work.taken.acquire(timeout=20)
        caught.extend(Look().process.holds)
        work.over.set()

    looker = threading.Thread(target=look)
    looker.start()
    async_to_sync(by_sync_to_async)(work)
    looker.join()
    (hold,) = caught
    assert hold.caller.function == "by_sync_to_async"


# -- a worker that has gone on -------------------------------------------------------


def leak(engine, box, over):
    box.append(engine.connect())
    over.set()


def sleep(started, over):
    started.set()
    assert over.wait(20)


async def first(executor, *job):
    await asyncio.get_running_loop().run_in_executor(executor, *job)


async def second(executor, *job):
    await asyncio.get_running_loop().run_in_executor(executor, *job)


def test_a_worker_that_has_gone_on_to_another_job(engine):
    started, over, left = threading.Event(), threading.Event(), threading.Event()

    async def main():
        with ThreadPoolExecutor(1) as executor:
            await first(executor, leak, engine, KEPT, left)
            task = asyncio.create_task(second(executor, sleep, started, over))
            await asyncio.to_thread(started.wait, 20)
            (hold,) = Look().process.holds
            over.set()
            await task
            return hold

    hold = asyncio.run(main())
    assert hold.caller is None
    assert hold.task is None
    assert "second" not in functions(hold)


def test_a_job_that_was_seen_with_another_work_item_before(engine):
    """The same function runs again, and has passed the line that took it."""
    work, submitters = Work(engine), []

    def take_once():
        if not KEPT:
            KEPT.append(engine.connect())
        work.taken.release()
        assert work.over.wait(20)

    async def main():
        with ThreadPoolExecutor(1) as executor:
            for view in (first, second):
                work.over.clear()
                task = asyncio.create_task(view(executor, take_once))
                await work.until_taken()
                (hold,) = Look().process.holds
                submitters.append(hold.caller.function if hold.caller else None)
                work.over.set()
                await task

    asyncio.run(main())
    assert submitters == ["first", None]


def test_the_same_job_again_takes_another(engine):
    """Both are on one line: only the later hold is the work of now."""
    work = Work(engine)

    def take():
        KEPT.append(engine.connect())
        work.taken.release()
        assert work.over.wait(20)

    async def main():
        with ThreadPoolExecutor(1) as executor:
            work.over.set()
            await first(executor, take)
            work.over.clear()
            work.taken.acquire()
            task = asyncio.create_task(second(executor, take))
            await work.until_taken()
            older, later = Look().process.holds
            work.over.set()
            await task
            return older, later

    older, later = asyncio.run(main())
    assert older.caller is None or older.caller.function != "second"
    assert "second" in functions(later)
    assert "second" not in functions(older)


def test_callbacks_of_the_application_are_no_waiters(engine):
    """A callback may know a task that waits for something else."""
    work = Work(engine)

    async def other():
        await asyncio.sleep(20)

    async def main():
        stranger = asyncio.create_task(other())
        with ThreadPoolExecutor(1) as executor:
            future = asyncio.get_running_loop().run_in_executor(executor, work.query)
            future.add_done_callback(lambda _: stranger.cancel())
            future.add_done_callback(stranger.cancel)
            await work.until_taken()
            (hold,) = Look().process.holds
            work.over.set()
            await future
        stranger.cancel()
        return hold

    hold = asyncio.run(main())
    assert "other" not in functions(hold)


def test_a_callback_whose_function_has_no_name(engine):
    work = Work(engine)

    async def main():
        with ThreadPoolExecutor(1) as executor:
            future = asyncio.get_running_loop().run_in_executor(executor, work.query)
            future.add_done_callback(MethodType(partial(print, end=""), ""))
            await work.until_taken()
            (hold,) = Look().process.holds
            work.over.set()
            await future
        return hold

    hold = asyncio.run(main())
    assert hold.site.function == "query"


def test_a_thread_under_a_trace_function_keeps_its_variables(engine):
    """Under a debugger, that is, in the call that waits for the result."""
    work, inside, go_on = Work(engine), threading.Event(), threading.Event()
    results = []

    def tracer(frame, event, arg):
        here = frame.f_code.co_name == "result"
        if here and event == "line" and not inside.is_set():
            inside.set()
            go_on.wait(20)
        return tracer if here else None

    def ask(future):
        sys.settrace(tracer)
        try:
            results.append(future.result(20))
        finally:
            sys.settrace(None)

    with ThreadPoolExecutor(1) as executor:
        future = executor.submit(work.query)
        assert work.taken.acquire(timeout=20)
        asker = threading.Thread(target=ask, args=(future,))
        asker.start()
        assert inside.wait(20)
        assert Look().process.holds
        work.over.set()
        go_on.set()
        asker.join()
    assert results == [None]


def test_threads_that_look_side_by_side():
    """One notes a work item while another forgets those of holds that have ended."""
    submitters, item = Submitters(), weakref.ref(Work)

    class Ended(int):
        def __hash__(self):
            submitters._items[0] = item
            return int(self)

    submitters._items = {Ended(1): item}
    assert submitters.find([]) == {}


def test_a_look_keeps_nothing_alive(engine):
    work = Work(engine)

    class Thing:
        pass

    refs = []

    async def view():
        thing = Thing()
        refs.append(weakref.ref(thing))
        await asyncio.to_thread(work.query)

    gc.disable()
    try:
        asyncio.run(seen_behind(partial(lambda _: view(), work)))
        assert refs[0]() is None
    finally:
        gc.enable()


def test_the_verdict_is_not_led_astray(instrument, sqlite):
    """The frames of the submitter are not on the worker's stack: that is no leak."""
    made = sqlite(connect_args={"check_same_thread": False})
    instrument(made, long_after=1e-9)
    work = Work(made)
    (hold,) = asyncio.run(seen_behind(partial(by_to_thread, work)))
    assert hold.verdict == "long"


def test_a_call_site_in_the_bridge_itself(engine):
    """In the worker there are only libraries: the call site is in the view."""
    work = Work(engine)

    def hang():
        work.taken.release()
        return work.over.wait(20)

    @event.listens_for(engine, "connect")
    def _(connection, _):
        connection.create_function("hang", 0, hang)

    async def view(work):
        session = Session(work.engine)
        await sync_to_async(session.execute)(text("select hang()"))
        await sync_to_async(session.close)()

    (hold,) = asyncio.run(seen_behind(partial(view, work)))
    assert hold.site.function == "view"
    assert hold.stack.count(hold.site) == 1
    assert hold.task is not None
    assert hold.caller is None
