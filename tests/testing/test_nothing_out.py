"""``assert_no_pool_leaks.now()``: nothing is out at one point in time."""

from __future__ import annotations

import asyncio
import threading

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool, StaticPool

import poolwatch
from poolwatch.testing.fixtures import AssertNoPoolLeaks

nothing = AssertNoPoolLeaks()


@pytest.fixture
def engine(sqlite, instrument):
    instrument()
    return sqlite(connect_args={"check_same_thread": False})


def test_by_line_and_for_one_engine(engine, sqlite):
    other = sqlite()
    nothing.now()
    kept = engine.connect()
    with pytest.raises(poolwatch.PoolLeakError) as caught:
        nothing.now()
    said = str(caught.value).splitlines()
    assert said[0] == "1 connection is out at this point"
    assert " in test_by_line_and_for_one_engine, pool '" in said[1]
    assert "kept = engine.connect()" in said[2]
    (leak,) = caught.value.leaks
    assert leak.site.function == "test_by_line_and_for_one_engine"
    nothing.now(other)
    nothing.now(allow=1)
    with pytest.raises(poolwatch.PoolLeakError):
        nothing.now(engine)
    kept.close()
    nothing.now()
    nothing.now(engine)


def test_another_thread_holds(engine):
    held, done = threading.Event(), threading.Event()

    def work():
        with engine.connect():
            held.set()
            done.wait()

    thread = threading.Thread(target=work, name="worker")
    thread.start()
    held.wait()
    with pytest.raises(poolwatch.PoolLeakError, match="by thread worker"):
        nothing.now(engine)
    done.set()
    thread.join()
    nothing.now(engine)


async def test_async(instrument, tmp_path):
    instrument()
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{tmp_path}/a.db", poolclass=AsyncAdaptedQueuePool
    )
    nothing.now(engine)
    async with engine.connect() as connection:
        await connection.execute(text("select 1"))
        with pytest.raises(poolwatch.PoolLeakError, match="in test_async, pool"):
            await nothing.now(engine)
        with pytest.raises(poolwatch.PoolLeakError):
            nothing.now()
    await nothing.now(engine)
    released = asyncio.Event()
    task = asyncio.create_task(hold(engine, released), name="other")
    await asyncio.sleep(0.1)
    with pytest.raises(poolwatch.PoolLeakError, match="by task other"):
        nothing.now()
    released.set()
    await task
    await nothing.now()
    await engine.dispose()


async def hold(engine, released):
    async with engine.connect():
        await released.wait()


def test_what_does_not_count(engine, sqlite):
    with poolwatch.long_hold("LISTEN loop"), engine.connect():
        nothing.now()
    shared = sqlite(poolclass=StaticPool)
    with shared.connect():
        nothing.now()
    cycle = [engine.connect()]
    cycle.append(cycle)
    del cycle  # returned by the garbage collector, at the latest here
    nothing.now()


def test_a_block_stays_as_it_is(engine):
    with engine.connect():
        with nothing:
            pass
        with nothing(engine):
            pass


def test_bad_arguments(instrument, sqlite):
    with pytest.raises(ValueError, match="are not recorded: run pytest without"):
        nothing.now()
    with pytest.raises(ValueError, match="are not recorded"):
        nothing.now(sqlite())
    instrument()
    with pytest.raises(TypeError, match=r"cannot instrument builtins\.str"):
        nothing.now("engine")
    with pytest.raises(ValueError, match="allow must be a number of connections >= 0"):
        nothing.now(allow=-1)


STREAM = """
    import socket, urllib.request
    import uvicorn
    from fastapi import Depends, FastAPI
    from fastapi.responses import StreamingResponse

    app = FastAPI()
    more = threading.Event()

    def get_session():
        with Session(engine) as session:
            yield session

    @app.get("/holds")
    def holds(session: Session = Depends(get_session)):
        rows = session.execute(text("select 1"))  # here
        def body():
            yield "first"
            more.wait(10)
            yield str(rows.scalar())
        return StreamingResponse(body())

    @app.get("/returns")
    def returns():
        with Session(engine) as session:
            row = session.execute(text("select 1")).scalar()
        def body():
            yield "first"
            more.wait(10)
            yield str(row)
        return StreamingResponse(body())

    @pytest.fixture(scope="session")
    def url():
        own = socket.create_server(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error"))
        thread = threading.Thread(target=server.run, args=([own],))
        thread.start()
        yield f"http://127.0.0.1:{own.getsockname()[1]}"
        server.should_exit = True
        thread.join()

    @pytest.fixture
    def stream(url):
        def stream(path):
            more.clear()
            answer = urllib.request.urlopen(url + path)
            assert answer.read(5) == b"first"
            return answer
        return stream
"""


@pytest.mark.slow
def test_an_open_stream(suites):
    """mobius pull request #6, agentrove pull request #809: a stream that is open has
    given its connection back, or has not."""
    suites.write("conftest", STREAM)
    suites.write(
        "test_it",
        """
        from conftest import more

        def test_holds(stream, assert_no_pool_leaks):
            with stream("/holds") as answer:
                try:
                    assert_no_pool_leaks.now(engine)
                finally:
                    more.set()
                    answer.read()

        def test_returns(stream, assert_no_pool_leaks):
            with stream("/returns") as answer:
                assert_no_pool_leaks.now(engine)
                more.set()
                assert answer.read() == b"1"
            assert_no_pool_leaks.now()
        """,
    )
    ran = suites.run()
    assert ran.failed == ["test_holds"], ran.text
    assert ran.passed == ["test_returns"], ran.text
    assert "PoolLeakError: 1 connection is out at this point" in ran.text
    assert "in holds, pool 'test.db'" in ran.text
    assert ran.leaks == []
