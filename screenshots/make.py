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

from shop_hour import fill_hour

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.commands.demo import children
from poolwatch.commands.main import main as poolwatch
from poolwatch.sidecar.history.store import open_store
from poolwatch.tui.app import Dashboard

HERE = Path(__file__).parent
SETTLED = 14.0
"""Seconds until every planted fault shows and the sparklines have a shape."""

PICTURES = {
    "overview.svg": ((160, 45), []),
    "detail.svg": ((160, 45), ["j", "j", "enter"]),
    "findings.svg": ((120, 36), ["w"]),
    "sites.svg": ((120, 27), ["c"]),
    "frozen.svg": ((120, 36), ["z", "enter"]),
    "small.svg": ((80, 24), []),
}


async def picture(sockets: Path, name: str) -> None:
    """Open the dashboard, press the keys, save what it shows."""
    size, keys = PICTURES[name]
    source = LiveSource(Client(sockets), environ={})
    dashboard = Dashboard(source, refresh=0.5)
    async with dashboard.run_test(size=size) as pilot:
        await asyncio.sleep(SETTLED)
        svg = "returned after"
        while "returned after" in svg.replace("&#160;", " "):  # the hold has just ended
            for key in ("escape", "g", *keys):
                await pilot.press(key)
                await asyncio.sleep(0.5)  # the kept pictures are asked for by a key
            await asyncio.sleep(0.5)
            svg = dashboard.export_screenshot(title="poolwatch tui", simplify=True)
    source.close()
    # the fonts of the page that shows it, none from the network
    svg = re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    svg = svg.replace("Fira Code", "ui-monospace, DejaVu Sans Mono, Menlo")
    (HERE / name).write_text(svg, encoding="utf-8")
    print(f"{name}: {len(svg) // 1024} KiB")


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
        for name in PICTURES:
            asyncio.run(picture(Path(sockets), name))
    report()


if __name__ == "__main__":
    main()
