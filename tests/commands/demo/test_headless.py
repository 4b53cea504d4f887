"""``poolwatch demo --headless`` for real: all started, one snapshot, all ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import psutil
import pytest
from helpers import until
from sqlalchemy import NullPool, create_engine, text

from poolwatch.commands.demo import children, lease
from poolwatch.commands.demo.faults import Fault, planted
from poolwatch.commands.main import main

from .conftest import Start, nothing_left

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.processes]

COMMAND = ("-m", "poolwatch", "demo", "--headless")
SESSIONS = "SELECT count(*) FROM pg_stat_activity WHERE application_name = :name"
SCHEMAS = "SELECT count(*) FROM pg_namespace WHERE nspname = :name"
SITES = (
    "never-closed",
    "slow-http",
    "idle-in-transaction",
    "blocked",
    "thread-ended",
    "nested",
    "nested-outer",
    "lock-returned",
)


LONGER_AND_LONGER = ("8", "30", "90")
"""Seconds after which all faults have happened: the first is enough, unless the machine
is busy with other things."""


@pytest.fixture(scope="module")
def shown() -> dict[str, Any]:
    """The document that some seconds of the demo give, for the whole module."""
    for seconds in LONGER_AND_LONGER:
        with tempfile.TemporaryDirectory(prefix="pw-", dir="/tmp") as place:
            Path(place).chmod(0o755)
            done = subprocess.run(
                [sys.executable, *COMMAND, "--seconds", seconds, "--json"],
                check=False,
                capture_output=True,
                text=True,
                timeout=180,
                env={**os.environ, "TMPDIR": place},
            )
            assert done.returncode == 0, done.stderr
            assert nothing_left(Path(place))
        document: dict[str, Any] = json.loads(done.stdout)
        (process,) = document["processes"]
        if (
            all(at(planted()[name], process["holds"]) for name in SITES)
            and any(map(is_blocked, at(planted()["blocked"], process["holds"])))
            and all(map(is_blocked, at(planted()["lock-returned"], process["holds"])))
        ):
            break
    return document


@pytest.fixture
def process(shown: dict[str, Any]) -> dict[str, Any]:
    (process,) = shown["processes"]
    return process


def at(fault: Fault, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    where = {"file": fault.file, "line": fault.line, "function": fault.function}
    return [row for row in rows if row["site"] == where]


def is_blocked(hold: dict[str, Any]) -> bool:
    return bool(hold["server"] and hold["server"]["blocked_by"])


def test_the_document_is_schema_1_and_nothing_else(shown: dict[str, Any]) -> None:
    """Standard output is JSON alone: a script can read it."""
    assert shown["schema"] == 1
    assert shown["unreachable"] == []


def test_two_pools_are_watched(process: dict[str, Any]) -> None:
    """The shop's orders, and the search index that the pipeline fills."""
    assert {pool["name"] for pool in process["pools"]} == {"orders", "search"}


@pytest.mark.parametrize("name", SITES)
def test_each_planted_fault_is_named_by_file_and_line(
    process: dict[str, Any], name: str
) -> None:
    """A hold's call site is exactly the line that carries the mark."""
    holds = at(planted()[name], process["holds"])
    assert holds
    assert all(hold["backend_pid"] for hold in holds)


def test_a_dropped_connection_is_counted_at_its_line(process: dict[str, Any]) -> None:
    """The garbage collector returned it; the line is known all the same."""
    (row,) = at(planted()["dropped"], process["sites"])
    assert row["leaked"] >= 1
    orders = next(pool for pool in process["pools"] if pool["name"] == "orders")
    assert orders["counters"]["collected"] >= 1


def test_the_server_names_the_idle_transaction_as_the_blocker(
    process: dict[str, Any],
) -> None:
    """A victim's server row points to the backend of the hold that blocks it.

    Of the two victims one may just have been let go when the server is read.
    """
    faults = planted()
    idle = {
        h["backend_pid"] for h in at(faults["idle-in-transaction"], process["holds"])
    }
    blocked = at(faults["blocked"], process["holds"])
    rows = [hold["server"] for hold in blocked if hold["server"]]
    assert any(idle.intersection(row["blocked_by"]) for row in rows)


