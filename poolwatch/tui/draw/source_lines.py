"""Reads source code, if the file is on this machine and safe to open.

Paths come from another process. Only regular files of limited size are opened: a path
may name a device or a FIFO, and reading it would hang the dashboard.
"""

from __future__ import annotations

import stat
import tokenize
from functools import lru_cache
from pathlib import Path

from poolwatch.text.format import neutral, since_epoch

LARGEST = 2_000_000
"""Maximum size of a file that is read, in bytes."""
WIDEST = 200


def around(file: str, line: int, before: int, after: int) -> list[tuple[int, str]]:
    """Return numbered lines around ``line``; none if the file cannot be read."""
    lines = _read(file)
    if not 0 < line <= len(lines):
        return []
    first, last = max(line - before, 1), min(line + after, len(lines))
    return [
        (n, neutral(lines[n - 1][:WIDEST], lines=True)) for n in range(first, last + 1)
    ]


def changed_since(file: str, started_at: str) -> bool:
    """Whether a file has changed since a process started: it may run other lines."""
    began, path = since_epoch(started_at), Path(file)
    if began is None or not path.is_absolute():
        return False
    try:
        return path.stat().st_mtime > began
    except (OSError, ValueError):
        return False


def _read(file: str) -> tuple[str, ...]:
    try:
        path = Path(file)
        if not path.is_absolute():
            return ()
        info = path.stat()
        if not stat.S_ISREG(info.st_mode) or info.st_size > LARGEST:
            return ()
    except (OSError, ValueError):
        return ()
    return _read_at(file, info.st_mtime_ns)


@lru_cache(maxsize=32)
def _read_at(file: str, _changed: int) -> tuple[str, ...]:
    """Read a file once per change: its modification time is part of the cache key."""
    try:
        with tokenize.open(file) as opened:
            return tuple(line.rstrip() for line in opened)
    except (OSError, SyntaxError, ValueError):
        return ()
