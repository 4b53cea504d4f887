"""Under asyncio the call site is the user's own await, with every driver."""

from __future__ import annotations

import asyncio
import sys

import pytest
from helpers import until_async
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool

ON_POSTGRES = [
    pytest.param(driver, marks=pytest.mark.postgres)
    for driver in ("psycopg", "asyncpg")
]


@pytest.fixture(params=["aiosqlite", *ON_POSTGRES])
async def engine(request, tmp_path):
    if request.param == "aiosqlite":
        url = f"sqlite+aiosqlite:///{tmp_path}/sites.db"
    else:
        url = request.getfixturevalue("postgres").url(request.param)
    engine = create_async_engine(url, poolclass=AsyncAdaptedQueuePool, pool_size=10)
    yield engine
    await engine.dispose()


def only(watch):
    (hold,) = watch.holds()
    return hold


def line():
    return sys._getframe(1).f_lineno


async def test_one_task(instrument, engine):
    """async with, await, sessions and run_sync: file, line and function of the user's
    frame, and its callers behind it."""
    watch = instrument(engine)

    async def connects():
        async with engine.connect():
            return only(watch), line() - 1

    async def awaits():
        connection = await engine.connect()
        hold = only(watch), line() - 1
        await connection.close()
        return hold

    async def session():
        async with AsyncSession(engine) as session:
            await session.execute(text("select 1"))
            return only(watch), line() - 1

    async def multi_line():
        async with AsyncSession(engine) as session:
            await session.execute(
                text("select 1"),
            )
            return only(watch), line() - 3

    for function in (connects, awaits, session, multi_line):
        hold, where = await function()
        assert (hold.site.file, hold.site.line) == (__file__, where), function
        assert hold.site.function == function.__name__
        outer = [frame.function for frame in hold.stack]
        assert outer[outer.index(function.__name__) + 1] == "test_one_task"
        assert hold.task == asyncio.current_task().get_name()


async def test_run_sync(instrument, engine):
    """Sync code under run_sync is the user's code: its line is the site."""
    watch = instrument(engine)

    def in_sync(session):
        session.execute(text("select 1"))
        return only(watch)

    async with AsyncSession(engine) as session:
        hold = await session.run_sync(in_sync)
    functions = [frame.function for frame in hold.stack]
    assert hold.site.function == "in_sync"
    assert "test_run_sync" in functions


async def test_many_tasks(instrument, engine):
    """Tasks of a gather and of a group: each hold has its own task, site and present
    line, and waits have theirs."""
    watch = instrument(engine)
    release = asyncio.Event()

    async def handler():
        async with engine.connect():
            await release.wait()

    async def other():
        async with engine.connect():
            await asyncio.sleep(0)
            await release.wait()

    async with asyncio.TaskGroup() as group:
        for number in range(4):
            group.create_task(handler(), name=f"handler-{number}")
            group.create_task(other(), name=f"other-{number}")
        await until_async(
            lambda: [h.now[0].function for h in watch.holds()] == ["wait"] * 8
        )
        for hold in watch.holds():
            kind = hold.task.partition("-")[0]
            assert hold.site.function == kind
            assert [f.function for f in hold.now if f.file == __file__] == [kind]
            assert hold.now[0].function == "wait"
        assert len({hold.task for hold in watch.holds()}) == 8
        release.set()
    assert watch.holds() == ()
