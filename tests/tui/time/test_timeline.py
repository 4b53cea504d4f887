"""The strip and the list of incidents, as lines."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from fake_looks import NOON, incident, iso, process

from poolwatch.model import Incident, Step
from poolwatch.tui.draw.line import INKS, length, plain
from poolwatch.tui.time.ring import Kept
from poolwatch.tui.time.timeline import (
    Timeline,
    began_at,
    cells_in,
    incident_after,
    incident_lines,
    kept_words,
    local,
    shortened_words,
    strip_lines,
)

EXTENT = NOON - 3600, NOON + 600
KEYS = "← → step  n N incident  S seek  esc now"
HOSTILE = "x\x1b[2J [/b] \u202e 漢字 " * 20


@pytest.fixture(autouse=True)
def new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def seen(name: str, began: float, ended: float | None, **changes: Any) -> Incident:
    over = None if ended is None else iso(NOON + ended)
    return incident(name, process(0), began, ended_at=over, **changes)


SLOW = seen("slow", 60, 120, kind="long_hold", severity="warning", text="run.py:41")
LOCK = seen("lock", 400, None, kind="lock_wait", text="export.py:88 holds up 4")
FULL = seen("full", 450, None, text="pool 'orders' is empty")


def timeline(width: int, at: float = 424.0, **changes: Any) -> Timeline:
    """Ten minutes: a gap from 200 to 300 s, trouble from 400 s on."""
    cells = cells_in(width)
    steps: list[Step | None] = []
    for cell in range(cells):
        second = cell / cells * 600
        known = Step(2, 0) if second < 400 else Step(20, 40)
        steps.append(None if 200 < second < 300 else known)
    values: dict[str, Any] = {
        "since": NOON,
        "until": NOON + 600,
        "at": NOON + at,
        "steps": steps,
        "incidents": (SLOW, LOCK, FULL),
        "then": (20, 40, 1),
        "note": "600 readings, 3.4 MiB",
        "keys": KEYS,
    }
    return Timeline(**{**values, **changes})


def drawn(width: int, at: float = 424.0, **changes: Any) -> list[str]:
    return [plain(line) for line in strip_lines(timeline(width, at, **changes), width)]


def test_a_wide_strip() -> None:
    title, out, waiting, findings, axis = drawn(160)
    assert title.startswith("  TIME  07:00:00 to 07:10:00, 600 readings, 3.4 MiB ──")
    assert title.rstrip().endswith(KEYS)
    assert out.startswith("  out      ▁▁")
    assert out.rstrip().endswith("██  20 then, most 20")
    assert "┊·····" in out
    assert "┊·····" in waiting
    assert waiting.rstrip().endswith("40 then, most 40")
    assert findings.count("◆") == 2
    assert findings.count("■") == 2
    assert findings.rstrip().endswith("1 then")
    assert axis.startswith("  07:00:00 ")
    assert "▲ 07:07:04 " in axis
    assert axis.endswith(" 07:10:00")
    cells = cells_in(160)
    assert axis.index("▲") == 11 + int(424 / 600 * cells)
    assert findings.index("■") == 11 + int(400 / 600 * cells)


def test_a_narrow_strip() -> None:
    title, out, wait, find, _ = drawn(80)
    assert title.startswith("  TIME  07:00:00 to 07:10:00 ──")
    assert title.rstrip().endswith(KEYS)
    assert out.rstrip().endswith("█  20/20")
    assert wait.startswith("  wait  ")
    assert find.rstrip().endswith("─  1")


@pytest.mark.parametrize("width", [40, 41, 60, 80, 99, 100, 120, 160, 200, 300])
@pytest.mark.parametrize("at", [-50.0, 0.0, 5.0, 300.0, 590.0, 600.0, 700.0])
def test_any_width(width: int, at: float) -> None:
    trouble = "the history: " + HOSTILE
    hostile = seen("bad", 10, 700, text=HOSTILE, kind=HOSTILE, severity="info")
    shown = timeline(width, at, incidents=(hostile, LOCK), trouble=trouble)
    lines = strip_lines(shown, width)
    lines += incident_lines((hostile, LOCK), "bad", EXTENT, width, 5)
    assert len(lines) == 6 + 3
    for line in lines:
        assert length(line) <= width
        assert {ink for _, ink in line} <= set(INKS)
        assert not any(ord(sign) < 32 or sign == "\u202e" for sign in plain(line))
    assert "▲ " in plain(lines[4]) or " ▲" in plain(lines[4])


@pytest.mark.parametrize(("width", "before"), [(80, 200), (200, 80), (1, 160)])
def test_the_steps_of_another_width(width: int, before: int) -> None:
    """Until they are read again after a resize, with a gap among them."""
    lines = drawn(width, steps=timeline(before).steps)
    assert all(length(((line, "text"),)) <= width for line in lines)
    if width > 1:
        assert lines[1].index("┊") == pytest.approx(drawn(width)[1].index("┊"), abs=2)


def test_tiny_and_empty() -> None:
    for width in (1, 5, 10, 20):
        for line in strip_lines(timeline(width), width):
            assert length(line) <= width
    empty = drawn(80, steps=[None] * cells_in(80), incidents=())
    assert empty[1].rstrip() == "  out" + " " * (cells_in(80) + 5) + "-"
    assert "┊" not in empty[1]
    at_once = drawn(80, since=NOON, until=NOON, at=0)
    assert len(at_once) == 5


def test_days_are_told() -> None:
    axis = drawn(120, -2 * 86400, since=NOON - 5 * 86400)[4]
    assert axis.startswith("  02-25 07:00 ")
    assert axis.rstrip().endswith("03-02 07:10")
    assert local(1e20) == "-"


def test_what_is_kept() -> None:
    assert kept_words(Kept(600, 3565158, False, None)) == "600 readings, 3.4 MiB"
    full = Kept(405, 64 << 20, True, 211.0)
    assert kept_words(full) == "405 readings, 64.0 MiB, the older half 1 in 5"
    assert shortened_words(full) == "the memory for readings is full: 3m31s are kept"
    assert shortened_words(Kept(1, 1, False, None)) is None


def test_the_list_of_incidents() -> None:
    lines = incident_lines((SLOW, LOCK, FULL), "lock", EXTENT, 120, 10)
    texts = [plain(line).rstrip() for line in lines]
    assert texts == [
        "     began     ended     for       what",
        "     07:01:00  07:02:00  1m00s   ◆ long_hold  run.py:41",
        "  ▸  07:06:40  -         3m20s   ■ lock_wait  export.py:88 holds up 4",
        "     07:07:30  -         2m30s   ■ exhausted  pool 'orders' is empty",
    ]
    there_at_first = incident_lines((SLOW,), None, (began_at(SLOW), NOON), 120, 10)
    assert "≤07:01:00" in plain(there_at_first[1])
    many = [seen(f"i{each}", each, None) for each in range(50)]
    shown = incident_lines(many, "i40", EXTENT, 80, 6)
    assert len(shown) == 6
    assert any(plain(line).startswith("  ▸  07:00:40") for line in shown)
    (nothing,) = incident_lines((), None, EXTENT, 80, 5)
    assert "no incident" in plain(nothing)
    other_day = seen("old", -86400, None)
    (_, first, _) = incident_lines((other_day, LOCK), None, EXTENT, 80, 5)
    assert plain(first).startswith("    ≤03-01 07:00:00  ")


def test_from_incident_to_incident() -> None:
    known = (SLOW, LOCK, replace(LOCK, id="same"), FULL)
    assert incident_after(known, NOON) is SLOW
    assert incident_after(known, NOON + 60) is LOCK
    assert incident_after(known, NOON + 400) is FULL
    assert incident_after(known, NOON + 450) is None
    assert incident_after(known, NOON + 450, back=True) is LOCK
    assert incident_after(known, NOON + 400, back=True) is SLOW
    assert incident_after(known, NOON + 60, back=True) is None
