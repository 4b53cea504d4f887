"""Work items of worker threads, and the stack of the code that waits for them."""

from __future__ import annotations

import asyncio
import sys
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from poolwatch.agent.submitters import submitter_of
from poolwatch.stacks.capture import CallSites, pairs_of
from poolwatch.stacks.work_items import across_threads, work_item_at


def pairs_here():
    return pairs_of(sys._getframe())


def test_the_frame_that_runs_a_work_item():
    with ThreadPoolExecutor(1) as executor:
        stack = executor.submit(pairs_here).result()
    at = work_item_at(stack)
    assert stack[at][0].co_name == "run"
    assert work_item_at(pairs_here()) is None


def test_across_threads():
    """The frames that start the worker thread are left out."""
    with ThreadPoolExecutor(1) as executor:
        worker = executor.submit(pairs_here).result()
    submitter = pairs_here()
    whole = across_threads(worker, submitter)
    at = work_item_at(worker)
    assert whole[: at + 1] == list(worker[: at + 1])
    assert whole[at + 1 :] == list(submitter)


def test_a_worker_with_code_of_the_application_only_asks_nobody():
    """Its own frames have the call site."""
    asked = []
    sites = CallSites(submitter=lambda *_: asked.append(1) or (None, ()))
    with ThreadPoolExecutor(1) as executor:
        executor.submit(lambda: sites.capture(sys._getframe())).result()
    assert not asked


def test_a_plain_executor_is_asked_a_few_times_only():
    """Nothing waits for its work items as a task does."""
    asked = []
    sites = CallSites(submitter=lambda *_: asked.append(1) or (None, ()))
    library: dict[str, Any] = {"sys": sys}
    source = "def query(capture):\n    capture(sys._getframe())"
    exec(compile(source, "/lib/site-packages/django/db.py", "exec"), library)
    with ThreadPoolExecutor(1) as executor:
        for _ in range(20):
            executor.submit(library["query"], sites.capture).result()
    assert 0 < len(asked) < 10


def test_the_task_that_waits():
    """It is found by the future of the work item, and its stack is where it waits."""

    async def view():
        return await asyncio.to_thread(lambda: submitter_of(sys._getframe(), True))

    task, stack = asyncio.run(view())
    assert task is not None
    assert [code.co_name for code, _ in stack][-1] == "view"
