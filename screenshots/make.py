"""Make the pictures of this folder from the running program.

    python screenshots/make.py

Starts PostgreSQL and the demo application as ``poolwatch demo`` does, opens the real
dashboard on them in a terminal of a given size, presses the keys a user would press,
and lets Textual export what it shows. Chromium draws the report of an hour that the
tests simulate. Needs ``pip install '.[demo,report]'``.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

from cast import Frame, cast
from shop_hour import fill_hour
from textual.pilot import Pilot

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.commands.demo import children
from poolwatch.commands.main import main as poolwatch
from poolwatch.sidecar.history.store import open_store
from poolwatch.tui.app import Dashboard

HERE = Path(__file__).parent
SETTLED = 40.0
"""Seconds until every planted fault shows and what is drawn over time has a shape."""
FONTS = "ui-monospace, DejaVu Sans Mono, Menlo"

PICTURES = {
    "overview.svg": ((160, 45), "1"),
    "detail.svg": ((160, 45), "1 j j enter"),
    "waits.svg": ((120, 30), "2"),
    "sessions.svg": ((160, 36), "3"),
    "blocking.svg": ((160, 30), "4"),
    "sites.svg": ((120, 30), "5"),
    "findings.svg": ((160, 36), "6"),
    "processes.svg": ((120, 27), "7"),
    "time.svg": ((160, 45), "t N"),
    "small.svg": ((80, 24), "1"),
}
"""Size of the terminal, and the keys from the first view."""

STORY_SIZE = (120, 36)
STORY = (
    ("The pool fills up. Why?", "", 3),
    ("6: what is wrong, the cause first", "6", 3),
    ("enter: the holds that it is about", "enter", 2),
    ("enter: the line that took the connection, and where its code is now", "enter", 4),
    ("esc, t: when did it begin?", "escape escape t", 3),
    ("arrow left: one reading back", "left", 1),
    ("arrow left: one more", "left", 1),
    ("4: who held up whom at that moment", "4", 3),
    ("esc: now", "escape 1", 2),
)
"""Caption, keys, seconds: from the alarm to the line of code, and to its beginning."""


class Camera:
    """The real dashboard on the demo, headless, with somebody at its keys."""

    def __init__(self, dashboard: Dashboard, pilot: Pilot[None]) -> None:
        self._dashboard = dashboard
        self._pilot = pilot

    async def show(self, size: tuple[int, int], keys: str) -> None:
        """Press keys from the first view on."""
        await self._pilot.resize_terminal(*size)
        await self.press("escape escape escape 1 g")
        await self.press(keys)

    async def press(self, keys: str) -> None:
        """Press one key after the other."""
        for key in keys.split():
            await self._pilot.press(key)
            await asyncio.sleep(0.4)

    @property
    def shows_the_past(self) -> bool:
        """Whether the selected row has just ended."""
        tables = self._dashboard.board.tables.values()
        return any(table.selection.gone_at is not None for table in tables)

    @property
    def shows_waits(self) -> bool:
        """Whether requests wait: in the demo for a moment, every few seconds."""
        return any(each.waits for each in self._dashboard.board.snapshot.processes)

    async def picture(self, title: str = "poolwatch tui") -> str:
        """Return what is on the screen, with the fonts of the page that shows it."""
        await self._pilot.pause()
        svg = self._dashboard.export_screenshot(title=title, simplify=True)
        svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
        # no path of the machine that makes the pictures; as wide, so that columns stay
        root = str(HERE.parent)
        svg = svg.replace(root, ("/srv/shop/app" + "/app" * len(root))[: len(root)])
        return svg.replace("Fira Code", FONTS)


async def pictures(sockets: Path) -> None:
    """Take all pictures of the dashboard, then the story."""
    source = LiveSource(Client(sockets), environ={}, sessions=True)
    dashboard = Dashboard(source, refresh=0.5)
    async with dashboard.run_test(size=STORY_SIZE) as pilot:
        camera = Camera(dashboard, pilot)
        await asyncio.sleep(SETTLED)
        for name, (size, keys) in PICTURES.items():
            await camera.show(size, keys)
            while camera.shows_the_past or (keys == "2" and not camera.shows_waits):
                await camera.show(size, keys)
            save(name, await camera.picture())
        await camera.show(STORY_SIZE, "")
        frames = []
        for caption, keys, seconds in STORY:
            await camera.press(keys)
            for _ in range(seconds):
                frames.append(Frame(await camera.picture(), 1.0, caption))
                await asyncio.sleep(1.0)
        save("story.svg", cast(frames, "poolwatch: from the alarm to the line of code"))
    source.close()


def save(name: str, svg: str) -> None:
    """Write a picture into this folder."""
    (HERE / name).write_text(svg, encoding="utf-8")
    print(f"{name}: {len(svg.encode()) // 1024} KiB")


def report() -> None:
    """Picture the beginning of a report: of an hour in which a leak fills a pool."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("report.png: left as it is, there is no Chromium")
        return
    with tempfile.TemporaryDirectory() as folder:
        url, page = f"sqlite:///{folder}/history.db", f"{folder}/report.html"
        engine = open_store(url, write=True)
        fill_hour(engine)
        engine.dispose()
        poolwatch(["report", "-o", page, "--history", url])
        subprocess.run(  # noqa: S603 - found on the path, like any command
            [
                browser, "--headless", "--no-sandbox", "--disable-gpu",
                "--hide-scrollbars", "--virtual-time-budget=20000",
                "--blink-settings=preferredColorScheme=1", "--window-size=1080,1240",
                f"--user-data-dir={folder}/browser",
                f"--screenshot={HERE / 'report.png'}", f"file://{page}",
            ],
            check=True,
            capture_output=True,
        )  # fmt: skip
    print(f"report.png: {(HERE / 'report.png').stat().st_size // 1024} KiB")


def main() -> None:
    """Make all pictures: of one running demo, one after the other, and of a report."""
    with (
        children.temporary_directory() as base,
        children.database(base, None, print) as database,
        tempfile.TemporaryDirectory() as sockets,
        children.app(database, Path(sockets), base / "app.log"),
    ):
        asyncio.run(pictures(Path(sockets)))
    report()


if __name__ == "__main__":
    main()
