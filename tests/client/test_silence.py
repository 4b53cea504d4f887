"""Databases and processes that stop, hang, come back or end: what every face says.

Real processes, a real PostgreSQL; ``check``, ``ps`` and the dashboard's first lines.
"""

from __future__ import annotations

import json
import re
import socket
import time
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from pathlib import Path

import pytest
from drawn import rows, selection
from helpers import stopped

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.tui.draw.line import plain
from poolwatch.tui.panels import header
from poolwatch.tui.polling import read_source
from poolwatch.tui.state.board import Board

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not Path("/proc/self/stat").exists(), reason="the kernel says it in /proc"
    ),
]

APP = """
import sys, threading
from sqlalchemy import create_engine, text
import poolwatch

engine = create_engine(sys.argv[1], pool_size=3, max_overflow=0)
poolwatch.instrument(engine, name=sys.argv[2])

def keep(kept=[]):
    kept.append(engine.connect())

held = engine.connect()
if "leak" in sys.argv:
    thread = threading.Thread(target=keep, name="boot")
    thread.start()
    thread.join()
print("ready", flush=True)
sys.stdin.read()
"""


class Dashboard:
    """What the dashboard draws, without a terminal."""

    def __init__(self, directory):
        self.source = LiveSource(Client(directory), environ={})
        self.board = Board()
        self.took = 0.0

    def lines(self):
        """Look; the header and the two lines below it."""
        reading = read_source(self.source)
        now = time.monotonic()
        self.took = now - reading.requested_at
        self.board.accept(reading)
        selection(self.board, now)
        lines = [header.header(self.board, now, "12:00:00", 160)]
        return [plain(line) for line in [*lines, *header.why(self.board, now, 200, 2)]]

    def until(self, *words, seconds=20.0):
        """Look again and again, until the lines have all of these words."""
        deadline = time.monotonic() + seconds
        while True:
            lines = self.lines()
            if all(word in "\n".join(lines) for word in words):
                return lines
            assert time.monotonic() < deadline, lines
            time.sleep(0.1)

    def rows(self):
        lines = rows(self.board, 200, now=time.monotonic())
        return [plain(line) for line in lines]


@pytest.fixture
def dashboard(apps):
    made = Dashboard(apps.directory)
    yield made
    made.source.close()


@pytest.fixture
def shop(apps):
    """``shop("orders", server)``: an application with one hold, or one more leaked."""

    def start(name, server, *more):
        return apps.start(APP, f"{name}.py", server.url(), name, *more)

    return start


def check(apps, *more):
    done = apps.poolwatch("check", *more)
    return done.returncode, done.stdout


@contextmanager
def fill_queue(apps):
    """Connect to the only process until it can take no more."""
    (path,) = apps.directory.iterdir()
    with ExitStack() as connections:
        with suppress(BlockingIOError):
            while True:
                each = connections.enter_context(socket.socket(socket.AF_UNIX))
                each.setblocking(False)
                each.connect(str(path))
        yield


@pytest.mark.parametrize("door", ["unix", "tcp"])
def test_a_server_that_is_stopped_and_started(
    apps, dashboard, shop, start_postgres, door
):
    """One finding for two processes; with and without memory; gone when it is back."""
    server = start_postgres() if door == "unix" else start_postgres().over_tcp()
    shop("orders", server)
    shop("billing", server)
    dashboard.until("2 processes", "✓ healthy")
    assert check(apps) == (0, "")
    server.stop("immediate")
    top, first, _ = dashboard.lines()
    assert "db DOWN" in top
    where = re.escape(f"{server.host}:{server.port}")
    said = "connection refused" if door == "tcp" else "no such file or directory"
    assert re.search(
        rf"■ PostgreSQL at {where} does not answer since \d\d:\d\d:\d\d \(\d.*s\): "
        f"{said}; 2 pools of 2 processes use it",
        first,
    )
    assert dashboard.board.findings[0].severity == "critical"
    code, out = check(apps)
    assert code == 1
    assert re.fullmatch(
        rf"critical server_down: PostgreSQL at {where} does not answer: {said}; "
        r"2 pools of 2 processes use it "
        r"\[orders.py \(pid \d+\), billing.py \(pid \d+\)\]\n",
        out,
    )
    assert apps.poolwatch("ps").stdout.count("CRITICAL server_down: ") == 1
    findings = json.loads(apps.poolwatch("check", "--json").stdout)["findings"]
    assert [each["kind"] for each in findings] == ["server_down"]
    server.start()
    lines = dashboard.until("restarted")
    assert "DOWN" not in lines[0]
    ghosts = [f for f in dashboard.board.findings if f.kind == "ghost"]
    assert [len(finding.holds) for finding in ghosts] == [2]


