"""What a key and a reading of the dashboard cost.

    python tests/benchmarks/dashboard_cost.py [PROCESSES HOLDS]

A fake source has 2,000 holds in 64 processes. First headless, view by view: the CPU of
a key and of a reading, everything between the source and the terminal's escape codes;
of a reading also with what other threads spend on keeping it for ten minutes.
Then in a terminal of 160x45: from the key to the changed screen, and its CPU.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from statistics import median

sys.path.insert(0, str(Path(__file__).parents[1]))

from fakes import (
    NO_SAMPLES,
    finding,
    frame,
    hold,
    pool,
    process,
    server_row,
    server_status,
    snapshot,
    times,
    wait,
)
from helpers import until_async
from terminals import SIZE, Terminal
from textual.pilot import Pilot

from poolwatch.model import Process, SiteStats, Snapshot
from poolwatch.tui import run
from poolwatch.tui.app import Dashboard
from poolwatch.tui.views import named

HEAD = "                      open   move   sort reading with others"
VIEW_TITLES = {"1": "HOLDS", "2": "WAITS"}
SERVER = server_status(identity="7512-1")
SITES = [
    frame(f"/srv/app/{n}/repo.py:{n * 7 + 5}", function)
    for n, function in enumerate(("load", "save", "export", "report"))
]
STACK = tuple(frame(f"/srv/app/layer{n}/code.py:{n}", "call") for n in range(28))


def one_process(number: int, holds: int, after_s: float) -> Process:
    """A worker with four call sites, some waits and four findings."""
    held = []
    for n in range(holds):
        site = SITES[n % len(SITES)]
        verdict = ("leaked", "long", "ok", "ok", "ok")[n % 5]
        held.append(
            hold(
                f"h{n}",
                site=site,
                stack=(site, *STACK),
                now=(frame("/srv/app/http.py:9", "get"), *STACK),
                held_s=holds - n + after_s + number / 10,
                thread=f"worker-{n}",
                labels={"endpoint": f"/orders/{n % 7}"},
                backend_pid=10_000 + number * 100 + n,
                server=server_row("idle in transaction", query=f"select {n} from t"),
                verdict=verdict,
            )
        )
    waits = [wait(f"w{n}", waited_s=after_s + n) for n in range(4)]
    findings = [
        finding(kind, sites=(site,), holds=(held[at].id,), text=f"{kind} at {site}")
        for at, (kind, site) in enumerate(
            zip(("leaked.orphaned", "long_hold", "exhausted"), SITES, strict=False)
        )
    ]
    figures = (1000, 0.4, times(0.2), NO_SAMPLES, 1)
    return process(
        *held,
        pid=500 + number,
        pools=(pool(checked_out=holds, size=holds, waiting=len(waits)),),
        waits=tuple(waits),
        findings=tuple(findings),
        sites=tuple(SiteStats("orders", site, *figures) for site in SITES),
        servers=(SERVER,),
    )


class Fleet:
    """A source whose answers are ready."""

    def __init__(self, processes: int, holds: int) -> None:
        each = holds // processes
        self._answers = cycle(
            [
                snapshot(*(one_process(n, each, second) for n in range(processes)))
                for second in range(4)
            ]
        )

    def snapshot(self) -> Snapshot:
        return replace(next(self._answers))


async def headless(source: Fleet) -> None:
    """Print the CPU of a key and of a reading in each view."""
    dashboard = Dashboard(source, refresh=3600)
    async with dashboard.run_test(size=SIZE) as pilot:
        await until_async(lambda: dashboard.board.last_good)
        print(f"headless, {SIZE[0]}x{SIZE[1]}, ms of CPU:\n{HEAD}")
        for number in range(1, 8):
            await one_view(dashboard, pilot, number)


async def one_view(dashboard: Dashboard, pilot: Pilot[None], number: int) -> None:
    """Print the figures of a view, merged and one by one."""

    async def press(*names: str) -> float:
        spent = []
        for name in names:
            before = time.thread_time()
            await pilot.press(name)
            await pilot.pause()
            spent.append((time.thread_time() - before) * 1e3)
        return median(spent)

    async def read() -> tuple[float, float]:
        last = dashboard.board.last
        before = time.thread_time(), time.process_time()
        dashboard.action_read()
        while dashboard.board.last is last:  # noqa: ASYNC110 - no thread to wake it
            await asyncio.sleep(0.001)
        await pilot.pause()
        own = time.thread_time() - before[0]
        await asyncio.sleep(0.2)  # the ring packs it, unless it is a costly one
        return own * 1e3, (time.process_time() - before[1]) * 1e3

    opened = await press(str(number))
    view = named(dashboard.board.view)
    for merged in (True, False):
        if merged != view.is_merged(dashboard.board):
            await press("m")
        move = await press(*"jjjjjjkkkk" * 6)
        sort = await press("s", "s", "s", "r", "r")
        readings = [await read() for _ in range(10)]
        own, with_others = (median(each) for each in zip(*readings, strict=True))
        print(
            f"  {number} {view.name:10}{'merged' if merged else 'each':7}"
            f"{opened:6.1f} {move:6.1f} {sort:6.1f} {own:7.1f} {with_others:7.1f}"
        )


def in_a_terminal(arguments: Sequence[str]) -> None:
    """Print how long a key takes to the changed screen, and its CPU."""
    with Terminal([sys.executable, __file__, *arguments, "--show"]) as terminal:
        terminal.until("HOLDS")
        terminal.drain(3)
        for keys, shown in (("jjjjjkkkkk" * 10, {}), ("21" * 10, VIEW_TITLES)):
            before, waited = terminal.cpu_s, []
            for key in keys:
                began = time.perf_counter()
                terminal.press(key)
                terminal.until(shown.get(key, "▌"))
                waited.append((time.perf_counter() - began) * 1e3)
                terminal.drain(0.1)
            cpu = (terminal.cpu_s - before) / len(keys) * 1e3
            waited.sort()
            print(
                f"terminal, keys {keys[:10]}: median {median(waited):.0f} ms, "
                f"p95 {waited[int(len(waited) * 0.95)]:.0f}, worst {waited[-1]:.0f}; "
                f"{cpu:.1f} ms of CPU"
            )


if __name__ == "__main__":
    wanted = [each for each in sys.argv[1:] if each.isdecimal()] or ["64", "2000"]
    fleet = Fleet(*map(int, wanted))
    if "--show" in sys.argv:
        run(fleet, refresh=3600)
    else:
        print(
            f"{wanted[1]} holds in {wanted[0]} processes, load {os.getloadavg()[0]:.0f}"
        )
        asyncio.run(headless(fleet))
        in_a_terminal(wanted)
