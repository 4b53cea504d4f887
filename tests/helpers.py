"""What tests of every room use: waiting, marked lines, a driver that does nothing."""

from __future__ import annotations

import asyncio
import os
import signal
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import poolwatch

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


@contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """Stop every thread of these processes (SIGSTOP), and always continue them.

    The kernel returns from the signal before the other threads of a process have
    stopped: one that runs on another processor can still answer a request.
    """
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        for pid in pids:
            until(lambda pid=pid: _has_stopped(pid))
        yield
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)


def _has_stopped(pid: int) -> bool:
    threads = Path(f"/proc/{pid}/task").glob("*/stat")
    try:
        return all(") T " in each.read_text("utf-8") for each in threads)
    except OSError:  # a thread that ends
        return False


def line_of(source: Path | str, marker: str) -> int:
    """Number of the only line that ends with ``# <marker>``, in a file or a text."""
    text = source.read_text("utf-8") if isinstance(source, Path) else source
    lines = text.splitlines()
    (found,) = [n for n, line in enumerate(lines, 1) if line.endswith(f"# {marker}")]
    return found


def deep(frames: int, work: Callable[[], None]) -> None:
    """Call ``work`` that many frames further down."""
    if frames:
        deep(frames - 1, work)
    else:
        work()


def caller(number: int) -> Callable[[Any], Any]:
    """A function of its own, at a line of its own."""
    source = "\n" * number + f"def take_{number}(pool): return pool.connect()"
    space: dict[str, Any] = {"__name__": "__main__"}
    exec(compile(source, "callers.py", "exec"), space)
    return space[f"take_{number}"]


def allocated() -> int:
    """Bytes that were allocated by the lines of poolwatch."""
    here = f"{Path(poolwatch.__file__).parent}{os.sep}"
    traces = tracemalloc.take_snapshot().traces
    return sum(
        each.size for each in traces if each.traceback[0].filename.startswith(here)
    )


class Driver:
    """A DBAPI connection that does nothing."""

    closed = False

    def rollback(self) -> None: ...

    def commit(self) -> None: ...

    def close(self) -> None:
        self.closed = True
