"""The dashboard at fixed sizes, line by line, with a frozen clock.

    python tests/tui/test_pictures.py --update

rewrites the pictures, after a look at what has changed.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))  # as a script

from fakes import FakeSource
from tui.picture_source import AT, lines, moment

from poolwatch.diagnosis.incidents import Incidents as Tracker
from poolwatch.tui.app import Dashboard
from poolwatch.tui.draw import source_lines
from poolwatch.tui.polling import Reading
from poolwatch.tui.time.ring import Ring

PICTURES = Path(__file__).parent / "pictures"
SIZES = ((80, 24), (120, 40), (160, 45), (200, 60))
KEYS = {
    "holds": "1",
    "detail": "1 enter",
    "waits": "escape 2",
    "sessions": "3",
    "blocking": "4",
    "sites": "5",
    "findings": "6",
    "processes": "7",
    "time": "1 t",
}
"""The keys to each picture, from the one before."""
READINGS = range(0, 61, 4)
"""Seconds; a minute in which the pool becomes empty."""
ASKED_AT = 1000.0
"""The monotonic time of the last reading."""


@contextmanager
def frozen() -> Iterator[None]:
    """Set the time zone and the source code that every machine has."""
    with patch.dict(os.environ, TZ="UTC"), patch.object(source_lines, "_read", lines):
        time.tzset()
        yield
    time.tzset()


def dashboard(**settings: str) -> Dashboard:
    """A dashboard whose source never answers; readings are given to it."""
    source = FakeSource(moment(0))
    source.free.clear()
    app = Dashboard(
        source,
        now=lambda: ASKED_AT + 0.4,
        clock=lambda: "09:03:24",
        wall=lambda: AT + 0.4,
        **settings,
    )
    ring = Ring(Tracker(), clock=lambda: app.reading.requested_at)
    app.recorder.ring = app.past = ring
    app.recorder.add = ring.add
    return app


async def read(app: Dashboard) -> None:
    """Let it have a minute of readings."""
    await asyncio.sleep(0)
    for after_s in READINGS:
        ago = READINGS[-1] - after_s
        reading = moment(after_s, silent=ago < 8)
        asked_at = ASKED_AT - ago
        app.reading = Reading(asked_at, reading, answered_at=asked_at, at=AT - ago)


def screen_text(app: Dashboard) -> str:
    strips = app.screen._compositor.render_strips()
    return "\n".join(strip.text.rstrip() for strip in strips) + "\n"


async def pictures(size: tuple[int, int]) -> dict[str, str]:
    """Every picture of one size, by the name of its file."""
    app, taken = dashboard(), {}
    async with app.run_test(size=size) as pilot:
        await read(app)
        for name, keys in KEYS.items():
            await pilot.press(*keys.split())
            await pilot.pause()
            taken[f"{name}-{size[0]}x{size[1]}.txt"] = screen_text(app)
    return taken


@pytest.mark.parametrize("size", SIZES, ids=lambda size: f"{size[0]}x{size[1]}")
async def test_pictures(size):
    with frozen():
        for name, text in (await pictures(size)).items():
            assert text == (PICTURES / name).read_text("utf-8"), name


@pytest.mark.parametrize("settings", [{}, {"theme": "ansi-dark"}])
async def test_what_is_bad_is_bold(settings, monkeypatch):
    if not settings:
        monkeypatch.setenv("NO_COLOR", "1")
    app = dashboard(**settings)
    with frozen():
        async with app.run_test(size=(120, 40)) as pilot:
            await read(app)
            await pilot.pause()
            svg = app.export_screenshot().replace("&#160;", " ")
    ink = re.search(r'class="(\S+)"[^>]*>[^<]*LEAKED', svg)
    assert ink is not None
    assert re.search(rf"\.{ink[1]} {{[^}}]*font-weight: bold", svg)


async def update() -> None:
    """Rewrite all pictures."""
    for old in PICTURES.glob("*.txt"):
        old.unlink()
    for size in SIZES:
        for name, text in (await pictures(size)).items():
            (PICTURES / name).write_text(text, "utf-8")


if __name__ == "__main__":
    assert sys.argv[1:] == ["--update"], __doc__
    with frozen():
        asyncio.run(update())
