"""concurrent_use: what is said of statements that overlap."""

from __future__ import annotations

import fakes

from poolwatch.diagnosis.concurrent import concurrent_use
from poolwatch.model import ConcurrentStatements

ONE, TWO, OPENED = (fakes.frame(f"/srv/app/views.py:{n}") for n in (10, 20, 5))


def noted(running=ONE, begun=TWO, callers=(None, None), **changes):
    each = ConcurrentStatements(running, begun, callers, OPENED, True, 2.0, 3)
    return each._replace(**changes)


def test_what_is_said():
    (finding,) = concurrent_use(fakes.pool(), [noted()])
    assert (finding.kind, finding.severity) == ("concurrent_use", "warning")
    assert finding.sites == (ONE, TWO)
    assert finding.text == (
        "two tasks use one connection of pool 'orders' at the same time: "
        "app/views.py:20 while the statement of app/views.py:10 was running"
    )
    assert finding.proof == (
        "seen 3 times, last 2.0s ago; the connection was checked out at app/views.py:5"
    )
    assert "each task" in finding.remedy
    (finding,) = concurrent_use(fakes.pool(), [noted(tasks=False)])
    assert finding.text.startswith("two threads")


def test_either_order_is_one_finding():
    (finding,) = concurrent_use(fakes.pool(), [noted(), noted(TWO, ONE, ago_s=1.0)])
    assert finding.proof.startswith("seen 6 times, last 1.0s ago")


def test_it_is_forgotten():
    assert concurrent_use(fakes.pool(), [noted(ago_s=301.0)]) == []
