"""The dashboard over the demo, at one look a second.

    python tests/soaks/dashboard.py [MINUTES]

It is headless and somebody presses keys: all views, filters, details. Prints each
minute its memory, how late the worst look began, and how long after its request the
worst reading was on the screen. Exits with 1 if memory grew after the first quarter of
an hour; looks that were late are told, a busy machine can be the reason.
"""

from __future__ import annotations

import asyncio
import os
import resource
import sys
import tempfile
import time
from itertools import cycle
from pathlib import Path

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.commands.demo import children
from poolwatch.model import Snapshot
from poolwatch.tui.app import Dashboard
from poolwatch.tui.polling import Reading

EVERY_S = 1.0
LATE_S = 1.0
WARM_MINUTES = 15
"""Until then memory may grow: ten minutes are kept."""
GROWTH_MIB = 8.0
KEYS = (
    *"1jjkGg2j3jjs4j5jr6j7j1m",
    *("slash", "o", "r", "enter", "escape", "enter", "j", "f", "escape"),
    *("v", "v", "question_mark", "escape", "tab", "shift+tab"),
)


class Watched:
    """A live source that knows how late each look began."""

    def __init__(self, source: LiveSource) -> None:
        self._source = source
        self._began: float | None = None
        self.late: list[float] = []

    def snapshot(self) -> Snapshot:
        now = time.monotonic()
        if self._began is not None:
            self.late.append(now - self._began - EVERY_S)
        self._began = now
        return self._source.snapshot()


def rss_mib(pid: int | str = "self") -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) / 1024


async def soak(sockets: Path, app: children.App, minutes: float) -> int:
    source = Watched(LiveSource(Client(sockets), environ={}, sessions=True))
    dashboard = Dashboard(source, refresh=EVERY_S)
    times: list[float] = []
    keys, memory, late = cycle(KEYS), [], 0

    def drawn(reading: Reading) -> None:
        times.append(time.monotonic() - reading.requested_at)

    async with dashboard.run_test(size=(160, 45)) as pilot:
        dashboard.watch(dashboard, "reading", drawn, init=False)
        for minute in range(1, max(int(minutes), 1) + 1):
            ends = time.monotonic() + min(minutes, 1.0) * 60
            cpu = time.process_time()
            while time.monotonic() < ends:
                await asyncio.sleep(2)
                await pilot.press(next(keys))
            app.check()
            looks, took = source.late[:], sorted(times)
            source.late.clear()
            times.clear()
            memory.append(rss_mib())
            late += sum(each > LATE_S for each in looks)
            print(
                f"{minute:4} min  {memory[-1]:6.1f} MiB  {len(looks)} looks, the worst "
                f"{max(looks) * 1e3:.0f} ms late; on the screen after "
                f"{took[len(took) // 2] * 1e3:.0f} ms, the worst {took[-1] * 1e3:.0f}; "
                f"CPU {time.process_time() - cpu:.1f} s; the app "
                f"{rss_mib(app.process.pid):.1f} MiB; load {os.getloadavg()[0]:.0f}",
                flush=True,
            )
    warm = memory[WARM_MINUTES:]
    growth = warm[-1] - warm[0] if warm else 0.0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(
        f"{late} looks were late; memory has grown by {growth:.1f} MiB since minute "
        f"{WARM_MINUTES}, at most {peak:.1f} MiB"
    )
    return int(growth > GROWTH_MIB)


def main(minutes: float) -> int:
    with (
        children.temporary_directory() as base,
        children.database(base, None, print) as database,
        tempfile.TemporaryDirectory(prefix="pw", dir="/tmp") as sockets,
        children.app(database, Path(sockets), base / "app.log") as app,
    ):
        return asyncio.run(soak(Path(sockets), app, minutes))


if __name__ == "__main__":
    sys.exit(main(float(sys.argv[1]) if sys.argv[1:] else 600))
