"""``poolwatch check`` as a command."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.processes]

POOLWATCH = [sys.executable, "-m", "poolwatch"]
APP = """
import sys, threading
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool
import poolwatch
engine = create_engine("sqlite://", poolclass=QueuePool)
poolwatch.instrument(engine, name="shop")
kept = []
def leak():
    kept.append(engine.connect())
if sys.argv[1] == "leak":
    thread = threading.Thread(target=leak, name="boot")
    thread.start()
    thread.join()
else:
    engine.connect().close()
print("ready", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def app(socket_dir):
    started = []

    def start(kind):
        process = subprocess.Popen(
            [sys.executable, "-c", APP, kind],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"

    yield start
    for process in started:
        process.communicate("")


def poolwatch(*arguments):
    return subprocess.run(
        [*POOLWATCH, *arguments], capture_output=True, text=True, check=False
    )


def check_into_a_closed_pipe():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [*POOLWATCH, "check"],
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            stdout=closed,
            stderr=subprocess.PIPE,
            check=False,
        )
    return done.returncode, done.stderr


def test_check(app, socket_dir):
    """Exit codes: 3 no process, 0 fine, 1 a finding, 2 usage."""
    assert poolwatch("check").returncode == 3
    app("fine")
    done = poolwatch("check")
    assert (done.returncode, done.stdout) == (0, "")
    app("leak")
    done = poolwatch("check")
    assert done.returncode == 1
    assert done.stdout.startswith("critical leaked.orphaned: ")
    (finding,) = json.loads(poolwatch("check", "--json").stdout)["findings"]
    assert finding["kind"] == "leaked.orphaned"
    assert poolwatch("check", "--severity", "bad").returncode == 2
    assert check_into_a_closed_pipe() == (1, b"")


def test_the_workers_of_one_program(app, socket_dir):
    """The same fault in all of them is one line; in JSON each process has its own."""
    for _ in range(4):
        app("leak")
    done = poolwatch("check")
    (line,) = done.stdout.splitlines()
    assert done.returncode == 1
    assert line.startswith("critical leaked.orphaned: <string>:10 checked out 4 ")
    assert " in 4 processes; their threads or tasks have ended without " in line
    assert line.count("(pid ") == 4
    assert len(json.loads(poolwatch("check", "--json").stdout)["findings"]) == 4

    shown = poolwatch("ps").stdout
    assert shown.count("CRITICAL leaked.orphaned") == 1
    assert shown.startswith("CRITICAL leaked.orphaned: <string>:10 checked out 4 ")
    documents = json.loads(poolwatch("ps", "--json").stdout)["processes"]
    assert [len(each["findings"]) for each in documents] == [1] * 4
