"""The last ten minutes: budget, steps of the clock, gaps, incidents."""

from __future__ import annotations

from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

import pytest
from fake_looks import NOON, incident, iso
from fakes import hold, pool, process, snapshot

from poolwatch.errors import NoProcessError
from poolwatch.model import Incident, Snapshot, Step
from poolwatch.tui.time.ring import SPAN_S, Ring


@dataclass
class Changes:
    lasting: tuple[Incident, ...] = ()
    ended: tuple[Incident, ...] = ()


@dataclass
class Scripted:
    """Says what the test tells it, once."""

    changes: Changes = field(default_factory=Changes)
    at: list[float] = field(default_factory=list)

    def update(self, snapshot: Snapshot, at: float) -> Changes:
        self.at.append(at)
        changes, self.changes = self.changes, Changes(self.changes.lasting)
        return changes


class Stepped:
    """A ring that is filled by hand: both clocks go on together, unless told."""

    def __init__(self, **options: Any) -> None:
        self.now = 1000.0
        self.wall = NOON
        self.tracker = Scripted()
        self.ring = Ring(self.tracker, clock=lambda: self.now, **options)

    def read(
        self, out: int = 1, waiting: int = 0, after: float = 1.0, noise: int = 0
    ) -> None:
        self.now += after
        self.wall += after
        holds = [hold(f"h{each}", held_s=self.now) for each in range(out)]
        holds += [hold("noise", statement=token_hex(noise))] if noise else []
        pools = (pool(checked_out=out, waiting=waiting),)
        self.ring.add(snapshot(process(*holds, pools=pools)), self.wall)

    def out_at(self, at: float) -> int:
        return len(self.ring.snapshot_at(at).processes[0].holds)


def test_a_moment_is_as_it_was() -> None:
    stepped = Stepped()
    for out in (1, 2, 3):
        stepped.read(out)
    assert stepped.ring.extent() == (NOON + 1, NOON + 3)
    assert stepped.out_at(NOON + 2) == 2
    assert stepped.out_at(NOON + 2.9) == 2
    assert stepped.out_at(NOON + 900) == 3
    shown = stepped.ring.snapshot_at(NOON + 2.5)
    assert shown.at == iso(NOON + 2).replace("+00", ".000+00")
    assert shown.processes[0].holds[0] == hold("h0", held_s=1002.0)
    with pytest.raises(NoProcessError, match="nothing is kept of 2026"):
        stepped.ring.snapshot_at(NOON)


def test_an_empty_ring() -> None:
    ring = Ring(Scripted())
    assert ring.extent() is None
    assert ring.steps(NOON, NOON + 10, 2) == [None, None]
    assert ring.moment_after(NOON, 1) == NOON
    assert ring.incidents(NOON, NOON + 10) == []
    assert ring.kept() == (0, 0, False, None)


def test_steps_to_the_next_reading_and_back() -> None:
    stepped = Stepped()
    for _ in range(5):
        stepped.read()
    after = stepped.ring.moment_after
    assert after(NOON + 2, 1) == NOON + 3
    assert after(NOON + 2.4, 1) == NOON + 3
    assert after(NOON + 2.4, -1) == NOON + 1
    assert after(NOON + 2, 99) == NOON + 5
    assert after(NOON + 2, -99) == NOON + 1
    assert after(NOON - 50, 1) == NOON + 1


def test_the_most_of_each_cell() -> None:
    stepped = Stepped()
    for out, waiting in ((1, 0), (5, 9), (2, 0), (2, 1)):
        stepped.read(out, waiting)
    steps = stepped.ring.steps(NOON - 1, NOON + 5, 3)
    assert steps == [None, Step(5, 9), Step(2, 1)]


def test_only_ten_minutes_are_kept() -> None:
    stepped = Stepped()
    for _ in range(700):
        stepped.read()
    assert stepped.ring.extent() == (NOON + 700 - SPAN_S, NOON + 700)
    assert stepped.ring.kept().shortened is None


def test_a_pause_is_a_gap() -> None:
    stepped = Stepped()
    for after in (1, 1, 60, 1):
        stepped.read(after=after)
    steps = stepped.ring.steps(NOON, NOON + 64, 16)
    assert steps == [Step(1, 0)] + [None] * 14 + [Step(1, 0)]
    assert stepped.out_at(NOON + 30) == 1
    assert (
        stepped.ring.snapshot_at(NOON + 30).at == stepped.ring.snapshot_at(NOON + 2).at
    )


def test_a_slow_pace_is_no_gap() -> None:
    stepped = Stepped()
    for _ in range(8):
        stepped.read(after=10)
    assert None not in stepped.ring.steps(NOON + 20, NOON + 80, 30)


