"""Sums over minutes, and faults over incidents."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from poolwatch.model import BUCKETS, Frame, Incident
from poolwatch.sidecar.history.reading import PoolMinute
from poolwatch.sidecar.report.faults import faults_of, union
from poolwatch.sidecar.report.totals import (
    MAX_STEPS,
    Durations,
    PoolKey,
    Totals,
    time_line,
)
from poolwatch.text.format import utc_time

MINUTE = 1_796_000_400


def pool_minute(minute: int = MINUTE, **changes: Any) -> PoolMinute:
    values: dict[str, Any] = {field.name: 0 for field in fields(PoolMinute)}
    values |= {"minute": minute, "host": "web-1", "service": "shop", "pool": "orders"}
    values |= {"size": 5, "max_overflow": 10, "wait_up_to": None, "hold_up_to": None}
    return PoolMinute(**{**values, "looks": 60, **changes})


def incident(number: int, begin: float, end: float | None, **changes: Any) -> Incident:
    last = utc_time(end or begin + 100)
    values: dict[str, Any] = {
        "id": f"i{number}",
        "host": f"web-{number % 2}",
        "pid": number,
        "process": "shop",
        "pool": "orders",
        "kind": "leaked.orphaned",
        "severity": "critical",
        "started_at": utc_time(begin),
        "last_seen_at": last,
        "ended_at": last if end else None,
        "text": "orders.py:3 leaked",
        "proof": "",
        "remedy": "",
        "sites": (Frame("orders.py", 3, "f"),),
        "snapshot": False,
    }
    return Incident(**{**values, **changes})


def test_a_time_line_is_no_longer_than_a_plot_has_room() -> None:
    for hours in (0.01, 1, 8, 24, 7 * 24, 365 * 24):
        line = time_line(MINUTE + 17.5, MINUTE + hours * 3600)
        assert line.steps <= MAX_STEPS
        assert line.since <= MINUTE + 17.5
        assert line.since + line.steps * line.step_s >= MINUTE + hours * 3600


def test_the_pools_of_one_name_are_added_up_over_processes() -> None:
    totals = Totals(time_line(MINUTE, MINUTE + 180))
    one = pool_minute(out_sum=120, out_max=4, waiting_sum=30, waiting_max=3)
    totals.add_pools([one, replace(one, pid=2, out_max=7)])
    totals.add_pools([replace(one, minute=MINUTE + 120)])
    pool = totals.pools[PoolKey("shop", "orders")]
    assert totals.mean(pool.out) == [4.0, None, 2.0]  # nobody looked in between
    assert totals.mean(pool.waiting) == [1.0, None, 0.5]
    assert totals.seen(pool.out_peak) == [11, None, 4]
    assert pool.limit == 30
    totals.add_pools([replace(one, max_overflow=-1)])
    assert pool.limit is None


def test_a_minute_that_is_not_over_counts_as_far_as_it_goes() -> None:
    totals = Totals(time_line(MINUTE + 30, MINUTE + 75))
    totals.add_pools([pool_minute(out_sum=60), pool_minute(MINUTE + 60, out_sum=60)])
    assert totals.covered == [0.5, 0.25]
    assert totals.mean(totals.pools[PoolKey("shop", "orders")].out) == [1.0, 1.0]


def test_durations() -> None:
    durations = Durations()
    assert durations.within(0.99) is None
    durations.add(10, [5, 9, *[9] * (len(BUCKETS) - 2)])
    assert durations.within(0.9) == 0.005
    assert durations.within(0.99) == float("inf")
    assert durations.parts == [5, 4, *[0] * (len(BUCKETS) - 2), 1]
    durations.add(3, None)  # unknown is not guessed
    assert durations.count == 10


def test_the_same_fault_in_many_processes_is_one() -> None:
    since, until = float(MINUTE), MINUTE + 3600.0
    same = [incident(n, since + n, since + 60 + n) for n in range(50)]
    again = incident(3, since + 600, None)
    other = incident(9, since, since + 3500, severity="warning", kind="nested")
    first, second = faults_of([*same, again, other], since, until)
    assert (len(first.incidents), first.processes, first.hosts) == (51, 50, 2)
    assert first.seconds == 109 + 100  # as a clock on the wall has it
    assert first.lasting
    assert second.worst is other


def test_a_full_pool_is_one_fault_whoever_had_the_connections() -> None:
    full = [
        incident(
            n, MINUTE, MINUTE + 9, kind="exhausted", sites=(Frame("a.py", n, "f"),)
        )
        for n in range(3)
    ]
    (found,) = faults_of(full, MINUTE, MINUTE + 60)
    assert len(found.incidents) == 3


def test_union_of_spans() -> None:
    assert union([(5, 6), (1, 3), (2, 4), (4, 4.5)]) == [(1, 4.5), (5, 6)]
    assert union([]) == []
