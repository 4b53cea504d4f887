"""The dashboard on a history: when it was, and processes of many hosts."""

from __future__ import annotations

from dataclasses import replace

from drawn import text, title
from fakes import finding, hold, pool, process, server_row, server_status, snapshot

from poolwatch.model import FleetFinding, RequestOfHost
from poolwatch.text.format import local_time
from poolwatch.tui.panels import pools
from poolwatch.tui.panels.detail import detail_lines
from poolwatch.tui.panels.header import header
from poolwatch.tui.views import named

AT = "2026-11-29T03:12:44.500+00:00"


def past(*processes, **changes):
    return snapshot(*(replace(each, at=AT) for each in processes), at=AT, **changes)


def test_every_panel_says_when(board):
    one = process(hold("a", held_s=42.0), findings=(finding(),))
    b = board(past(one))
    shown = text([header(b, 100.0, "12:00:00", 160)])
    assert f"HISTORY {local_time(AT)}" in shown
    assert "not now" in shown
    assert "LIVE" not in shown
    assert f"at {local_time(AT)}" in title(b, 160)
    (row,) = b.rows.values()
    detail = text(detail_lines(b, row, 160))
    assert f"on web-1, as it was at {local_time(AT)}" in detail
    assert f"HERE AT {local_time(AT)}" in detail


def test_the_same_pid_on_two_hosts(board):
    """Containers have the same few pids: none hides another."""
    busy = (pool(checked_out=5),)
    one = process(hold("a", held_s=1.0), host="web-1", pid=1, pools=busy)
    two = process(hold("a", held_s=2.0), host="web-2", pid=1)
    b = board(past(one, two))
    assert len(b.rows) == 2
    table = named("holds").layout(b, 160)
    assert "process" in {column.key for column, _ in table.columns}
    shown = text(pools.pool_lines(b, 160, 9))
    assert "1@web-1 orders-api" in shown
    assert "1@web-2 orders-api" in shown
    assert [row.pool.checked_out for row in b.rows.values()] == [1, 5]


def test_two_servers_with_the_same_address(board):
    """What one host calls localhost is another server on the next host."""
    local = (server_status(address="localhost:5432"),)
    locked = server_row(blocked_by=(10,))
    blocker = hold("a", backend_pid=10, server=server_row())
    blocked = hold("b", backend_pid=11, server=locked)
    one = process(blocker, host="web-1", servers=local)
    two = process(blocked, host="web-2", servers=local)
    words = [row.word for row in board(past(one, two)).rows.values()]
    assert words == ["BLOCKED", "ok"]
    same = (server_status(address="localhost:5432", identity="7/1"),)
    pair = replace(one, servers=same), replace(two, servers=same)
    words = [row.word for row in board(past(*pair)).rows.values()]
    assert words == ["ROOT", "BLOCKED"]


def test_findings_over_all_hosts(board):
    fleet = FleetFinding(
        "over_capacity", "critical", None, "too many", "120 > 100", "use fewer",
        holds=(RequestOfHost("web-1", 1, "a"),),
    )  # fmt: skip
    b = board(past(process(), findings=(fleet,)))
    assert [finding.text for finding in b.findings] == ["too many"]
