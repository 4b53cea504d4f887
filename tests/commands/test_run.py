"""``poolwatch run``: unchanged real programs, seen from outside."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
from helpers import until
from serving import POOLWATCH, SCRIPTS, free_port, knock, seen

pytestmark = pytest.mark.processes


@pytest.fixture
def shop(tmp_path):
    """A small application in its own files, without poolwatch in its code."""
    (tmp_path / "shop.py").write_text(
        f"""
import sys, time
from sqlalchemy import create_engine, text
from sqlalchemy.pool import QueuePool
engine = create_engine("sqlite:///{tmp_path}/shop.db", poolclass=QueuePool)
held = []
def take():
    if held:  # a worker that is asked often must not run out of connections
        return
    connection = engine.connect()  # site
    connection.execute(text("SELECT 1"))
    held.append(connection)
def app(environ, start_response):
    take()
    time.sleep(0.05)  # busy: the next request is for another worker
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"taken"]
async def asgi(scope, receive, send):
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({{"type": message["type"] + ".complete"}})
            if message["type"] == "lifespan.shutdown":
                return
    take()
    time.sleep(0.05)  # busy, as above
    await send({{"type": "http.response.start", "status": 200, "headers": []}})
    await send({{"type": "http.response.body", "body": b"taken"}})
if __name__ == "__main__":
    take()
    print("ready", flush=True)
    time.sleep(600 if len(sys.argv) < 2 else 0)
    sys.exit(7)
""",
        encoding="utf-8",
    )
    return tmp_path


@pytest.fixture
def run(shop, socket_dir):
    """Starts a command under ``poolwatch run``; ends it and its children."""
    started = []

    def start(*command, **changes):
        process = subprocess.Popen(
            [*POOLWATCH, "run", "--", *map(str, command)],
            cwd=shop,
            env={**os.environ, **changes},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()


def sites(processes):
    return {
        (Path(hold["site"]["file"]).name, hold["site"]["function"])
        for process in processes
        for hold in process["holds"]
    }


def workers(port, count):
    """The processes, when each of ``count`` workers holds a connection."""
    with ThreadPoolExecutor(count) as callers:  # at once: one worker would take all
        list(callers.map(knock, [port] * count))
    processes = seen()
    holding = [process for process in processes if process["holds"]]
    return processes if len(holding) == count else None


@pytest.mark.parametrize("command", [["shop.py"], ["-m", "shop"]])
def test_script_and_module(run, command):
    """A plain script, and python -m."""
    process = run(sys.executable, *command)
    assert process.stdout.readline() == "ready\n"
    (found,) = until(seen)
    assert found["pid"] == process.pid  # it has taken the place of the command
    assert sites([found]) == {("shop.py", "take")}


def test_the_pools_of_drivers(run, shop, postgres):
    """Pools of every library that the program loads; no other library is loaded."""
    (shop / "drivers.py").write_text(
        """
import asyncio, os, sys, time
from psycopg2.pool import ThreadedConnectionPool
assert "psycopg_pool" not in sys.modules and "sqlalchemy" not in sys.modules
from psycopg_pool import ConnectionPool
import asyncpg
DSN = os.environ["SHOP_DSN"]
def take_two():
    return two.getconn()
def take_three():
    return three.getconn()
async def take_one():
    pool = await asyncpg.create_pool(DSN, min_size=1, max_size=1)
    connection = await pool.acquire()
    print("ready", flush=True)
    await asyncio.sleep(600)