def test_a_restarted_server_is_one_finding_a_process(apps, start_postgres):
    """With a count, however many holds it took away."""
    server = start_postgres()
    source = APP.replace(
        "held = engine.connect()", "held = [engine.connect() for _ in '123']"
    )
    apps.start(source, "app.py", server.url(), "orders")
    server.stop("immediate")
    server.start()
    (process,) = apps.ps()["processes"]
    (ghost,) = [f for f in process["findings"] if f["kind"] == "ghost"]
    assert sorted(ghost["holds"]) == sorted(hold["id"] for hold in process["holds"])
    assert ghost["text"].startswith("3 connections held by ")
    assert "opened before the server was restarted" in ghost["text"]


def test_backends_that_were_ended_one_by_one_are_no_restart(apps, start_postgres):
    server = start_postgres()
    apps.start(APP, "app.py", server.url(), "orders", "leak")
    server.execute(
        "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
        "where backend_type = 'client backend' and pid <> pg_backend_pid()"
    )
    (process,) = apps.ps()["processes"]
    (ghost,) = [f for f in process["findings"] if f["kind"] == "ghost"]
    assert len(ghost["holds"]) == 2
    assert "their sessions on the server have ended" in ghost["text"]


def test_a_server_that_hangs(apps, dashboard, shop, start_postgres):
    """It is said of the server, and the application is shown at once all the same."""
    server = start_postgres()
    shop("orders", server)
    shop("billing", server)
    dashboard.until("2 processes", "✓ healthy")
    with stopped(*server.pids):
        lines = dashboard.lines()
        assert "healthy" not in "\n".join(lines)
        began = time.monotonic()
        while "2 pools of 2 processes use it" not in lines[1]:
            lines = dashboard.lines()
            assert "healthy" not in lines[1]
            assert dashboard.took < 2.0
            assert time.monotonic() - began < 20
            time.sleep(0.1)
        assert "db DOWN" in lines[0]
        assert "does not answer since" in lines[1]
        for process in dashboard.board.snapshot.processes:
            assert "the process" not in (process.servers[0].error or "")
        code, out = check(apps)
        assert code == 1
        assert out.count("critical server_down: ") == 1
    dashboard.until("✓ healthy")


def test_one_of_two_processes_is_stopped(apps, dashboard, shop, postgres):
    """It keeps its rows, with their age; nothing of it is said to have returned."""
    shop("orders", postgres)
    billing = shop("billing", postgres, "leak")
    dashboard.until("2 processes", "checked out 1 connection")
    board = dashboard.board
    leaked = next(row for row in board.rows.values() if row.word == "LEAKED")
    table = board.tables["holds"].selection
    table.move([row.key for row in table.shown].index(leaked.key))
    with stopped(billing.pid):
        lines = dashboard.until("has not answered for")
        said = rf"[◆■] billing.py {billing.pid} is stopped \(state T\) and has not "
        assert re.search(said + r"answered for \d", lines[1])
        assert "SIGCONT" in lines[2]
        assert "apps 1/2" in lines[0]
        assert "healthy" not in "\n".join(lines)
        assert table.key == leaked.key
        assert table.gone_at is None
        assert not any("returned" in row for row in dashboard.rows())
        assert sum(" ago: " in row for row in dashboard.rows()) == 2
        for _ in range(3):
            dashboard.lines()
            assert dashboard.took < 1.0, "the other one is waited for no longer"
        code, out = check(apps)
        assert code == 1
        assert re.match(
            rf"(warning|critical) unreachable: process {billing.pid} is stopped", out
        )
        done = apps.poolwatch("check", "--json")
        (lost,) = json.loads(done.stdout)["unreachable"]
        assert (done.returncode, lost["pid"], lost["alive"]) == (1, billing.pid, True)
        (lost,) = apps.ps()["unreachable"]
        assert set(lost) == {"pid", "why", "since", "alive"}
        assert lost["since"] is not None
    deadline = time.monotonic() + 20
    while board.silent:
        lines = dashboard.lines()
        assert time.monotonic() < deadline
    assert "checked out 1 connection" in lines[1]
    assert leaked.key in board.rows


def test_the_only_process_is_stopped(apps, dashboard, shop, postgres):
    app = shop("orders", postgres)
    dashboard.until("✓ healthy")
    with stopped(app.pid):
        lines = dashboard.until("SILENT")
        assert f"orders.py {app.pid} is stopped (state T)" in lines[1]
        assert len(dashboard.board.rows) == 1
        assert check(apps)[0] == 1
        with fill_queue(apps):  # each look leaves a connection in it
            code, out = check(apps)
            assert (code, "is stopped (state T)" in out) == (1, True)
            assert f"orders.py {app.pid} is stopped (state T)" in dashboard.lines()[1]
    dashboard.until("LIVE", "✓ healthy")


