"""What the dashboard's tests share: a board with data, and a driven dashboard."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/fakes.py

from poolwatch.model import Snapshot
from poolwatch.tui.polling import Reading
from poolwatch.tui.state.board import Board


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """``e`` and ``E`` write into the current directory."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def board() -> Callable[..., Board]:
    def make(*snapshots: Snapshot, now: float = 100.0) -> Board:
        made = Board()
        for snapshot in snapshots:
            made.accept(Reading(now, snapshot))
        return made

    return make
