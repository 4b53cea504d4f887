"""What tests of every room use: waiting, marked lines, a driver that does nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")

LONG_S = 60.0
"""Timeout in seconds for what takes a moment, also on a busy machine."""


def until(
    condition: Callable[[], T],
    seconds: float = LONG_S,
    what: str = "it did not happen",
) -> T:
    """Poll ``condition`` until its answer is true, and return that answer."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return value


async def until_async(
    condition: Callable[[], T],
    seconds: float = LONG_S,
    what: str = "it did not happen",
) -> T:
    """Like until(), without blocking the event loop."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)
    return value


def line_of(source: Path | str, marker: str) -> int:
    """Number of the only line that ends with ``# <marker>``, in a file or a text."""
    text = source.read_text("utf-8") if isinstance(source, Path) else source
    lines = text.splitlines()
    (found,) = [n for n, line in enumerate(lines, 1) if line.endswith(f"# {marker}")]
    return found


class Driver:
    """A DBAPI connection that does nothing."""

    closed = False

    def rollback(self) -> None: ...

    def commit(self) -> None: ...

    def close(self) -> None:
        self.closed = True
