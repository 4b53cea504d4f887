"""Which lock a frame waits for, and which ones it has: from its source."""

from __future__ import annotations

import asyncio
import sys
import threading
from contextlib import contextmanager, nullcontext

import pytest
from helpers import until

from poolwatch.agent.waiting import locks
from poolwatch.agent.waiting.threads import with_callee
from poolwatch.diagnosis.references.frames import awaits

MUTEX = threading.Lock()


class Shared:
    of_the_class = threading.Lock()

    def __init__(self):
        self.lock = threading.Lock()
        self.inner = self

    @property
    def computed(self):
        raise SystemError


def as_with(shared):
    with shared.lock:
        pass


def as_second_item(shared):
    with nullcontext(), shared.lock:
        pass


def on_one_line(shared):
    with shared.lock: pass  # fmt: skip # noqa: E701


def as_a_global(_):
    with MUTEX:
        pass


def by_a_chain(shared):
    with shared.inner.inner.lock:
        pass


def of_a_class(_):
    with Shared.of_the_class:
        pass


def by_acquire(shared):
    shared.lock.acquire()
    shared.lock.release()


def by_acquire_true(shared):
    if shared.lock.acquire(True):
        shared.lock.release()


def in_a_closure(shared):
    def inner():
        with shared.lock:
            pass

    inner()


def with_a_timeout(shared):
    shared.lock.acquire(timeout=60)


def in_a_dict(shared):
    with {"lock": shared.lock}["lock"]:
        pass


@contextmanager
def blocked_thread(function, shared):
    thread = threading.Thread(target=function, args=(shared,), daemon=True)
    thread.start()
    until(lambda: function.__name__ in names_of(thread))
    yield thread


def frame_of(thread):
    return sys._current_frames()[thread.ident]


def names_of(thread):
    frame = sys._current_frames().get(thread.ident)
    return [each.f_code.co_name for each, _ in with_callee(frame, 100)]


@pytest.mark.parametrize(
    ("function", "known"),
    [
        (as_with, True),
        (as_second_item, True),
        (on_one_line, True),
        (as_a_global, True),
        (by_a_chain, True),
        (of_a_class, True),
        (by_acquire, True),
        (by_acquire_true, True),
        (in_a_closure, True),
        (with_a_timeout, False),
        (in_a_dict, False),
    ],
)
def test_the_lock_that_a_thread_waits_for(function, known):
    shared = Shared()
    held = {as_a_global: MUTEX, of_a_class: Shared.of_the_class}.get(
        function, shared.lock
    )
    with held, blocked_thread(function, shared) as thread:
        wanted = held if known else None
        until(lambda: locks.waited_for(frame_of(thread)) is wanted)
    thread.join()


def test_a_free_lock_is_not_waited_for():
    assert not locks.is_held(threading.Lock())
    assert not locks.is_held(threading.RLock())


def with_two(first, second, go_on):
    with first, second:
        go_on.wait(60)


def second_expression(first, second, go_on):
    with first, waits(second, go_on):
        pass


def waits(_, go_on):
    go_on.wait(60)
    return nullcontext()


def defines_a_function(first, second, go_on):
    with first:

        def later():
            go_on.wait(60)

    later()


def between(first, second, go_on):
    with first:
        pass
    with second:
        go_on.wait(60)


def has_acquired(first, second, go_on):
    first.acquire()
    try:
        go_on.wait(60)
    finally:
        first.release()


@pytest.mark.parametrize(
    ("function", "inside"),
    [
        (with_two, [True, True]),
        (second_expression, [True, False]),
        (defines_a_function, [False, False]),
        (between, [False, True]),
        (has_acquired, [False, False]),  # not proven
    ],
)
def test_the_locks_that_a_thread_has(function, inside):
    pair = threading.Lock(), threading.Lock()
    go_on = threading.Event()
    thread = threading.Thread(target=function, args=(*pair, go_on), daemon=True)
    thread.start()
    until(lambda: "wait" in names_of(thread))
    found = [
        lock
        for frame, above in with_callee(frame_of(thread), 100)
        for lock in locks.inside(frame, above)
    ]
    go_on.set()
    thread.join()
    assert [any(lock is each for lock in found) for each in pair] == inside


async def test_the_locks_that_a_task_has():
    lock, other, go_on = asyncio.Lock(), asyncio.Lock(), asyncio.Event()

    async def body():
        async with lock:
            await go_on.wait()

    async def second_item():
        async with other, Slow(go_on):
            pass

    class Slow:
        def __init__(self, event):
            self.event = event

        async def __aenter__(self):
            await self.event.wait()

        async def __aexit__(self, *error):
            pass

    tasks = [asyncio.create_task(each()) for each in (body, second_item)]
    await asyncio.sleep(0.01)
    found = [
        [
            held
            for each in awaits(task.get_coro())
            for held in locks.inside(each.cr_frame, None)
        ]
        for task in tasks
    ]
    go_on.set()
    await asyncio.gather(*tasks)
    assert found == [[lock], [other]]


def test_the_thread_that_has_an_rlock():
    lock = threading.RLock()
    assert locks.thread_with(lock) is None
    with lock, lock:
        assert locks.thread_with(lock) == threading.get_ident()
    assert locks.thread_with(threading.Lock()) is None


def test_nothing_of_the_application_is_called():
    class Hostile:
        def __getattr__(self, name):
            raise SystemError

        def __eq__(self, other):
            raise SystemError

        __hash__ = None

        def __repr__(self):
            raise SystemError

        @property
        def lock(self):
            raise SystemError

    hostile = Hostile()
    frame = sys._getframe()
    assert locks._resolve(("hostile", "lock"), frame) is None
    assert locks._resolve(("hostile", "other"), frame) is None
    assert locks._resolve(("missing",), frame) is None
    assert not locks.is_lock(hostile)
