"""Programs in a pseudo terminal of 160x45, and what they cost."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

SIZE = (160, 45)


class Terminal:
    """One program in a terminal; ended when the ``with`` block is left."""

    def __init__(self, command: Sequence[str], **environ: str) -> None:
        self.written = 0
        """Bytes that the program has written so far."""
        self._main, child = pty.openpty()
        size = struct.pack("HHHH", SIZE[1], SIZE[0], 0, 0)
        fcntl.ioctl(child, termios.TIOCSWINSZ, size)
        own = {"TERM": "xterm-256color", "COLORTERM": "truecolor", **environ}
        kept = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
        self.started_at = time.perf_counter()
        self.program = subprocess.Popen(
            command,
            stdin=child,
            stdout=child,
            stderr=child,
            env=kept | own,
            start_new_session=True,
        )
        os.close(child)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.program.kill()
        self.program.wait()
        os.close(self._main)

    def press(self, key: str) -> None:
        os.write(self._main, key.encode())

    def until(self, wanted: str, seconds: float = 60.0) -> float:
        """Read until a text is written; returns the seconds since the start."""
        got, deadline = b"", time.monotonic() + seconds
        while wanted.encode() not in got:
            left = deadline - time.monotonic()
            assert left > 0, f"{wanted} is not shown: {got!r}"
            got = got[-999:] + self._read(left)
        return time.perf_counter() - self.started_at

    def drain(self, seconds: float) -> None:
        """Read all that is written for a time."""
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            self._read(left)

    def _read(self, seconds: float) -> bytes:
        if not select.select([self._main], [], [], seconds)[0]:
            return b""
        data = os.read(self._main, 1 << 16)
        self.written += len(data)
        if b"\x1b[6n" in data:  # where is the cursor? pg_activity waits for the answer
            self.press("\x1b[1;1R")
        return data

    @property
    def cpu_s(self) -> float:
        """CPU of the program and of its children that live."""
        return sum(map(cpu_s, _tree(self.program.pid)))

    @property
    def rss_mib(self) -> float:
        return sum(map(rss_mib, _tree(self.program.pid)))


def _tree(pid: int) -> list[int]:
    lists = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(child) for each in lists for child in each.read_text().split()]
    return [pid, *(below for child in children for below in _tree(child))]


def cpu_s(pid: int) -> float:
    """Seconds of CPU of a process so far, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").glob("*/schedstat")
    return sum(int(each.read_text().split()[0]) for each in threads) / 1e9


def rss_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024