def test_the_lock_that_came_back_with_its_connection_is_named(
    process: dict[str, Any],
) -> None:
    """The next run waits for the lock of the first, whoever has the connection now."""
    fault = planted()["lock-returned"]
    (waiting,) = at(fault, process["holds"])
    (finding,) = [
        each
        for each in process["findings"]
        if each["kind"] == "lock_wait" and each["holds"] == [waiting["id"]]
    ]
    assert "session lock" in finding["text"]
    assert f"reindex.py:{fault.line + 1}" in finding["text"]
    assert {site["line"] for site in finding["sites"]} == {fault.line}


def test_the_thread_that_ended_is_nowhere_now(process: dict[str, Any]) -> None:
    """Its hold stays, without a place where it is."""
    for hold in at(planted()["thread-ended"], process["holds"]):
        assert hold["thread"].startswith("newsletter-")
        assert hold["now"] == []


def test_nested_holds_are_of_one_thread(process: dict[str, Any]) -> None:
    """The caller's connection and the helper's are held by the same thread."""
    faults = planted()
    outer = {h["thread"] for h in at(faults["nested-outer"], process["holds"])}
    inner = {h["thread"] for h in at(faults["nested"], process["holds"])}
    assert inner
    assert inner <= outer


def test_requests_carry_their_endpoint(process: dict[str, Any]) -> None:
    """Labels of the load generator travel with the holds."""
    (hold, *_) = at(planted()["slow-http"], process["holds"])
    assert hold["labels"] == {"endpoint": "GET /shipping/quote"}


def test_the_pipeline_writes_its_documents(process: dict[str, Any]) -> None:
    """A thousand documents in batches of four, read and written: work, not faults."""
    search = next(pool for pool in process["pools"] if pool["name"] == "search")
    assert search["counters"]["checkouts"] > 100
    assert search["counters"]["timeouts"] == 0
    assert search["counters"]["leaked"] == 0


def told(start: Start, *options: str) -> str:
    """The table of a demo that was long enough for its faults."""
    for seconds in LONGER_AND_LONGER:
        demo = start(*COMMAND, "--seconds", seconds, *options)
        out, err = demo.communicate(timeout=180)
        assert demo.returncode == 0, err
        assert "cleaning up" not in err
        if "not seen" not in out:
            break
    return out


def test_without_json_it_is_a_table(start: Start, place: Path) -> None:
    """Each fault with its line, and that poolwatch saw it."""
    out = told(start)
    for name, fault in planted().items():
        (row,) = [line for line in out.splitlines() if line.split()[0] == name]
        assert f"{Path(fault.file).name}:{fault.line}" in row
        assert "not seen" not in row
    assert nothing_left(place)


def test_in_a_database_of_ones_own_it_leaves_no_trace(
    start: Start, place: Path
) -> None:
    """With --dsn: no schema and no session afterwards, and nothing to complain of."""
    base = place / "own"
    base.mkdir()
    with children.database(base, None, print) as database:
        assert "not seen" not in told(start, "--dsn", database.url)
        engine = create_engine(database.url, poolclass=NullPool)
        with engine.connect() as connection:
            assert connection.scalar(text(SESSIONS), {"name": lease.APPLICATION}) == 0
            assert connection.scalar(text(SCHEMAS), {"name": lease.SCHEMA}) == 0


def wait_for(demo: subprocess.Popen[str], words: str) -> str:
    """Read standard error up to a line; returns all that was read."""
    assert demo.stderr is not None
    read = ""
    for line in demo.stderr:
        read += line
        if words in line:
            return read
    raise AssertionError(f"the demo ended: {read}")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("moment", ["starting PostgreSQL", "starting the demo app"])
