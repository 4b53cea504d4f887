"""``poolwatch bench`` as a command."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.processes]


def poolwatch(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "poolwatch", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )


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
    ("arguments", "words"),
    [
        (["--dsn", "mysql://x/y"], "must name a PostgreSQL database"),
        (["--operations", "1"], "'1' must be an integer from 10 to 10000000"),
        (["--latency", "-1"], "'-1' must be a number of milliseconds from 0 to 10000"),
    ],
)
def test_bench_usage(arguments, words):
    """One sentence, exit code 2."""
    done = poolwatch("bench", *arguments)
    assert done.returncode == 2
    assert words in done.stderr
    assert "Traceback" not in done.stderr
