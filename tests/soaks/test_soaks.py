"""The soaks of ``tests/soaks``, for a few seconds each; run them alone for longer."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fix_pgbouncer import PROGRAM

pytestmark = [pytest.mark.slow, pytest.mark.processes]

SOAKS = Path(__file__).parent


@pytest.mark.parametrize(("script", "seconds"), [("jam.py", 6), ("large_data.py", 8)])
def test_honest_work_is_not_accused(script, seconds):
    run(script, str(seconds))


@pytest.mark.postgres
def test_a_small_fleet():
    """It writes with the sidecars' writer, and all commands can read that."""
    done = run("fleet.py", "1", "2")
    assert "2 hosts of 5 processes, 1 min" in done.stdout
    assert done.stdout.count("exit code 0") == 4


@pytest.mark.postgres
def test_the_dashboard_over_the_demo():
    assert "looks were late" in run("dashboard.py", "0.1").stdout


@pytest.mark.postgres
@pytest.mark.skipif(PROGRAM is None, reason="PgBouncer is not installed")
def test_rows_behind_a_pooler():
    assert " 0 wrong" in run("pooler.py", "20", "transaction").stdout


@pytest.mark.postgres
def test_a_lock_that_a_pooled_connection_has_kept():
    """One finding, whoever borrows the connection."""
    done = run("kept_lock.py", "2", "seen")
    assert "a session lock kept by a pooled connection" in done.stdout


def test_the_week_of_a_history():
    done = run("history_week.py", "0.01", "10")
    assert "integrity: ok" in done.stdout


@pytest.mark.parametrize(
    "fault", ["descriptors-at-first", "half-requests", "interrupts", "exit-slow-exit"]
)
def test_the_pool_outlives(fault):
    run("faults.py", "--length", "0.05", fault)


def run(script, *arguments):
    done = subprocess.run(
        [sys.executable, str(SOAKS / script), *arguments],
        capture_output=True,
        text=True,
        timeout=150,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done
