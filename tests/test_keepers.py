"""Runs ``tests/keeping`` in a fresh process: see tests/conftest.py."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.parametrize(
    "name",
    [
        "test_keepers.py",
        "test_keepers_async.py",
        "test_keepers_psycopg.py",
        "test_large.py",
    ],
)
def test_in_a_fresh_process(name):
    """Who keeps a connection alive is found, for every kind of root."""
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-m", "pytest", str(here / "keeping" / name), "-q"],
        cwd=here.parent,
        env={**os.environ, "POOLWATCH_FRESH_PROCESS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
