"""Waits for a condition: no test relies on how fast the machine is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

LONG_S = 60.0
"""For what takes a moment, on a machine that is busy with other things."""


def until(
    condition: Callable[[], T],
    seconds: float = LONG_S,
    what: str = "it did not happen",
) -> T:
    """Ask again and again; returns the first answer that is true."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return value


async def come_true(
    condition: Callable[[], T],
    seconds: float = LONG_S,
    what: str = "it did not happen",
) -> T:
    """The same without stopping the event loop."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)
    return value
