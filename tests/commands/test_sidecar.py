"""``poolwatch sidecar`` as a command."""

from __future__ import annotations

import json
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest
from helpers import LONG_S, stopped, until

from poolwatch.protocol import sockets

pytestmark = [pytest.mark.slow, pytest.mark.processes]

BARE = ("--no-metrics", "--no-history")
APP = """
import sys, threading
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool
import poolwatch
engine = create_engine(
    "sqlite://", poolclass=QueuePool, pool_size=1, max_overflow=0, pool_timeout=0.01
)
poolwatch.instrument(engine, name="shop")
held = engine.connect()
print("ready", flush=True)
for line in sys.stdin:
    try:
        engine.connect()
    except Exception as error:
        print(type(error).__name__, flush=True)
"""
LEAK = """
import platform, sys, threading
platform.node = lambda: "container"  # a name that its sidecar does not have
from sqlalchemy import create_engine
from sqlalchemy.pool import QueuePool
import poolwatch
engine = create_engine("sqlite://", poolclass=QueuePool)
poolwatch.instrument(engine)
kept = []
thread = threading.Thread(target=lambda: kept.append(engine.connect()))
thread.start()
thread.join()
print("ready", flush=True)
sys.stdin.read()
"""


class Sidecar:
    """One that runs, and what it has said."""

    def __init__(self, apps, *options):
        self.process = subprocess.Popen(
            [sys.executable, "-m", "poolwatch", "sidecar", *options],
            stderr=subprocess.PIPE,
            text=True,
            env=apps.environ,
            cwd=apps.home,
        )
        self.said = self.process.stderr.readline()

    def end(self, number=signal.SIGTERM):
        """Return its exit code, the rest of what it said, and the seconds it took."""
        began = time.monotonic()
        self.process.send_signal(number)
        _, said = self.process.communicate(timeout=LONG_S)
        return self.process.returncode, said, time.monotonic() - began


@pytest.fixture
def sidecar(apps):
    started = []

    def start(*options):
        started.append(Sidecar(apps, *options))
        return started[-1]

    yield start
    for each in started:
        each.process.kill()
        each.process.communicate()


@pytest.fixture
def hook():
    """The URL of a webhook, and what it has got."""
    got = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args): ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/s3cret", got
        server.shutdown()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_it_waits_for_a_process_and_ends_when_told_to(apps, sidecar, number):
    running = sidecar(*BARE)
    assert running.said == (
        f"poolwatch: sidecar: looks at {apps.directory} every 1 s\n"
    )
    code, said, _ = running.end(number)
    assert (code, said) == (0, "")


def test_incidents_reach_the_webhook(apps, sidecar, hook):
    url, got = hook
    running = sidecar(
        *BARE, "--every", "0.1", "--webhook", url, "--host", "pod-7", "--dir", "."
    )
    assert "s3cret" not in running.said
    running.end()
    running = sidecar(*BARE, "--every", "0.1", "--webhook", url, "--host", "pod-7")
    app = apps.start(APP)
    until(lambda: apps.ps()["processes"])
    app.stdin.write("take\n")
    app.stdin.flush()
    assert app.stdout.readline() == "TimeoutError\n"
    until(lambda: any(each["kind"] == "exhausted" for each in got))
    app.kill()
    until(lambda: [each["event"] for each in got if each["kind"] == "exhausted"][1:])
    began, ended = [each for each in got if each["kind"] == "exhausted"][:2]
    assert (began["event"], began["host"], began["pid"]) == ("began", "pod-7", app.pid)
    assert (ended["event"], ended["id"]) == ("ended", began["id"])
    assert running.end()[:2] == (0, "")


def test_a_second_one_says_so_and_ends(apps, sidecar):
    first = sidecar(*BARE)
    second = apps.poolwatch("sidecar", *BARE)
    assert second.returncode == 2
    assert second.stderr.count("\n") == 1
    assert f"another sidecar (pid {first.process.pid}) watches" in second.stderr
    assert list(sockets.addresses(apps.directory)) == []
    other = sidecar(*BARE, "--host", "other")
    assert other.end()[0] == 0
    first.process.kill()
    first.process.wait()
    assert sidecar(*BARE).end()[0] == 0