def test_a_signal_ends_it_cleanly(
    start: Start, place: Path, number: signal.Signals, moment: str
) -> None:
    """No traceback, no process, no file: also in the middle of starting."""
    demo = start(*COMMAND, "--seconds", "60")
    read = wait_for(demo, moment)
    demo.send_signal(number)
    out, err = demo.communicate(timeout=120)
    assert demo.returncode == 130
    assert "Traceback" not in read + err
    assert out == ""
    assert nothing_left(place)


IGNORING = """
import os, signal, sys
signal.signal(signal.{0}, signal.SIG_IGN)
os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_in_the_background_of_a_script_it_can_be_ended(
    start: Start, place: Path, number: signal.Signals
) -> None:
    """There a shell has SIGINT ignored, so nothing can be made of that."""
    demo = start("-c", IGNORING.format("SIGINT"), *COMMAND, "--seconds", "60")
    wait_for(demo, "starting PostgreSQL")
    demo.send_signal(number)
    out, err = demo.communicate(timeout=120)
    assert demo.returncode == 130
    assert "Traceback" not in err
    assert out == ""
    assert nothing_left(place)


def test_under_nohup_it_goes_on(start: Start, place: Path) -> None:
    """A SIGHUP that was to be ignored is ignored."""
    demo = start("-c", IGNORING.format("SIGHUP"), *COMMAND, "--seconds", "1")
    wait_for(demo, "starting PostgreSQL")
    demo.send_signal(signal.SIGHUP)
    out, err = demo.communicate(timeout=120)
    assert demo.returncode == 0, err
    assert "never-closed" in out
    shown, own, then = err.splitlines()[-3:]
    assert "9 faults from real life" in shown
    assert "poolwatch.instrument(engine)" in own
    assert then.endswith("poolwatch tui")
    assert nothing_left(place)


def test_killed_it_leaves_nothing_either(start: Start, place: Path) -> None:
    """Not even SIGKILL orphans PostgreSQL or the app."""
    demo = start(*COMMAND, "--seconds", "60")
    wait_for(demo, "starting the demo app")
    demo.kill()
    assert nothing_left(place)


def test_an_untrusted_socket_directory_is_refused(start: Start, place: Path) -> None:
    """At once: the app would refuse it too, and stay invisible."""
    (place / "open").mkdir()
    (place / "open").chmod(0o777)
    demo = start(*COMMAND, "--dir", str(place / "open"))
    _, err = demo.communicate(timeout=120)
    assert demo.returncode == 4
    assert err.startswith("poolwatch: other users may write to ")
    (place / "open").rmdir()
    assert nothing_left(place)


def test_an_app_that_cannot_start_is_one_sentence(start: Start, place: Path) -> None:
    """Exit code 1; the tail of its log, and last of all what went wrong."""
    (place / "sitecustomize.py").write_text(
        "import os\n"
        "if 'POOLWATCH_DEMO_URL' in os.environ: raise SystemExit('no luck today')\n"
    )
    demo = start(*COMMAND, PYTHONPATH=str(place))
    _, err = demo.communicate(timeout=120)
    assert demo.returncode == 1
    said = "poolwatch: the demo app does not start: SystemExit: no luck today"
    assert err.splitlines()[-1] == said
    (place / "sitecustomize.py").unlink()
    for cache in place.glob("__pycache__/*"):
        cache.unlink()


def test_an_app_that_is_killed_is_said_so(start: Start, place: Path) -> None:
    """The signal, not whatever the app has logged last."""
    demo = start(*COMMAND, "--seconds", "600")
    wait_for(demo, "starting the demo app")
    module = "poolwatch.commands.demo.app"
    (app,) = until(
        lambda: [
            child
            for child in psutil.Process(demo.pid).children()
            if module in child.cmdline()
        ]
    )
    app.kill()
    _, err = demo.communicate(timeout=120)
    assert demo.returncode == 1
    assert err.splitlines()[-1].endswith(": ended by SIGKILL")
    assert nothing_left(place)


def test_seconds_beyond_the_range(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        main(["demo", "--seconds", "100000"])
    assert "must be a number of seconds from 0.1 to 86400" in capsys.readouterr().err
