"""kill -9 of the writer, ten times at random moments."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.mark.processes
def test_a_killed_writer_loses_nothing_that_was_written(url):
    done = subprocess.run(
        [sys.executable, str(HERE / "killed_writers.py"), url],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": str(HERE.parents[1]), "PATH": ""},
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 10, done.stderr
    for line in lines:
        said, healthy, *numbers = line
        seen, counted, kept, shown = map(int, numbers)
        assert healthy == "ok"
        # at most the look that was being written when it was killed is there, too
        assert int(said) <= seen <= int(said) + 1
        assert counted == shown == seen
        assert kept == 1
