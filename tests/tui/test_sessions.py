"""Views 3 and 4: every session of the servers, and the trees of those that wait."""

from __future__ import annotations

import fakes
import pytest
from drawn import rows, screen_text, selection, text, title
from fakes import FakeSource, frame, hold, server_row, snapshot
from helpers import until_async

from poolwatch.model import (
    Backend,
    ClosedConnection,
    Connection,
    LockRequest,
    Unreachable,
)
from poolwatch.tui.app import Dashboard
from poolwatch.tui.polling import Reading
from poolwatch.tui.state.filtering import parse
from poolwatch.tui.views import known_fields, named

HTTP = frame("/srv/billing/export.py:93", "export_invoice")


def row(by=(), waited=1.0, event="Lock:transactionid", **changes):
    if by:
        changes |= {"wait_event": event, "blocked_by": tuple(by), "xact_age_s": waited}
        return server_row("active", state_age_s=waited, **changes)
    changes.setdefault("state", "idle in transaction")
    return server_row(state_age_s=waited, xact_age_s=waited, **changes)


def ours(pid, site, task, server, **changes):
    return hold(
        f"h{pid}",
        backend_pid=pid,
        site=frame(site),
        task=task,
        server=server,
        **changes,
    )


def foreign(pid, application, server, **changes):
    known = {"client": "10.0.9.2", "database": "shop", "user": "dba"} | changes
    return Backend(pid, 60.0, 51244, application, server, **known)


def shop():
    """Two roots, one of them not ours, that hold up seven sessions."""
    insert = "UPDATE invoice SET sent = ? WHERE id = ?"
    root = row(waited=176.0, query=insert, xmin_age=1204)
    queued = "Lock:tuple"
    billing = [
        ours(21737, "/srv/billing/export.py:88", "export-17", root, now=(HTTP,)),
        ours(26844, "/srv/pay/service.py:130", "checkout-1", row([26746], 72.0)),
    ]
    orders = [
        ours(21999, "/srv/shop/cart.py:14", "cart-3", row([21737], 174.0)),
        ours(21997, "/srv/shop/cart.py:14", "cart-9", row([21999], 173.0, queued)),
        ours(21994, "/srv/shop/cart.py:14", "cart-0", row([21999], 171.0, queued)),
        ours(27069, "/srv/pay/service.py:130", "checkout-4", row([26844], 58.0)),
        ours(27071, "/srv/pay/refund.py:41", "refund-2", row([27069, 26844], 31.0)),
        ours(22161, "/srv/search/db.py:19", "req-77", server_row(xact_age_s=0.2)),
    ]
    closed = Connection(240.0, 0.01, "db:5432", 4711)
    others = (
        foreign(26746, "metabase", row(waited=720.0, query="SELECT … FOR UPDATE")),
        foreign(30112, "dba-laptop", row([21737], 41.0, "Lock:relation")),
        Backend(31853, 240.0, 4711, "billing", server_row("idle")),
        foreign(22170, "orders", server_row("idle", state_age_s=9.0)),
        foreign(40021, "poolwatch", server_row("idle")),
    )
    idle = fakes.idle(
        22170,
        site=frame("/srv/users/repo.py:55"),
        connection=Connection(60.0, 0.01, "db:5432", 51244),
    )
    return snapshot(
        fakes.process(
            *billing,
            name="billing",
            servers=(fakes.server_status(identity="a/1", others=others, left_out=3),),
            departed=(ClosedConnection("orders", 31853, 241.0, closed),),
        ),
        fakes.process(
            *orders,
            pid=9120,
            servers=(fakes.server_status(identity="a/1"),),
            idle=(idle,),
        ),
    )


def shown(board, view, cells=160):
    """The rows as text."""
    return [text([line]).rstrip() for line in rows(board, cells, view=view)]


def test_a_session_that_has_just_connected_is_not_told_as_a_strangers(board):
    """Its client has said neither its name nor anything: it may be poolwatch."""
    new, silent = server_row("idle", query=None), server_row("idle", query="SELECT")
    others = (
        Backend(41, 0.01, -1, "", new),
        Backend(42, 60.0, -1, "", new),
        Backend(43, 0.01, -1, "psql", new),
        Backend(44, 0.01, -1, "", silent),
    )
    status = fakes.server_status(identity="a/1", others=others)
    b = board(snapshot(fakes.process(servers=(status,))))
    told = {line.split()[0].lstrip("▌"): line for line in shown(b, "sessions")}
    assert "just connected" in told.pop("41", "") or told
    assert [pid for pid, line in told.items() if "just connected" in line] == []
    assert len([line for line in told.values() if "not ours" in line]) == 3


