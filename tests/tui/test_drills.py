"""Enter on a row that stands for several leads to exactly those."""

from __future__ import annotations

import pytest
from drawn import selection
from fakes import (
    finding,
    frame,
    hold,
    pool,
    process,
    server_row,
    snapshot,
    times,
    wait,
)

from poolwatch.model import LabelStats, SiteStats
from poolwatch.tui.state.filtering import parse
from poolwatch.tui.views import known_fields, named
from poolwatch.tui.views.view import Drill

HELPER = frame("/srv/lib/db.py:8", "get_db")
CALLERS = frame("/srv/shop/cart.py:51"), frame("/srv/shop/pay.py:7")
ODD = frame('/srv/a "b" c/app.py:3')
POOLS = pool("orders"), pool('au"dit')
IDLE = server_row("idle in transaction")


def alike(**changes):
    """Holds, two of each kind."""
    names, values = changes.keys(), zip(*changes.values(), strict=True)
    kinds = [dict(zip(names, each, strict=True)) for each in values] * 2
    return [hold(f"h{n}", **{"site": HELPER, **kind}) for n, kind in enumerate(kinds)]


@pytest.mark.parametrize(
    "holds",
    [
        alike(caller=CALLERS),
        alike(pool=[each.name for each in POOLS]),
        alike(site=[None], used_at=[HELPER], stack=[()], thread=[None]),
        alike(site=[None, ODD]),
        alike(
            verdict=["ok", "long", "leaked", "long"], server=[None, None, None, IDLE]
        ),
    ],
    ids=["callers", "pools", "adopted", "odd places", "verdicts"],
)
def test_from_merged_holds(board, holds):
    b = board(snapshot(process(*holds, pools=POOLS)))
    named("holds").state(b).merged = True
    for row in list(selection(b).shown):
        assert arrived(b, row, "holds") == {each.hold.id for each in row.holds}


def test_from_merged_waits(board):
    waits = [
        wait(f"w{n}", site=site, caller=caller)
        for n, (site, caller) in enumerate([(HELPER, c) for c in CALLERS] * 2)
    ]
    waits += [wait("x1", site=None), wait("x2", site=None)]
    b = board(snapshot(process(waits=tuple(waits))))
    for row in list(selection(b, view="waits").shown):
        assert arrived(b, row, "waits") == {each.id for each in row.waits}


def test_from_call_sites_and_labels(board):
    values = 'say "hi"', "other"
    holds = [
        hold(f"h{n}", site=HELPER, pool=each.name, labels={"task": value}, task="t")
        for n, (each, value) in enumerate(zip(POOLS * 2, values * 2, strict=True))
    ]
    sites = [SiteStats(p.name, HELPER, 3, 0.5, times(1), times(1), 0) for p in POOLS]
    labels = [
        LabelStats(p.name, "task", v, 3, 0.5, times(1), times(1), 0, 0.1, 0.1, 0.1)
        for p, v in zip(POOLS, values, strict=True)
    ]
    shown = process(*holds, pools=POOLS, sites=tuple(sites), labels=tuple(labels))
    b = board(snapshot(shown))
    for label in (None, "task"):
        named("sites").state(b).label = label
        rows = list(selection(b, view="sites").shown)
        assert len(rows) == 2
        for row in rows:
            assert arrived(b, row, "sites") == {each.hold.id for each in row.holds}


def test_from_a_process_whose_pid_a_backend_has(board):
    ours = process(hold("h1", backend_pid=9), pid=12)
    b = board(snapshot(ours, process(hold("h2", backend_pid=12), pid=13)))
    row = next(r for r in selection(b, view="processes").shown if r.pid == 12)
    assert arrived(b, row, "processes") == {"h1"}


def test_from_a_finding_of_a_pool_with_a_quote_in_its_name(board):
    found = finding(pool=POOLS[1].name, holds=("h1", "h3"))
    holds = alike(pool=[each.name for each in POOLS])
    b = board(snapshot(process(*holds, pools=POOLS, findings=(found,))))
    (row,) = selection(b, view="findings").shown
    assert arrived(b, row, "findings") == {"h1", "h3"}


def arrived(b, row, view):
    """The ids in the view that Enter leads to, as it filters."""
    target = named(view).leads_to(b, row)
    assert isinstance(target, Drill)
    b.filter = parse(target.filter, known_fields(b))
    assert b.filter.error is None
    state = named(target.view).state(b)
    before, state.merged = state.merged, False
    shown = list(selection(b, view=target.view).shown)
    b.filter, state.merged = parse(""), before
    return {
        (row.waits[0] if target.view == "waits" else row.first.hold).id for row in shown
    }
