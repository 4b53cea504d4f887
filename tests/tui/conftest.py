"""What the dashboard's tests share: a board with data, and a driven dashboard."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/fakes.py

from poolwatch.model import Snapshot
from poolwatch.tui.board import Board
from poolwatch.tui.reading import Reading


@pytest.fixture
def board() -> Callable[..., Board]:
    def make(*snapshots: Snapshot, now: float = 100.0) -> Board:
        made = Board()
        for snapshot in snapshots:
            made.take(Reading(now, 0.01, snapshot), now)
        return made

    return make


@pytest.fixture
def until() -> Callable[..., object]:
    """Wait for a condition, far longer than it can need."""

    async def wait(condition: Callable[[], object], seconds: float = 20.0) -> None:
        async with asyncio.timeout(seconds):
            while not condition():  # noqa: ASYNC110 - any condition will do
                await asyncio.sleep(0.02)

    return wait