def test_each_root_is_followed_by_those_that_it_holds_up(board):
    b = board(shop())
    lines = shown(b, "blocking")
    who = [line[2:42].rstrip() for line in lines]
    assert who == [
        "▲ ROOT export-17",
        "├─ ▽ cart-3",
        "│  ├─ ▽ cart-9",
        "│  └─ ▽ cart-0",
        '└─ ▽ not ours: "dba-laptop" 10.0.9.2',
        '▲ ROOT not ours: "metabase" 10.0.9.2',
        "└─ ▽ checkout-1",
        "   └─ ▽ checkout-4",
        "      └─ ▽ refund-2 (+ waits for 26844)",
    ]
    assert "2 roots hold up 7 sessions, 6 of them ours" in title(
        b, 160, view="blocking"
    )
    for line, words in zip(
        lines,
        (
            ("4", "billing/export.py:88", "21737", "idle-tx", ":93", "UPDATE"),
            ("2", "2m54s", "shop/cart.py:14", "9120", "21999", "row of 21737"),
            ("2m53s", "row, 1st in queue"),
            ("2m51s", "row, 2nd in queue"),
            ("41s", "30112", "relation lock of 21737"),
            ("3", "26746", "its client, 12m00s", "SELECT …"),
        ),
        strict=False,
    ):
        for word in words:
            assert word in line
    assert 'ROOT "metabase"' in shown(b, "blocking", 80)[5]
    assert "not ours 10.0.9.2" in shown(b, "blocking", 80)[5]


def test_a_filter_keeps_what_is_above_a_row(board):
    b = board(shop())
    b.filter = parse("holder:cart-0", known_fields(b))
    assert [r.key[1] for r in selection(b, view="blocking").shown] == [
        21737, 21999, 21994
    ]  # fmt: skip
    assert shown(b, "blocking")[1].startswith("  └─ ▽ cart-3")
    assert [r.key[1] for r in selection(b, view="sessions").shown] == [21737, 21994]
    assert [row.first.hold.backend_pid for row in selection(b).shown] == [21737, 21994]


def test_another_order_is_no_tree(board):
    b = board(shop())
    state = named("blocking").state(b)
    state.sort = "waits"
    lines = shown(b, "blocking")
    assert "cart-3" in lines[0]
    assert not any("├" in line or "└" in line for line in lines)


def test_a_cycle_an_unknown_root_and_a_deep_chain(board):
    cycle = [
        ours(1, "/a.py:1", "one", row([2], 9.0)),
        ours(2, "/a.py:2", "two", row([1], 8.0)),
    ]
    chain = [ours(n, "/b.py:1", f"t{n}", row([n - 1])) for n in range(11, 40)]
    status = fakes.server_status(identity="a/1")
    prepared = ours(50, "/c.py:1", "three", row([0]))
    top = ours(60, "/d.py:1", "four", server_row(wait_event="Lock:relation"))
    below = ours(61, "/d.py:2", "five", row([60]))
    holds = (*cycle, *chain, prepared, top, below)
    b = board(snapshot(fakes.process(*holds, servers=(status,))))
    lines = {line[2:60].strip() for line in shown(b, "blocking")}
    assert any(line.startswith("↺ one") for line in lines)
    assert any(line.startswith("▲ ROOT unknown") for line in lines)
    assert any(line.startswith("▲ ROOT a prepared transaction") for line in lines)
    assert any("the chain goes on above" in line for line in shown(b, "blocking"))
    assert any(line.startswith("+21 ") and "t39" in line for line in lines)
    head = title(b, 200, view="blocking")
    assert "2 roots hold up" in head
    assert "1 cycle of waits  1 chain with an unknown root" in head
    words = {row.hold.task: row.verdict for row in b.rows.values()}
    assert words["one"] == words["four"] == "BLOCKED"  # neither is a root


def test_every_session_and_whose_it_is(board):
    b = board(shop())
    lines = {int(line[2:9]): line for line in shown(b, "sessions")}
    assert list(lines)[:3] == [21737, 26746, 31853]
    for pid, words in {
        21737: ("▲ export-17", "billing/export.py:88", "idle-tx", "2m56s", "1,204"),
        26746: ("▲ not ours", '"metabase" 10.0.9.2:51244', "shop", "dba"),
        31853: ("◆ nobody's", "given up by 8812 billing 4m01s ago"),
        21999: ("▽ cart-3", "Lock:transact", "orders", "web"),
        22170: ("○ idle in pool orders", "last used by users/repo.py:55", "idle"),
        40021: ("poolwatch's own", "reads the server"),
    }.items():
        for word in words:
            assert word in lines[pid]
    head = title(b, 160, view="sessions")
    assert "8 held  1 idle in pools  2 not ours  1 nobody's  1 poolwatch's own" in head
    assert "3 more left out" in head
    assert "61 of 100" in head


