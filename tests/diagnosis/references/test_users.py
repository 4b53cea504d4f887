"""Who has a connection in use: everybody, near a variable, and nobody else."""

from __future__ import annotations

import asyncio
import threading
from weakref import ref

import pytest

from poolwatch.diagnosis.references.users import find_users
from poolwatch.diagnosis.wait_graph import task_node, thread_node


class Proxy:
    pass


class Box:
    def __init__(self, content):
        self.content = content


@pytest.fixture
def thread():
    """Runs a function with an argument until the test is over."""
    go_on, threads = threading.Event(), []

    def run(function, *arguments):
        begun = threading.Event()
        new = threading.Thread(target=function, args=(*arguments, begun, go_on))
        threads.append(new)
        new.start()
        begun.wait()
        return thread_node(new.ident)

    yield run
    go_on.set()
    for each in threads:
        each.join()


def has(proxy, begun, go_on):
    begun.set()
    go_on.wait()


LOCAL = threading.local()


def keeps(box, begun, go_on):
    LOCAL.session = box.content
    box.content = None
    begun.set()
    go_on.wait()


def search(box, holder=None):
    """As a thread of its own: this test's variables are not its own."""
    found = []

    def run():
        found.append(find_users({"h": box}, {"h": holder})["h"])

    searching = threading.Thread(target=run)
    searching.start()
    searching.join()
    return found[0]


def test_all_threads_with_a_connection_are_users(thread):
    proxies = [Proxy()]
    one, two = thread(has, proxies[0]), thread(has, Box(proxies[0]))
    users = search(ref(proxies[0]))
    assert {one, two} <= set(users)


def test_a_thread_local_is_its_threads(thread):
    box = Box(Proxy())
    weak_ref = ref(box.content)
    node = thread(keeps, box)
    assert search(weak_ref, node) == (node,)
    assert search(weak_ref) is None  # of a task: not known


async def test_a_coroutine_is_its_tasks():
    """Its starter has it in a variable, too, but only the task goes on with it."""
    event = asyncio.Event()
    weak_refs = []

    async def work():
        proxy = Proxy()
        weak_refs.append(ref(proxy))
        await event.wait()
        return proxy

    coroutine = work()
    task = asyncio.create_task(coroutine)
    await asyncio.sleep(0.01)
    users = await asyncio.to_thread(search, weak_refs[0])
    event.set()
    await task
    assert users == (task_node(task),)


def test_a_dead_connection_has_no_users():
    proxy = Proxy()
    weak_ref = ref(proxy)
    del proxy
    assert search(weak_ref) == ()


def test_no_time_no_answer(monkeypatch):
    monkeypatch.setattr("poolwatch.diagnosis.references.users._BUDGET_S", -1.0)
    assert find_users({"h": ref(Proxy)}, {"h": None}) is None
