"""Blame under asyncio: tasks, fixtures, loops that outlive a test, portals' threads."""

from __future__ import annotations

import pytest

HEAD = """
    import asyncio, gc
    import anyio, anyio.from_thread, anyio.to_thread
    import pytest_asyncio
    from sqlalchemy.ext.asyncio import create_async_engine, AsyncSession
    from sqlalchemy.pool import AsyncAdaptedQueuePool, NullPool

    def make_async(url="sqlite+aiosqlite:///async.db", **settings):
        settings.setdefault("poolclass", AsyncAdaptedQueuePool)
        return create_async_engine(url, **settings)
"""

ASYNCIO = (
    HEAD
    + """
    @pytest_asyncio.fixture
    async def aengine():
        engine = make_async()
        yield engine
        await engine.dispose()

    async def test_fine(aengine):
        async with aengine.connect() as connection:
            await connection.execute(text("select 1"))

    async def test_leaks(aengine):
        connection = await aengine.connect()  # here
        await connection.execute(text("select 1"))
        kept.append(connection)

    async def test_leaks_from_a_task(aengine):
        async def work():
            kept.append(await aengine.connect())  # here
        await asyncio.create_task(work())

    async def test_fine_task_cancelled_at_the_end(aengine):
        async def work():
            async with aengine.connect():
                await asyncio.sleep(60)
        kept.append(asyncio.create_task(work()))
        await asyncio.sleep(0.05)

    async def test_leaks_from_to_thread(aengine):
        await asyncio.to_thread(lambda: kept.append(engine.connect()))  # here

    @pytest_asyncio.fixture
    async def by_async_generator(aengine):
        kept.append(await aengine.connect())  # here
        yield

    async def test_leaks_in_an_async_fixture(by_async_generator): pass

    @pytest_asyncio.fixture
    async def in_its_end(aengine):
        yield
        kept.append(await aengine.connect())  # here

    async def test_leaks_in_its_end(in_its_end): pass

    @pytest_asyncio.fixture
    async def async_session(aengine):
        async with AsyncSession(aengine) as session:
            yield session

    async def test_fine_session(async_session):
        await async_session.execute(text("select 1"))

    async def test_leaks_an_async_session(aengine):
        session = AsyncSession(aengine)
        await session.execute(text("select 1"))  # here
        kept.append(session)

    async def test_fine_after(): pass
"""
)

SESSION_LOOP = (
    HEAD
    + """
    pytestmark = pytest.mark.asyncio(loop_scope="session")

    @pytest_asyncio.fixture(scope="session", loop_scope="session")
    async def aengine():
        engine = make_async()
        yield engine
        await engine.dispose()

    @pytest_asyncio.fixture(scope="session", loop_scope="session", autouse=True)
    async def poller(aengine):
        async def poll():
            while True:
                async with aengine.connect() as connection:
                    await asyncio.sleep(0.02)
        task = asyncio.create_task(poll())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    @pytest_asyncio.fixture(scope="module", loop_scope="session")
    async def by_module(aengine):
        kept.append(await aengine.connect())  # here
        yield

    @pytest_asyncio.fixture(scope="session", loop_scope="session")
    async def shared(aengine):
        async with AsyncSession(aengine) as session:
            yield session

    async def test_fine_first(shared):
        await shared.execute(text("select 1"))
        await asyncio.sleep(0.1)

    async def test_leaks(aengine):
        kept.append(await aengine.connect())  # here

    async def test_leaks_by_a_module_fixture(by_module): pass

    async def test_leaks_by_a_task_that_stays(aengine):
        async def work():
            async with aengine.connect():  # here
                taken.set()
                await asyncio.sleep(60)
        taken = asyncio.Event()
        kept.append(asyncio.create_task(work()))
        await taken.wait()

    later = asyncio.Event()

    async def test_leaks_later_by_a_task(aengine):
        async def work():
            await asyncio.sleep(0.1)
            kept.append(await aengine.connect())  # here
            later.set()
        kept.append(asyncio.create_task(work()))

    async def test_fine_last(shared):
        await shared.execute(text("select 1"))
        await later.wait()
"""
)