def test_a_process_that_hangs_is_alive(apps, dashboard):
    """Its interpreter never lets go: a regular expression, say."""
    source = """
    import re, sys
    from sqlalchemy import create_engine
    import poolwatch
    engine = create_engine("sqlite://")
    poolwatch.instrument(engine)
    held = engine.connect()
    print("ready", flush=True)
    sys.stdin.readline()
    re.match(r"(a+)+$", "a" * 60 + "b")
    """
    app = apps.start(source)
    dashboard.until("✓ healthy")
    app.stdin.write("\n")
    app.stdin.flush()
    lines = dashboard.until("has not answered for")
    assert f"app.py {app.pid} is alive and has not answered for" in lines[1]
    code, out = check(apps)
    assert code == 1
    assert f" unreachable: process {app.pid} is alive and has not answered for" in out
    dashboard.until("■ app.py", "SILENT")
    code, out = check(apps, "--severity", "critical")
    assert code == 1
    assert out.startswith("critical unreachable: "), "it knows without memory"


def test_a_process_whose_socket_is_gone(apps, dashboard, shop, postgres):
    """Until its agent makes it again, a second later."""
    app = shop("orders", postgres)
    dashboard.until("✓ healthy")
    (path,) = apps.directory.iterdir()
    with stopped(app.pid):
        path.unlink()
        lines = dashboard.lines()
        assert f"orders.py {app.pid} is alive, its socket file is gone" in lines[1]
        assert "healthy" not in "\n".join(lines)
        assert len(dashboard.board.rows) == 1
        (lost,) = dashboard.board.last.snapshot.unreachable
        assert (lost.alive, lost.since is None) == (True, False)
    dashboard.until("LIVE", "✓ healthy")
    app.kill()
    app.wait()
    dashboard.until("LOST", f"orders.py {app.pid} ended at ")


def test_a_process_that_is_no_longer_watched_is_not_silent(apps, dashboard):
    """It is alive and has no socket because the application wants it so."""
    source = """
    import sys
    from sqlalchemy import create_engine
    import poolwatch
    engine = create_engine("sqlite://")
    poolwatch.instrument(engine)
    engine.connect().close()
    print("ready", flush=True)
    sys.stdin.readline()
    poolwatch.uninstrument(engine)
    print("undone", flush=True)
    sys.stdin.readline()
    """
    app = apps.start(source)
    dashboard.until("✓ healthy")
    app.stdin.write("\n")
    app.stdin.flush()
    assert app.stdout.readline() == "undone\n"
    lines = dashboard.lines()
    assert "LOST" in lines[0]
    assert "no instrumented process is left" in lines[1]


@pytest.mark.parametrize("reaped", [True, False])
def test_processes_that_are_killed(apps, dashboard, shop, postgres, reaped):
    """One of two, then the other: ended, and when; no advice on how to begin."""
    orders = shop("orders", postgres)
    billing = shop("billing", postgres, "leak")
    dashboard.until("2 processes", "checked out 1 connection")
    board = dashboard.board
    leaked = next(row for row in board.rows.values() if row.word == "LEAKED")
    table = board.tables["holds"].selection
    table.move([row.key for row in table.shown].index(leaked.key))
    billing.kill()
    if reaped:
        billing.wait()
    lines = dashboard.until(f"billing.py {billing.pid} ended at ")
    assert "LIVE" in lines[0]
    assert table.gone_at is not None
    assert any("○ ended" in row for row in dashboard.rows())
    assert {row.process.pid for row in board.rows.values()} == {orders.pid}
    assert check(apps)[0] == 0
    orders.kill()
    if reaped:
        orders.wait()
    lines = dashboard.until("LOST")
    assert re.search(rf"■ orders.py {orders.pid} ended at \d\d:\d\d:\d\d", lines[1])
    assert "instrument" not in "\n".join(lines)
    assert len(board.rows) == 1
    assert check(apps)[0] == 3


@pytest.mark.parametrize("reason", ["full", "password", "database", "switched off"])
def test_a_server_that_refuses_is_not_down(apps, dashboard, start_postgres, reason):
    """It answers; but it is not read, so only who wants that is called healthy."""
    server = start_postgres()
    server.execute("create role app login password 'right'")
    server.execute("create database old")
    given = "server_view=False" if reason == "switched off" else "long_after=30"
    source = APP.replace("name=sys.argv[2]", f"name=sys.argv[2], {given}")
    mine = replace(server, database="old") if reason == "database" else server
    apps.start(source, "app.py", mine.as_role("app", "right").url(), "orders")
    if reason == "full":
        server.execute("alter role app connection limit 1")
    elif reason == "password":
        hba = server.directory / "pg_hba.conf"
        hba.write_text("local all postgres trust\nlocal all all scram-sha-256\n")
        server.execute("alter role app password 'other'")
        server.execute("select pg_reload_conf()")
    elif reason == "database":
        server.execute(
            "update pg_database set datallowconn = false where datname = 'old'"
        )
    lines = dashboard.lines()
    if reason == "switched off":
        assert "✓ healthy" in lines[1]
    else:
        assert "its server cannot be read" in lines[1]
    code, out = check(apps)
    assert (code, "server_down" in out) == (0, False)
