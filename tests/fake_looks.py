"""A process whose counters follow a number of checkouts, and looks at it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import fakes

from poolwatch.diagnosis.incidents import Began, Changes
from poolwatch.model import (
    Distribution,
    Frame,
    Incident,
    LabelStats,
    Process,
    SiteStats,
    Snapshot,
    Unreachable,
)
from poolwatch.sidecar.looks import Look

NOON = datetime(2026, 3, 2, 12, tzinfo=UTC).timestamp()
SITE = Frame("/srv/shop/orders/views.py", 41, "load_orders")


def iso(at: float) -> str:
    return datetime.fromtimestamp(at, UTC).isoformat()


def spread(count: int) -> Distribution:
    """``count`` durations of 20 ms."""
    up_to = (0, 0, 0, *(count,) * 6)
    return Distribution(count, count * 0.02, 0.02, 0.02, 0.02, 0.02, up_to)


def process(done: int, *, started: float = NOON - 3600, **changes: Any) -> Process:
    """A process with ``done`` checkouts, all returned."""
    pool = fakes.pool(
        checked_out=0,
        counters=fakes.counters(checkouts=done, checkins=done, connects=1),
        hold_s=spread(done),
        wait_s=spread(done),
        served_s=spread(done),
    )
    figures: Any = (done, 0.1, spread(done), spread(done), 0)
    site = SiteStats(
        "orders", SITE, *figures, held_s=done * 0.02, path="orders/views.py"
    )
    label = LabelStats(
        "orders", "endpoint", "/orders", *figures, None, None, 0.0, done * 0.02
    )
    values = {"pools": (pool,), "sites": (site,), "labels": (label,)}
    return fakes.process(**{"started_at": iso(started), **values, **changes})


def look(after_s: float, *processes: Process, **changes: Any) -> Look:
    """A look at a time after noon."""
    unreachable = changes.pop("unreachable", ())
    return Look(
        at=NOON + after_s,
        took_s=0.01,
        snapshot=Snapshot(processes, unreachable),
        **changes,
    )


def ended(process: Process) -> Unreachable:
    return Unreachable(process.pid, "it has ended", iso(NOON), alive=False)


def incident(name: str, process: Process, after_s: float, **changes: Any) -> Incident:
    at = iso(NOON + after_s)
    values: dict[str, Any] = {
        "id": name,
        "host": process.host,
        "pid": process.pid,
        "process": "orders-api",
        "pool": "orders",
        "kind": "exhausted",
        "severity": "critical",
        "started_at": at,
        "last_seen_at": at,
        "ended_at": None,
        "text": "pool is exhausted",
        "proof": "nothing is free",
        "remedy": "return it",
        "sites": (SITE,),
        "snapshot": True,
    }
    return Incident(**{**values, **changes})


def began(incident: Incident, process: Process) -> Changes:
    return Changes(began=(Began(incident, process),), lasting=(incident,))


def lasting(incident: Incident, after_s: float) -> Changes:
    return Changes(lasting=(replace(incident, last_seen_at=iso(NOON + after_s)),))


def over(incident: Incident, after_s: float) -> Changes:
    at = iso(NOON + after_s)
    return Changes(ended=(replace(incident, last_seen_at=at, ended_at=at),))
