"""The dashboard looks back into a history: the wiring, and what is on the screen."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
from fakes import hold, process
from helpers import until_async

from poolwatch import tui
from poolwatch.sidecar.history.source import HistorySource
from poolwatch.tui.app import Dashboard
from poolwatch.tui.time.past import Both

AGO = 7200.0


@pytest.fixture
def history(sqlite_store: Any) -> str:
    """One process, seen two hours ago and a second ago."""
    now = time.time()
    alive = process(hold("b", held_s=42.0))
    key = sqlite_store.process(alive, now - 9000, now)
    sqlite_store.snapshot(key, now - AGO, process(hold("a", held_s=7.0)), "i0")
    sqlite_store.snapshot(key, now - 1, alive)
    sqlite_store.incident(key, now - AGO, text="it was empty")
    return str(sqlite_store.url)


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, dict[str, Any]]]:
    """What the command gives the dashboard."""
    runs: list[tuple[Any, dict[str, Any]]] = []

    def run(source: Any, **given: Any) -> None:
        runs.append((source, given))

    monkeypatch.setattr(tui, "run", run)
    return runs


def screen_text(app: Dashboard) -> str:
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


def test_the_history_alone_begins_at_a_time(history, poolwatch, shown):
    assert poolwatch("tui", "--history", history, "--at", "-100min")[0] == 0
    ((source, given),) = shown
    assert isinstance(source, HistorySource)
    assert given["past"] is source
    assert abs(given["at"] - time.time() + 6000) < 300
    assert [each.id for each in source.snapshot().processes[0].holds] == ["b"]


def test_the_history_goes_on_behind_live_readings(history, poolwatch, shown, tmp_path):
    live = ("--dir", str(tmp_path / "sockets"))
    assert poolwatch("tui", "--history", history, *live)[0] == 0
    assert poolwatch("tui", *live)[0] == 0
    (live_source, given), (_, without) = shown
    assert not isinstance(live_source, HistorySource)
    assert isinstance(given["past"], HistorySource)
    assert without["past"] is None
    assert isinstance(Dashboard(live_source, past=given["past"]).past, Both)
    code, _, err = poolwatch("tui", "--history", history, "--at", "-1min", *live)
    assert (code, err) == (2, "poolwatch: --dir cannot be combined with the history\n")
    code, _, err = poolwatch("tui", "--history", f"sqlite:///{tmp_path}/x.db", *live)
    assert (code, err.count("\n")) == (2, 1)


def test_a_saved_moment_goes_with_nothing_else(history, poolwatch, tmp_path: Path):
    for option in (("--history", history), ("--dsn", "x"), ("--at", "-1min")):
        code, _, err = poolwatch("tui", str(tmp_path / "a.json"), *option)
        assert (code, err) == (
            2,
            f"poolwatch: {option[0]} cannot be combined with a saved moment\n",
        )


async def test_the_same_keys_further_back(history, poolwatch, shown):
    poolwatch("tui", "--history", history, "--at", "-100min")
    ((source, given),) = shown
    app = Dashboard(source, past=given["past"], at=given["at"])
    async with app.run_test(size=(120, 40)) as pilot:
        await until_async(lambda: "2h00m ago, not now" in screen_text(app))
        await until_async(lambda: "the last reading before " in screen_text(app))
        await until_async(lambda: "held 7.0s" in screen_text(app))
        await until_async(lambda: "▸" in screen_text(app))
        await until_async(lambda: "it was empty" in screen_text(app))
        await pilot.press("right")
        await until_async(lambda: "held 42s" in screen_text(app))
        await pilot.press("N")
        await until_async(lambda: "2h00m ago, not now" in screen_text(app))
        await pilot.press("right")
        await until_async(lambda: "held 42s" in screen_text(app))
        await pilot.press("S", *"-100min", "enter")
        await until_async(lambda: "2h00m ago, not now" in screen_text(app))
        await pilot.press("escape")
        await until_async(lambda: "HISTORY" in screen_text(app))
        await until_async(lambda: "held 42s" in screen_text(app))