ANYIO = (
    HEAD
    + """
    pytestmark = pytest.mark.anyio

    @pytest.fixture(scope="module")
    def anyio_backend():
        return "asyncio"

    @pytest.fixture(scope="module")
    async def aengine():
        engine = make_async()
        yield engine
        await engine.dispose()

    @pytest.fixture(scope="module")
    async def poller(aengine):
        async def poll():
            while True:
                async with aengine.connect():
                    await anyio.sleep(0.02)
        task = asyncio.create_task(poll())
        yield
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def test_fine(aengine, poller):
        async with aengine.connect():
            await anyio.sleep(0.05)

    async def test_leaks(aengine):
        kept.append(await aengine.connect())  # here

    async def test_leaks_in_a_task_group(aengine):
        async def work():
            kept.append(await aengine.connect())  # here
        async with anyio.create_task_group() as group:
            group.start_soon(work)

    async def test_fine_worker_thread(aengine):
        await anyio.to_thread.run_sync(lambda: engine.connect().close())

    async def test_leaks_in_a_worker_thread(aengine):
        await anyio.to_thread.run_sync(lambda: kept.append(engine.connect()))  # here

    @pytest.fixture
    async def by_generator(aengine):
        kept.append(await aengine.connect())  # here
        yield

    async def test_leaks_in_a_fixture(by_generator): pass
    async def test_fine_last(aengine): pass
"""
)

PORTAL = (
    HEAD
    + """
    @pytest.fixture(scope="session")
    def portal():
        with anyio.from_thread.start_blocking_portal() as portal:
            yield portal

    @pytest.fixture(scope="session")
    def held_by_portal(portal):
        async def hold():
            async with aengine.connect():
                started.set()
                await anyio.sleep(60)
        started = threading.Event()
        future = portal.start_task_soon(hold)
        started.wait(60)
        yield
        future.cancel()

    aengine = make_async()

    async def endpoint(leak):
        connection = await aengine.connect()  # here
        if leak:
            kept.append(connection)
        else:
            await connection.close()

    async def sync_endpoint(leak):
        def work():
            connection = engine.connect()  # here
            if leak:
                kept.append(connection)
            else:
                connection.close()
        await anyio.to_thread.run_sync(work)

    def test_fine(portal, held_by_portal):
        portal.call(endpoint, False)

    def test_leaks(portal):
        portal.call(endpoint, True)

    def test_leaks_by_a_sync_endpoint(portal):
        portal.call(sync_endpoint, True)

    def test_leaks_by_run_coroutine_threadsafe(portal):
        async def loop():
            return asyncio.get_running_loop()
        asyncio.run_coroutine_threadsafe(endpoint(True), portal.call(loop)).result(60)

    def test_fine_last(portal):
        portal.call(sync_endpoint, False)
        portal.call(endpoint, False)
"""
)

POSTGRES = (
    HEAD
    + """
    import os
    aengine = make_async(os.environ["TEST_DSN"])

    async def test_fine():
        async with aengine.connect() as connection:
            await connection.execute(text("select 1"))
        await aengine.dispose()

    async def test_leaks():
        connection = await aengine.connect()  # here
        await connection.execute(text("select 'a secret'"))
        kept.append(connection)
        await aengine.dispose()

    async def test_fine_last():
        async with aengine.connect() as connection:
            await connection.execute(text("select 1"))
        await aengine.dispose()
"""
)


def test_asyncio_in_its_shapes(suites):
    suites.write("test_asyncio", ASYNCIO)
    suites.write("test_session_loop", SESSION_LOOP)
    suites.run("-W", "ignore").accuses_the_right_ones()


def test_anyio_and_portals(suites):
    # anyio's plugin and pytest-asyncio's automatic mode do not go together
    (suites.home / "tox.ini").write_text("[pytest]\n")
    suites.write("test_anyio", ANYIO)
    suites.write("test_portal", PORTAL)
    suites.run("-W", "ignore").accuses_the_right_ones()


def test_asyncpg(suites, postgres, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TEST_DSN", postgres.over_tcp().url("asyncpg"))
    suites.write("test_asyncpg", POSTGRES)
    ran = suites.run("-W", "ignore")
    ran.accuses_the_right_ones()
    (leak,) = ran.leaks
    assert leak["backend_pid"]
    assert "secret" not in ran.text.split("pool leaks")[-1]
