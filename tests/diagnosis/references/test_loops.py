"""Event loops that run, that may run again, and that nobody runs."""

from __future__ import annotations

import asyncio
import gc
import socket
import threading
from contextvars import ContextVar

import fix_references
import pytest
from fix_references import running
from sqlalchemy.orm import Session

from poolwatch.diagnosis.references.follow import Guide
from poolwatch.diagnosis.references.loops import is_closed, is_stopped, loop_of, resumes

pooled, taken = fix_references.pooled, fix_references.taken
KEPT = {}
CURRENT = ContextVar("current_session", default=None)


@pytest.fixture(autouse=True)
def empty_cache(pooled):
    yield
    for loop in (each for each in KEPT.values() if hasattr(each, "run_forever")):
        for task in asyncio.all_tasks(loop):
            task.cancel()
        if not loop.is_closed():
            loop.run_until_complete(asyncio.sleep(0))
            loop.close()
    KEPT.clear()


async def hold(engine, ready):
    with engine.connect() as connection:
        ready.set()
        await asyncio.sleep(600)
        connection.close()


async def leave_a_task(engine):
    ready = asyncio.Event()
    KEPT["task"] = asyncio.create_task(hold(engine, ready), name="left")
    await ready.wait()


def in_a_thread(function, *arguments):
    thread = threading.Thread(target=function, args=arguments)
    thread.start()
    thread.join()


def run_once(engine):
    KEPT["loop"] = loop = asyncio.new_event_loop()
    loop.run_until_complete(leave_a_task(engine))


# -- is it running? ------------------------------------------------------------------


async def test_a_loop_that_runs():
    loop = asyncio.get_running_loop()
    assert not is_stopped(loop)
    assert loop_of(asyncio.current_task()) is loop


def test_a_loop_between_two_runs_and_after_them():
    loop = asyncio.new_event_loop()
    assert is_stopped(loop)
    assert not is_closed(loop)
    loop.close()
    assert is_closed(loop)


def test_a_loop_of_the_application_is_not_asked():
    """What it calls running is unknown: so it is not called stopped."""
    asked = []

    class Loop(asyncio.SelectorEventLoop):
        def is_running(self):
            asked.append("is_running")
            return False

    class Slow(asyncio.SelectorEventLoop):
        def __getattribute__(self, name):
            asked.append(name)
            return super().__getattribute__(name)

    one, other = Loop(), Slow()
    asked.clear()
    assert not is_stopped(one)
    assert is_stopped(other)
    assert not is_closed(other)
    assert asked == []
    one.close()
    other.close()


def test_the_current_loop_of_a_thread_may_be_run_again():
    guide = Guide()
    loop = asyncio.new_event_loop()
    assert not resumes(guide, loop)
    asyncio.set_event_loop(loop)
    try:
        assert resumes(guide, loop)
    finally:
        asyncio.set_event_loop(None)
        loop.close()
    assert not resumes(guide, loop)


# -- what it has ---------------------------------------------------------------------


def test_task_of_a_loop_that_nobody_runs(taken, pooled):
    """It is pending for ever: that is no use."""
    taken.task = asyncio.current_task
    in_a_thread(run_once, pooled)
    path = taken.path()
    assert path.kind == "suspended frame"
    assert path.steps[0].startswith("local 'connection' of hold at")
    assert not path.in_use
    assert taken.look().unseen is None


def test_task_of_a_loop_that_a_frame_may_run_again(taken, pooled):
    """A worker has its loop in a variable, and waits for the next job."""

    def work(ready, stop):
        loop = asyncio.new_event_loop()
        loop.run_until_complete(leave_a_task(pooled))
        ready.set()
        stop.wait()
        KEPT["loop"] = loop

    with running(work):
        path = taken.path()
        assert path.in_use
        assert path.owner == "left"


def test_task_of_a_loop_that_a_frame_will_not_run_again(taken, pooled):
    """It has the loop in a variable, and reads that no more."""

    def work(ready, stop):
        loop = KEPT["loop"] = asyncio.new_event_loop()
        loop.run_until_complete(leave_a_task(pooled))
        ready.set()
        stop.wait()

    taken.task = asyncio.current_task
    with running(work):
        assert not taken.path().in_use


def test_call_of_a_loop_that_nobody_runs(taken, pooled):
    def job():
        KEPT["loop"] = loop = asyncio.new_event_loop()
        loop.call_later(600, pooled.connect().close)

    in_a_thread(job)
    assert not any(path.in_use for path in taken.look().paths.values())


