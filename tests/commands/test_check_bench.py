"""``poolwatch check`` and ``poolwatch bench`` as commands."""

from __future__ import annotations

import json
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


def test_check(app, socket_dir):
    """3 nobody, 0 fine, 1 wrong, 2 usage."""
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


def test_bench(postgres):
    """Ratios against the pooled row; poolwatch's own table is gone afterwards."""
    done = poolwatch(
        "bench", "--json", "--operations", "40", "--dsn", postgres.url("psycopg2")
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert set(document) == {"schema", "machine", "server", "rows"}
    assert document["schema"] == 1
    for row in document["rows"]:
        assert set(row) == {
            "workload",
            "way",
            "operations",
            "seconds",
            "per_operation_ms",
            "ratio",
        }
    pooled = {r["workload"]: r for r in document["rows"] if r["ratio"] == 1}
    assert len(pooled) == 2
    for row in document["rows"]:
        expected = row["seconds"] / pooled[row["workload"]]["seconds"]
        assert row["ratio"] == pytest.approx(expected, abs=0.01)
    new = [row for row in document["rows"] if row["way"].startswith("a new")]
    assert all(row["ratio"] > 2 for row in new)
    assert postgres.execute("SELECT to_regclass('poolwatch_bench')") == [(None,)]


def test_bench_with_a_delay(postgres_tcp):
    """A round trip takes twice the delay, through the proxy."""
    done = poolwatch(
        "bench",
        "--json",
        "--operations",
        "10",
        "--latency",
        "4",
        "--dsn",
        postgres_tcp.url("psycopg2"),
    )
    assert done.returncode == 0, done.stderr
    rows = json.loads(done.stdout)["rows"]
    assert min(row["per_operation_ms"] for row in rows) >= 8


@pytest.mark.parametrize(
    "arguments",
    [["--dsn", "mysql://x/y"], ["--operations", "1"], ["--latency", "-1"]],
)
def test_bench_usage(arguments):
    """One sentence, exit code 2."""
    done = poolwatch("bench", *arguments)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
