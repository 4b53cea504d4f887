"""The note that the pool's own TimeoutError carries, from real exhausted pools."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from helpers import line_of, until_async
from sqlalchemy import create_engine
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import QueuePool

import poolwatch

HERE = Path(__file__)
EXHAUSTED = {"pool_size": 2, "max_overflow": 0, "pool_timeout": 0.2}


@pytest.fixture
def watched(socket_dir):
    yield
    poolwatch.uninstrument()


def test_note(watched, tmp_path):
    """Holders are grouped by call site, with count, longest age and what they do; the
    type and the message stay as they are."""
    url = f"sqlite:///{tmp_path}/db"
    engine = create_engine(url, poolclass=QueuePool, **EXHAUSTED)
    poolwatch.instrument(engine, name="orders")
    release, ready = threading.Event(), threading.Barrier(3)

    def hold():
        with engine.connect():  # site: hold
            ready.wait()
            release.wait()

    threads = [threading.Thread(target=hold, name=f"web-{n}") for n in range(2)]
    for thread in threads:
        thread.start()
    ready.wait()
    with pytest.raises(PoolTimeoutError, match="QueuePool limit of size 2") as caught:
        engine.connect()
    release.set()
    for thread in threads:
        thread.join()
    engine.dispose()
    assert type(caught.value) is PoolTimeoutError
    note = "\n".join(caught.value.__notes__)
    assert "pool 'orders' (size 2) has 2 connections checked out" in note
    line = line_of(HERE, "site: hold")
    assert f"2 held by diagnosis/test_timeout_note.py:{line} in hold" in note
    assert ": waiting for a lock, queue or other thread" in note


async def test_note_under_asyncio(watched, tmp_path):
    """The same in an asyncio application: tasks, and their await lines."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/db", **EXHAUSTED)
    watch = poolwatch.instrument(engine)
    release = asyncio.Event()

    async def hold():
        async with engine.connect():  # site: task
            await release.wait()

    tasks = [asyncio.create_task(hold(), name=f"task {n}") for n in range(2)]
    await until_async(lambda: len(watch.holds()) == 2)
    with pytest.raises(PoolTimeoutError) as caught:
        await engine.connect()
    release.set()
    await asyncio.gather(*tasks)
    await engine.dispose()
    note = "\n".join(caught.value.__notes__)
    assert f"test_timeout_note.py:{line_of(HERE, 'site: task')} in hold" in note
    assert "task task" in note


SCRIPT = """
import threading, poolwatch
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool
engine = create_engine("sqlite:///db", poolclass=QueuePool, pool_size=1, max_overflow=0,
                       pool_timeout=0.1)
poolwatch.instrument(engine, name="orders")
def leak():
    return engine.connect()
kept = leak()
engine.connect()
"""


def test_note_in_a_plain_script(tmp_path, socket_dir):
    """It is printed with the traceback, where nobody has asked for it."""
    (tmp_path / "script.py").write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    last = done.stderr.rstrip().splitlines()
    assert any(
        "poolwatch: pool 'orders' (size 1) has 1 connection checked out" in x
        for x in last
    )
    assert any("1 held by" in x and "script.py:9 in leak" in x for x in last)