def call_now(engine):
    for handle in asyncio.get_running_loop()._scheduled:
        if getattr(handle._callback, "__name__", "") == "close":
            handle._callback()
            handle.cancel()
    assert engine.pool.checkedout() == 0


async def looked(taken):
    return await asyncio.to_thread(taken.path)


async def test_call_of_a_loop_that_runs(taken, pooled):
    asyncio.get_running_loop().call_later(600, pooled.connect().close)
    path = await looked(taken)
    assert path.in_use
    assert path.kind == "scheduled call"
    assert path.steps[0] == "a call scheduled on the event loop"
    call_now(pooled)


async def test_context_of_a_call(taken, pooled):
    """The call keeps the context of who scheduled it, and never uses it."""
    session = Session(pooled)
    session.connection()
    CURRENT.set(session)
    asyncio.get_running_loop().call_later(600, print)
    CURRENT.set(None)
    del session
    path = await looked(taken)
    assert not path.in_use
    assert path.kind == "context variable"
    assert path.steps[0] == "the context of a call scheduled on the event loop"
    for handle in asyncio.get_running_loop()._scheduled:
        if handle._callback is print:
            handle._context[CURRENT].close()
            handle.cancel()


async def test_callback_of_a_task(taken, pooled):
    """It is called when the task is done."""
    session = Session(pooled)
    session.connection()
    task = asyncio.create_task(asyncio.sleep(600), name="mail")
    task.add_done_callback(lambda _, session=session: session.close())
    del session
    path = await looked(taken)
    assert path.in_use
    assert path.steps[0] == "a callback of task mail"
    task.cancel()
    await asyncio.wait([task])
    gc.collect()


async def test_reader_of_a_socket(taken, pooled):
    one, other = socket.socketpair()
    connection = pooled.connect()
    asyncio.get_running_loop().add_reader(one, connection.close)
    del connection
    path = await looked(taken)
    assert path.in_use
    assert path.kind == "scheduled call"
    other.send(b"x")
    await asyncio.sleep(0.05)
    asyncio.get_running_loop().remove_reader(one)
    one.close()
    other.close()


async def test_protocol_of_a_socket(taken, pooled):
    """It keeps its connection until its client hangs up."""

    class Conversation(asyncio.Protocol):
        def connection_made(self, transport):
            self.connection = pooled.connect()

        def connection_lost(self, error):
            self.connection.close()

    loop = asyncio.get_running_loop()
    server = await loop.create_server(Conversation, "127.0.0.1", 0)
    _, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await asyncio.sleep(0.05)
    path = await looked(taken)
    assert path.in_use
    assert path.steps[1:] == (
        "bound method '_read_ready'",
        "attribute 'connection'",
        "its connection",
    )
    writer.close()
    server.close()
    await asyncio.sleep(0.05)


# -- servers -------------------------------------------------------------------------


def of_server(name):
    """An object of a server that knows all connections."""
    return type(name, (), {"__module__": "uvicorn.server"})()


def stream_of(engine):
    with engine.connect():
        yield


async def serve(scope):
    next(scope["state"]["stream"])
    await asyncio.sleep(600)


async def test_the_request_is_told_and_not_the_server(taken, pooled):
    """Both reach the connection; the request has it."""
    server, connection = of_server("Server"), of_server("Connection")
    server.connections = {connection}
    connection.scope = {"state": {"stream": stream_of(pooled)}}
    task = asyncio.create_task(serve(connection.scope), name="request")
    await asyncio.sleep(0)
    path = await looked(taken)
    assert path.in_use
    assert path.owner == "request"
    assert path.steps[0].startswith("local 'scope' of serve at")
    task.cancel()
    await asyncio.wait([task])
    path = await looked(taken)
    assert not path.in_use  # the server has the last request, which has ended
    connection.scope["state"]["stream"].close()


async def test_what_a_response_has_is_not_stored(taken, pooled):
    """However far away: an attribute of a server's object is its stream."""
    server, response = of_server("Server"), of_server("Response")
    server.a = of_server("A")
    server.a.b = of_server("B")
    server.a.b.response = response
    response.stream = stream_of(pooled)
    next(response.stream)
    del response
    path = await looked(taken)
    assert path.in_use
    server.a.b.response.stream.close()