def test_the_clock_goes_back_an_hour() -> None:
    stepped = Stepped()
    began = incident("i1", process(), 2)
    for out in (1, 2):
        stepped.tracker.changes = Changes((began,))
        stepped.read(out)
    stepped.wall -= 3600
    stepped.read(3)
    first, last = stepped.ring.extent() or (0, 0)
    assert (first, last) == pytest.approx((stepped.wall - 2, stepped.wall))
    assert stepped.out_at(last) == 3
    assert stepped.out_at(last - 1) == 2
    assert stepped.tracker.at == sorted(stepped.tracker.at)
    (moved,) = stepped.ring.incidents(first, last)
    assert moved.started_at == iso(NOON + 2 - 3600).replace("+00", ".000+00")
    stepped.wall += 3600
    stepped.read(4)
    assert stepped.ring.extent() == pytest.approx((NOON + 1, NOON + 4))


def test_the_clock_jumps_an_hour_ahead() -> None:
    stepped = Stepped()
    stepped.read(1)
    stepped.read(2)
    stepped.wall += 3600
    stepped.read(3)
    assert stepped.ring.extent() == (NOON + 1, NOON + 3603)
    assert stepped.out_at(NOON + 1800) == 2
    assert stepped.ring.steps(NOON + 10, NOON + 3000, 2) == [None, None]
    assert stepped.ring.moment_after(NOON + 2, 1) == NOON + 3603


def test_a_clock_that_wavers_keeps_the_order() -> None:
    stepped = Stepped()
    for change in (0, -3, 2, -10, 5, -1):
        stepped.wall += change
        stepped.read()
    moments = [NOON]
    while (following := stepped.ring.moment_after(moments[-1], 1)) != moments[-1]:
        moments.append(following)
    assert len(moments) == 7
    assert moments == sorted(moments)


def _size_of_one() -> int:
    stepped = Stepped()
    stepped.read(20)
    return stepped.ring.kept().bytes


def test_the_older_half_is_thinned_before_the_span_is_cut() -> None:
    budget = _size_of_one() * 80
    stepped = Stepped(budget=budget)
    for _ in range(100):
        stepped.read(20)
    kept = stepped.ring.kept()
    assert kept.bytes <= budget
    assert kept.thinned
    assert kept.shortened is None
    assert stepped.ring.extent() == (NOON + 1, NOON + 100)
    assert stepped.ring.moment_after(NOON + 1, 1) == NOON + 6
    assert None not in stepped.ring.steps(NOON + 1, NOON + 100, 50)


def test_a_span_that_is_cut_is_told() -> None:
    budget = _size_of_one() * 30
    stepped = Stepped(budget=budget)
    for _ in range(300):
        stepped.read(20)
    kept = stepped.ring.kept()
    assert kept.bytes <= budget
    first, last = stepped.ring.extent() or (0, 0)
    assert kept.shortened == last - first < 100
    assert stepped.out_at(first) == 20


def test_a_span_grows_again_when_readings_are_small() -> None:
    stepped = Stepped(budget=700_000)
    for _ in range(220):
        stepped.read(noise=8_000)
    assert (stepped.ring.kept().shortened or SPAN_S) < 220
    for _ in range(650):
        stepped.read(0)
    assert stepped.ring.kept().shortened is None
    first, last = stepped.ring.extent() or (0, 0)
    assert last - first == SPAN_S


def test_one_reading_is_kept_whatever_its_size() -> None:
    stepped = Stepped(budget=10)
    for out in (1, 2, 3):
        stepped.read(out)
    assert stepped.ring.kept().readings == 1
    assert stepped.out_at(NOON + 3) == 3


def test_thinning_keeps_the_first_moment_of_an_incident() -> None:
    stepped = Stepped(budget=_size_of_one() * 80)
    for number in range(100):
        if number == 12:
            began = incident("i1", process(), 13)
            stepped.tracker.changes = Changes((began,))
        stepped.read(20)
    assert stepped.ring.moment_after(NOON + 13, 0) == NOON + 13
    assert stepped.ring.kept().thinned


def test_incidents_are_kept_while_their_end_is() -> None:
    stepped = Stepped()
    began = incident("i1", process(), 1)
    over = incident("i1", process(), 1, ended_at=iso(NOON + 2))
    stepped.tracker.changes = Changes((began,))
    stepped.read()
    assert stepped.ring.incidents(NOON, NOON + 10) == [began]
    assert stepped.ring.incidents(NOON - 10, NOON) == []
    stepped.tracker.changes = Changes((), (over,))
    for _ in range(3):
        stepped.read()
    assert stepped.ring.incidents(NOON, NOON + 10) == [over]
    assert stepped.ring.incidents(NOON + 3, NOON + 10) == []
    for _ in range(700):
        stepped.read(0)
    assert stepped.ring.incidents(NOON, NOON + 9999) == []


def test_what_cannot_be_kept_harms_nobody() -> None:
    stepped = Stepped()
    stepped.read()
    stepped.ring.add(snapshot(process(name=lambda: None)), NOON + 2)
    assert stepped.ring.extent() == (NOON + 1, NOON + 1)
