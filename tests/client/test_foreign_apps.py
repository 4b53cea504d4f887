"""Two foreign applications, real processes: everything is shown, and shown right."""

from __future__ import annotations

import socket
import time

THREADS = """
import sys, threading
from sqlalchemy import create_engine, text
import poolwatch

engine = create_engine(sys.argv[1], pool_size=20)
poolwatch.instrument(engine, name="threads")
ready, done = threading.Barrier(9), threading.Event()

def cycle():
    for _ in range(50):
        with engine.connect() as connection:
            connection.scalar(text("select 1"))

def work(number):
    cycle()
    if number % 2:
        with engine.connect() as connection:  # even
            connection.execute(text("select 'secret-literal', :p"), {"p": "secret-param"})
            ready.wait()
            done.wait()
    else:
        raw = engine.raw_connection()  # odd
        ready.wait()
        done.wait()
        raw.close()

threads = [threading.Thread(target=work, args=(n,), name=f"worker-{n}") for n in range(8)]
for thread in threads:
    thread.start()
ready.wait()
print("ready", flush=True)
sys.stdin.read()
done.set()
for thread in threads:
    thread.join()
engine.dispose()
"""  # noqa: E501

TASKS = """
import asyncio, sys, threading
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.pool import AsyncAdaptedQueuePool
import poolwatch

poolwatch.instrument()

ready = asyncio.Barrier(9)

async def on_postgres(engine, go):
    async with AsyncSession(engine) as session:
        await session.execute(text("select 1"))  # session
        await ready.wait()
        await go.wait()

async def on_sqlite(engine, go):
    for _ in range(30):
        async with engine.begin() as connection:
            await connection.execute(text("select 1"))
    async with engine.connect():  # sqlite
        await ready.wait()
        await go.wait()

async def main():
    postgres = create_async_engine(sys.argv[1], pool_size=10, pool_logging_name="pg")
    lite = create_async_engine(
        "sqlite+aiosqlite:///lite.db", poolclass=AsyncAdaptedQueuePool, pool_logging_name="lite")
    go = asyncio.Event()
    tasks = [asyncio.create_task(on_postgres(postgres, go), name=f"pg-{n}") for n in range(5)]
    tasks += [asyncio.create_task(on_sqlite(lite, go), name=f"lite-{n}") for n in range(3)]
    await ready.wait()
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.read)
    go.set()
    await asyncio.gather(*tasks)
    await postgres.dispose()
    await lite.dispose()

asyncio.run(main())
"""  # noqa: E501


def test_two_foreign_apps(apps, postgres):
    """One application with 8 threads, one with asyncio on psycopg 3 and aiosqlite: each
    hold has its line, its holder and its server row, and the counters add up; dead and
    hung sockets do not get in the way, and no secret is shown."""
    threads = apps.start(THREADS, "threads.py", postgres.url())
    tasks = apps.start(TASKS, "tasks.py", postgres.url("psycopg"))
    dead = apps.directory / "999999-00ff.sock"
    with socket.socket(socket.AF_UNIX) as left, socket.socket(socket.AF_UNIX) as hung:
        left.bind(str(dead))
        left.close()
        hung.bind(str(apps.directory / "999998-00ff.sock"))
        hung.listen(1)
        began = time.monotonic()
        document = apps.ps()
        took = time.monotonic() - began
    assert not dead.exists()
    assert [lost["pid"] for lost in document["unreachable"]] == [999998]
    assert took < 12  # the one that hangs is waited for once
    found = {process["pid"]: process for process in document["processes"]}
    assert set(found) == {threads.pid, tasks.pid}

    held = found[threads.pid]["holds"]
    file = str(apps.home / "threads.py")
    assert {hold["thread"]: hold["site"]["line"] for hold in held} == {
        f"worker-{n}": apps.line("even" if n % 2 else "odd", "threads.py")
        for n in range(8)
    }
    assert {(h["site"]["file"], h["site"]["function"]) for h in held} == {
        (file, "work")
    }
    assert all(hold["server"]["state"] for hold in held)
    (pool,) = found[threads.pid]["pools"]
    assert pool["counters"]["checkouts"] == 8 * 51
    assert pool["counters"]["checkins"] == 8 * 50

    held = found[tasks.pid]["holds"]
    expected = {f"pg-{n}": apps.line("session", "tasks.py") for n in range(5)}
    expected |= {f"lite-{n}": apps.line("sqlite", "tasks.py") for n in range(3)}
    assert {hold["task"]: hold["site"]["line"] for hold in held} == expected
    for hold in held:
        assert (hold["server"] is not None) == hold["task"].startswith("pg")
    for pool in found[tasks.pid]["pools"]:
        counters = pool["counters"]
        out = [hold for hold in held if hold["pool"] == pool["id"]]
        assert counters["checkouts"] == counters["checkins"] + len(out)
    assert sum(p["counters"]["checkouts"] for p in found[tasks.pid]["pools"]) == 98

    table = apps.poolwatch("ps", COLUMNS="80").stdout
    for secret in ("secret-literal", "secret-param"):
        assert secret not in str(document)
        assert secret not in table
    assert table.count("threads.py") >= 8
    assert apps.finish(threads) == apps.finish(tasks) == 0
    assert list(apps.directory.iterdir()) == []


APP = """
import sys
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool
import poolwatch
engine = create_engine("sqlite:///app.db", poolclass=QueuePool)
poolwatch.instrument(engine)
held = engine.raw_connection()
print("ready", flush=True)
sys.stdin.read()
held.close()
engine.dispose()
"""