@pytest.mark.parametrize(
    ("words", "pids"),
    [
        ("app:metabase", [26746]),
        ('whose:"not ours"', [26746, 30112]),
        ("xmin>1000", [21737]),
        ("site:export.py", [21737]),
        ("user=web xact>175s", [21737]),
        ("address:10.0.9.2:51244 state:idle-tx", [26746]),
        ("pool:orders state=idle", [31853, 22170]),
    ],
)
def test_the_fields_of_sessions(board, words, pids):
    b = board(shop())
    b.filter = parse(words, known_fields(b))
    assert b.filter.error is None
    roots = {21737, 26746}
    found = [row.key[1] for row in selection(b, view="sessions").shown]
    assert [pid for pid in found if pid in pids or pid not in roots] == pids


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"servers": (fakes.server_status(error="no such role"),)}, "no such role"),
        ({"servers": ()}, "no pool has a server view"),
    ],
)
def test_without_a_server_view_the_reason_is_said(board, changes, why):
    b = board(snapshot(fakes.process(hold(), **changes)))
    assert why in named("sessions").empty(b)
    assert why in named("blocking").empty(b)


def test_a_history_keeps_no_sessions_of_other_programs(board):
    past = "2026-11-29T03:12:44+00:00"
    status = fakes.server_status(identity="a/1")
    held = hold(backend_pid=1, server=server_row())
    b = board(snapshot(fakes.process(held, servers=(status,), at=past), at=past))
    head = title(b, 160, view="sessions")
    assert "1 held" in head
    assert "the history keeps no sessions of other programs" in head


def test_hostile_names_stay_in_one_line(board):
    evil = "a\x1b[31m\nb\u202e"
    server = row(waited=9.0, query=f"select '{evil}'")
    status = fakes.server_status(
        identity="a/1", others=(foreign(7, evil, server, user=evil, database=evil),)
    )
    waiting = ours(8, "/a.py:1", evil, row([7]))
    b = board(snapshot(fakes.process(waiting, servers=(status,))))
    for view in ("sessions", "blocking"):
        drawn = named(view)
        lines = rows(b, 200, view=view)
        for each in selection(b, view=view).shown:
            lines += drawn.pane(b, each, 160, 20)
        for character in text(lines).replace("\n", ""):
            assert character.isprintable()
    issue = named("sessions").issue(b, selection(b, view="sessions").shown[0])
    assert "\x1b" not in issue


@pytest.mark.parametrize("size", [(80, 24), (160, 45)])
async def test_the_keys_of_both_views(size):
    app = Dashboard(FakeSource(shop()), refresh=0.1)
    async with app.run_test(size=size) as pilot:
        await until_async(lambda: "HOLDS 8" in screen_text(app))
        await pilot.press("4")
        await until_async(lambda: "BLOCKING 9" in screen_text(app))
        assert "→" in screen_text(app) or "CHECKED OUT HERE" in screen_text(app)
        await pilot.press(*"jjjjj")
        await until_async(lambda: "if it ends" in screen_text(app))
        assert "all of them can go on" in screen_text(app)
        await pilot.press("enter")
        await until_async(lambda: "26746  ▲ ROOT 3  not ours" in screen_text(app))
        assert "user dba, database shop" in screen_text(app)
        await pilot.press("n")
        await until_async(lambda: "HOLD  ▽ BLOCKED" in screen_text(app))
        await pilot.press("escape", "3", "j", "j")
        await until_async(lambda: "the server still keeps it" in screen_text(app))
        await pilot.press("Y")
        await until_async(lambda: "clipboard: ### Session 31853" in screen_text(app))
        await pilot.press("slash", *"app:metabase", "enter")
        await until_async(lambda: "filter app:metabase" in screen_text(app))


def test_a_lock_of_an_earlier_user_is_told_by_its_place(board):
    lock = LockRequest(frame("/srv/a.py:10"), frame("/srv/reindex.py:11"), 12.0)
    idle = fakes.idle(7, lock=lock, server=server_row("idle"))
    waiting = ours(8, "/srv/reindex.py:10", "next", row([7], 9.0, "Lock:advisory"))
    taken = fakes.idle(9, server=server_row("active"), unchanged_s=-0.1)
    status = fakes.server_status(identity="a/1")
    b = board(snapshot(fakes.process(waiting, servers=(status,), idle=(idle, taken))))
    root, victim = shown(b, "blocking")
    assert "▲ ROOT idle in pool orders" in root
    assert "srv/reindex.py:11" in root
    assert "advisory lock of 7" in victim
    pane = text(named("blocking").pane(b, selection(b, view="blocking").row, 160, 20))
    assert "requested at srv/reindex.py:11 12s ago, not released since" in pane
    assert any("just taken from orders" in line for line in shown(b, "sessions"))


def test_a_silent_process_tells_no_sessions_that_another_one_tells(board):
    def seen(*pids):
        others = tuple(foreign(pid, "psql", server_row()) for pid in pids)
        return (fakes.server_status(identity="a/1", others=others),)

    first = fakes.process(hold(), servers=seen(5, 6))
    second = fakes.process(hold(), pid=9120, servers=seen(6))
    silent = Unreachable(first.pid, "it does not answer", alive=True)
    b = board(snapshot(first))
    b.accept(Reading(101.0, snapshot(unreachable=(silent,))))
    assert {key[1] for key in b.sessions} == {5, 6}  # nobody else tells them
    b.accept(Reading(102.0, snapshot(second, unreachable=(silent,))))
    assert {key[1] for key in b.sessions} == {6}