def test_a_process_that_is_stopped_delays_no_other(apps, sidecar, hook):
    """The looks go on, and so does the end; the stopped process ends no incident."""
    url, got = hook
    first = apps.start(APP, "first.py")
    second = apps.start(APP, "second.py")
    running = sidecar(*BARE, "--every", "0.2", "--webhook", url)
    with stopped(first.pid):
        second.stdin.write("take\n")
        second.stdin.flush()
        until(lambda: [e for e in got if e["pid"] == second.pid])
        assert running.end()[:2] == (0, "")


@pytest.mark.parametrize(
    ("options", "code", "sentence"),
    [
        (["--every", "0.01"], 2, "must be a number of seconds from 0.1"),
        (
            ["--keep", "7"],
            2,
            "'7' must be a positive number with a unit, such as 7d, 12h, 30m or 90s",
        ),
        (["--keep", "0d"], 2, "'0d' must be a positive number with a unit"),
        (
            ["--keep-size", "1GB"],
            2,
            "with a unit, such as 1GiB, 500MiB or 64KiB",
        ),
        (["--host", ""], 2, "is not a host name"),
        (["--print", "x"], 2, "invalid choice"),
        (["--metrics", "1", "--no-metrics"], 2, "not allowed with"),
        (["--history", "sqlite://", "--no-history"], 2, "not allowed with"),
        ([*BARE, "--webhook", "ftp://u:s3cret@h"], 2, "--webhook needs a complete URL"),
        ([*BARE, "--dsn", "mysql://u:s3cret@h/x"], 2, "not a PostgreSQL DSN"),
        ([*BARE, "--dsn", "s3cret"], 2, "DSN"),
        ([*BARE, "--dir", "/dev/null"], 2, "/dev/null is not a directory"),
        ([*BARE, "--dir", "/tmp"], 4, "other users may write to /tmp"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(apps, options, code, sentence):
    done = apps.poolwatch("sidecar", *options)
    assert done.returncode == code
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert "s3cret" not in done.stderr


def test_a_port_that_is_taken(apps, sidecar):
    first = sidecar("--metrics", "0", "--no-history")
    port = re.search(r"metrics at http://127.0.0.1:(\d+)/metrics", first.said)[1]
    again = apps.poolwatch(
        "sidecar", "--metrics", port, "--no-history", "--host", "other"
    )
    assert again.returncode == 2
    assert again.stderr.count("\n") == 1
    assert f"{port} is taken" in again.stderr


@pytest.mark.parametrize("name", ["dashboard", "alerts"])
def test_print_needs_nothing_else(apps, name):
    done = apps.poolwatch("sidecar", "--print", name)
    assert (done.returncode, done.stderr) == (0, "")
    assert "poolwatch_" in done.stdout


def test_an_incident_goes_on_when_the_sidecar_was_killed(apps, sidecar, hook, tmp_path):
    url, got = hook
    options = ("--no-metrics", "--every", "0.1", "--webhook", url)
    options += ("--history", f"sqlite:///{tmp_path}/h.db")

    def rows():
        with closing(sqlite3.connect(tmp_path / "h.db")) as store:
            return store.execute(
                "select id, kind, ended_at, last_seen_at from incidents"
            ).fetchall()

    apps.start(LEAK, "leak.py")
    running = sidecar(*options)
    until(lambda: got and rows())
    running.process.kill()
    running.process.wait()
    before = rows()
    running = sidecar(*options)
    until(lambda: rows()[0][3] > before[0][3])
    assert running.end()[:2] == (0, "")
    assert [row[:3] for row in rows()] == [row[:3] for row in before]
    assert [(each["event"], each["id"]) for each in got] == [("began", before[0][0])]


@pytest.mark.parametrize(
    ("package", "options", "extra"),
    [
        ("prometheus_client", ["--no-history"], "sidecar"),
        ("sqlalchemy", ["--no-metrics"], "sidecar"),
        ("opentelemetry", [*BARE, "--otlp"], "otel"),
    ],
)
def test_a_missing_extra_is_one_sentence(apps, package, options, extra):
    apps.write(f"raise ModuleNotFoundError(name={package!r})", f"{package}.py")
    done = apps.poolwatch("sidecar", *options)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"python -m pip install 'poolwatch[{extra}]'" in done.stderr