def test_the_end_of_a_process(apps):
    """The socket is gone after a normal end and after sys.exit(); one that SIGTERM left
    behind is swept by the next viewer, who then says that there is nobody."""
    app = apps.start(APP)
    assert len(list(apps.directory.iterdir())) == 1
    assert apps.finish(app) == 0
    assert list(apps.directory.iterdir()) == []
    app = apps.start(APP + "sys.exit(7)\n")
    assert apps.finish(app) == 7
    assert list(apps.directory.iterdir()) == []
    app = apps.start(APP)
    app.terminate()
    app.wait(60)
    assert len(list(apps.directory.iterdir())) == 1
    done = apps.poolwatch("ps")
    assert done.returncode == 3
    assert str(apps.directory) in done.stderr
    assert "poolwatch.instrument(engine)" in done.stderr
    assert list(apps.directory.iterdir()) == []


def test_a_checkout_at_the_very_end(apps):
    """Hooks at interpreter exit, in finalizers and in late threads do no harm and leave
    no socket."""
    done = apps.run("""
        import atexit, threading
        def late():
            thread = threading.Thread(target=lambda: engine.raw_connection().close())
            try:
                thread.start()
                thread.join()
            except RuntimeError:
                pass
            engine.raw_connection().close()
            engine.dispose()
        atexit.register(late)
        import sqlite3
        from sqlalchemy import create_engine
        from sqlalchemy.pool import QueuePool
        import poolwatch
        engine = create_engine("sqlite:///app.db", poolclass=QueuePool,
                               connect_args={"check_same_thread": False})
        poolwatch.instrument(engine)
        class Last:
            def __del__(self):
                engine.raw_connection().close()
                engine.dispose()
        last = Last()
        engine.raw_connection().close()
    """)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(apps.directory.iterdir()) == []


FORK = """
import multiprocessing, os, sys, time, warnings
warnings.simplefilter("error")
from sqlalchemy import create_engine
from sqlalchemy.pool import NullPool
import poolwatch
engine = create_engine("sqlite:///app.db", poolclass=NullPool)
poolwatch.instrument(engine)

def child(pipe):
    assert poolwatch.snapshot().processes[0].holds == ()
    held = engine.raw_connection()
    (hold,) = poolwatch.snapshot().processes[0].holds
    assert hold.site.function == "child"
    assert poolwatch.snapshot().processes[0].pools[0].counters.checkouts == 1
    pipe.send(os.getpid())
    pipe.recv()
    held.close()

held = engine.raw_connection()
ours, theirs = multiprocessing.Pipe()
if sys.argv[1] == "fork":
    if os.fork() == 0:
        child(theirs)
        os._exit(0)
else:
    process = multiprocessing.get_context("fork").Process(target=child, args=(theirs,))
    process.start()
pid = ours.recv()
print("ready", flush=True)
print(pid, flush=True)
sys.stdin.readline()
ours.send("go")
(os.waitpid(pid, 0) if sys.argv[1] == "fork" else process.join())
print("alone", flush=True)
sys.stdin.read()
"""


def forked(apps, how):
    app = apps.start(FORK, "fork.py", how)
    child = int(app.stdout.readline())
    found = {p["pid"]: p for p in apps.ps()["processes"]}
    assert set(found) == {app.pid, child}
    functions = {
        pid: [h["site"]["function"] for h in p["holds"]] for pid, p in found.items()
    }
    assert functions == {app.pid: ["<module>"], child: ["child"]}
    app.stdin.write("\n")
    app.stdin.flush()
    assert app.stdout.readline() == "alone\n"
    (left,) = apps.ps()["processes"]
    assert (left["pid"], len(left["holds"])) == (app.pid, 1)
    assert apps.finish(app) == 0
    assert list(apps.directory.iterdir()) == []


def test_fork(apps):
    """A forked child has its own socket after its first checkout and shows its own
    holds only; the parent's socket survives the child. No warning of forks with
    threads."""
    forked(apps, "fork")


def test_multiprocessing(apps):
    """The same with multiprocessing's fork."""
    forked(apps, "multiprocessing")


def test_many_forks(apps):
    """A prefork server, with a viewer that hangs in the middle of a request: no fork
    waits for it, warns, or leaves a thread behind."""
    done = apps.run("""
        import os, socket, threading, time, warnings
        warnings.simplefilter("error")
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool
        import poolwatch
        engine = create_engine("sqlite:///app.db", poolclass=NullPool)
        poolwatch.instrument(engine)
        engine.raw_connection().close()
        (path,) = os.listdir(os.environ["POOLWATCH_DIR"])
        hung = []
        for number in range(12):
            viewer = socket.socket(socket.AF_UNIX)
            viewer.connect(os.path.join(os.environ["POOLWATCH_DIR"], path))
            viewer.send(b"GET /snap")
            hung.append(viewer)
            time.sleep(0.01)
            began = time.monotonic()
            pid = os.fork()
            if pid == 0:
                engine.raw_connection().close()
                os._exit(len(threading.enumerate()) - 2)
            assert time.monotonic() - began < 0.9, "the fork was held up"
            assert os.waitpid(pid, 0)[1] == 0
        for viewer in hung:
            viewer.close()
        assert [t.name for t in threading.enumerate()] == ["MainThread", "poolwatch"]
    """)
    assert (done.returncode, done.stderr) == (0, "")
    assert list(apps.directory.iterdir()) != []  # the children's, by _exit