two = ThreadedConnectionPool(1, 2, DSN)
three = ConnectionPool(DSN, min_size=1, max_size=2, open=True)
held = take_two(), take_three()
assert "sqlalchemy" not in sys.modules
asyncio.run(take_one())
""",
        encoding="utf-8",
    )
    process = run(sys.executable, "drivers.py", SHOP_DSN=postgres.dsn)
    assert process.stdout.readline() == "ready\n"
    (found,) = until(seen)
    assert sites([found]) == {
        ("drivers.py", "take_two"),
        ("drivers.py", "take_three"),
        ("drivers.py", "take_one"),
    }
    assert sorted(pool["kind"] for pool in found["pools"]) == [
        "ConnectionPool",
        "ThreadedConnectionPool",
        "asyncpg.Pool",
    ]


def test_the_exit_code_is_the_programs_own(run):
    """Signals reach the program too."""
    process = run(sys.executable, "shop.py", "quick")
    assert process.wait(60) == 7
    process = run(sys.executable, "shop.py")
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == -signal.SIGTERM


def test_child_processes_are_instrumented(run, shop):
    (shop / "parent.py").write_text(
        "import subprocess, sys\nsubprocess.run([sys.executable, 'shop.py'])\n",
        encoding="utf-8",
    )
    run(sys.executable, "parent.py")
    (found,) = until(seen)
    assert found["program"] == "shop.py"


def test_gunicorn_with_four_workers(run):
    """Each worker has its own socket and its own ledger."""
    port = free_port()
    bind = f"127.0.0.1:{port}"
    run(SCRIPTS / "gunicorn", "--workers", 4, "--bind", bind, "shop:app")

    found = until(partial(workers, port, 4))
    assert sites(found) == {("shop.py", "take")}
    assert len({process["pid"] for process in found}) == 4


def test_uvicorn_with_two_workers(run):
    """Workers that are spawned, not forked."""
    port = free_port()
    run(SCRIPTS / "uvicorn", "--workers", 2, "--port", port, "shop:asgi")

    assert sites(until(partial(workers, port, 2))) == {("shop.py", "take")}


def test_a_celery_worker(run, shop):
    """The task's own line, in the forked worker."""
    (shop / "jobs.py").write_text(
        f"""
from celery import Celery
import shop
app = Celery("jobs", broker="filesystem://", broker_transport_options={{
    "data_folder_in": "{shop}/q", "data_folder_out": "{shop}/q",
    "control_folder": "{shop}/c"}})
@app.task
def job():
    shop.take()
""",
        encoding="utf-8",
    )
    (shop / "q").mkdir()
    (shop / "c").mkdir()
    subprocess.run(
        [sys.executable, "-c", "import jobs; jobs.job.delay()"], cwd=shop, check=True
    )
    run(SCRIPTS / "celery", "-A", "jobs", "worker", "--concurrency", 1, "-l", "error")
    found = until(seen)
    assert sites(found) == {("shop.py", "take")}
    assert "job" in [frame["function"] for frame in found[0]["holds"][0]["stack"]]


def test_a_suite_that_turns_warnings_into_errors(run, shop):
    """poolwatch causes no warning under pytest, though it is imported first."""
    (shop / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n", "utf-8")
    (shop / "test_shop.py").write_text(
        "import poolwatch, shop\n"
        "def test_served():\n"
        "    with shop.engine.connect(): pass\n"
        "    (process,) = poolwatch.snapshot().processes\n"
        "    assert process.pools[0].counters.checkouts == 1\n",
        encoding="utf-8",
    )
    # pytest-asyncio has a warning of its own
    without = ["-p", "no:asyncio", "-p", "no:cacheprovider"]
    process = run(sys.executable, "-m", "pytest", "-q", *without)
    said, _ = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "1 passed" in said


def test_no_trace_if_it_cannot_load(run, shop):
    """A broken poolwatch is silent, and the application's own sitecustomize runs."""
    (shop / "broken").mkdir()
    (shop / "broken" / "poolwatch").mkdir()
    (shop / "broken" / "poolwatch" / "__init__.py").write_text("raise RuntimeError")
    (shop / "broken" / "sitecustomize.py").write_text("import builtins; builtins.X = 1")
    code = "import sqlalchemy; print(X)"
    paths = f"{shop / 'broken'}{os.pathsep}{os.environ.get('PYTHONPATH', '')}"
    told = subprocess.run(
        [*POOLWATCH, "run", "--environment"], capture_output=True, text=True, check=True
    )
    site = told.stdout.strip().removeprefix("PYTHONPATH=").split(os.pathsep)[0]
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": f"{site}{os.pathsep}{paths}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.stdout, done.stderr) == ("1\n", "")


def test_nothing_is_loaded_that_the_program_does_not_load(run):
    """A program without SQLAlchemy stays without it; POOLWATCH_DISABLE works."""
    code = "import sys; print('sqlalchemy' in sys.modules, 'asyncio' in sys.modules)"
    assert run(sys.executable, "-c", code).stdout.read() == "False False\n"
    process = run(sys.executable, "shop.py", POOLWATCH_DISABLE="1")
    assert process.stdout.readline() == "ready\n"
    assert seen() == []


def test_wrong_usage():
    """One sentence, exit code 2."""
    for arguments, words in (
        ([], "no program given"),
        (["nosuch"], "program not found"),
    ):
        done = subprocess.run(
            [*POOLWATCH, "run", *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2
        assert words in done.stderr
