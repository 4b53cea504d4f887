"""The text of ``poolwatch ps``, made from records."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from fakes import (
    counters,
    finding,
    frame,
    hold,
    pool,
    process,
    server_row,
    server_status,
    snapshot,
    times,
    wait,
)

from poolwatch.commands.ps_table import Style, render, render_incident_snapshots
from poolwatch.model import (
    Distribution,
    Frame,
    IncidentMark,
    IncidentSnapshot,
    SiteStats,
    Unreachable,
)
from poolwatch.text.format import width

LIBRARY = "/srv/v/lib/python3.12/site-packages/sqlalchemy/engine/base.py:3303"
EVIL = "evil\x1b[2J\x07\u202e\nname"


def shown(*processes, columns=120, **style):
    return render(snapshot(*processes), Style(columns, **style))


def kept(*pictures, unreachable=(), columns=120, **style):
    return render_incident_snapshots(pictures, unreachable, Style(columns, **style))


def picture(of, kind="exhausted", at="2026-11-23T03:12:44+00:00", pool="orders"):
    return IncidentSnapshot(pool, kind, at, of)


def site(place="/srv/app/orders/repo.py:55", **changes):
    values = {
        "pool": "orders",
        "site": frame(place),
        "count": 12,
        "connections": 1.234,
        "hold_s": Distribution(12, 40.0, 7.5, 0.0123, 4.0, 7.0),
        "wait_s": times(0.1),
        "leaked": 1,
        "in_sql_s": 10.0,
        "in_transaction_idle_s": 25.0,
        "wait_caused_s": 42.0,
    }
    return SiteStats(**{**values, **changes})


def line_with(text, word):
    (line,) = [line for line in text.splitlines() if word in line]
    return line


# -- pools -------------------------------------------------------------------------


def test_zero_figures_are_omitted():
    text = shown(process())
    for word in (
        "cancelled",
        "on average",
        "timeout",
        "leaked",
        "NOTHING",
        "incidents:",
        "left",
    ):
        assert word not in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"gave_up": 2}, ", 2 cancelled waits"),
        ({"waiting_s_per_s": 2.41}, ", 2.4 waiting on average"),
        ({"waiting_s_per_s": 0.0051}, ", 0.01 waiting on average"),
        ({"counters": counters(timeouts=1)}, ", 1 timeout"),
    ],
)
def test_pool_line(changes, words):
    assert words in line_with(shown(process(pools=(pool(**changes),))), "orders (")


def test_a_pool_that_records_nothing_says_so_under_its_line():
    text = shown(process(pools=(pool("a"), pool("b", switched_off=True))))
    before, after = text.split("NOTHING IS RECORDED: a hook of poolwatch")
    assert before.splitlines()[-2].startswith("  b (")
    assert "see the application's log" in after


def test_what_the_search_left_out():
    gone = hold(held_s=40.0, verdict="long")
    text = shown(process(gone, left_out=("3 of 9 tasks", "the heap")))
    assert (
        line_with(text, "leak search")
        == "  leak search incomplete: 3 of 9 tasks; the heap"
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"verdict": "leaked"},
        {"verdict": "long", "evidence": ("held 40s", "in use by local 'c' of work")},
        {"verdict": "long", "now": (frame("/srv/app/orders/repo.py:60", "load"),)},
        {"now": (frame("/srv/app/main.py:1", "main"),)},
    ],
)
def test_what_the_search_left_out_is_omitted_if_no_verdict_depends_on_it(changes):
    text = shown(process(hold(**changes), left_out=("the heap",)))
    assert "leak search" not in text
    assert "leak search" not in shown(process(left_out=("the heap",)))


# -- the hint at incident snapshots -----------------------------------------------


def test_hint_gives_the_date_unless_it_is_today():
    now = datetime.now(UTC).replace(microsecond=0)
    marks = (
        IncidentMark("orders", "exhausted", "2026-01-02T03:12:44+00:00"),
        IncidentMark("orders", "timeout", now.isoformat()),
    )
    wide = line_with(shown(process(frozen=marks), columns=300), "incidents:")
    assert wide == (
        "  incidents: orders exhausted at 2026-01-02 03:12:44 UTC, "
        f"orders timed out at {now:%H:%M:%S} UTC (poolwatch ps --frozen)"
    )


def test_hint_names_the_last_three_incidents():
    marks = tuple(
        IncidentMark(f"p{n}", "pool_deadlock", f"2026-01-02T03:12:{n:02}+00:00")
        for n in range(24)
    )
    hint = line_with(shown(process(frozen=marks), columns=300), "incidents:")
    assert "p20 " not in hint
    assert "p21 deadlocked at" in hint
    assert ", and 21 more (poolwatch ps --frozen)" in hint


# -- the pictures ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("exhausted", "was exhausted"),
        ("timeout", "had a timeout"),
        ("pool_deadlock", "was deadlocked"),
    ],
)
def test_heading(kind, words):
    of = replace(process(hold()), name="app", pid=1)
    first = kept(picture(of, kind)).splitlines()[0]
    assert (
        first
        == f"incident 2026-11-23 03:12:44 UTC: pool 'orders' of app (pid 1) {words}"
    )


def test_other_time_zones_and_invalid_times():
    assert kept(picture(process(), at="2026-11-23T04:12:44+01:00")).startswith(
        "incident 2026-11-23 03:12:44 UTC:"
    )
    assert kept(picture(process(), at="2026-11-23T03:12:44")).startswith(
        "incident 2026-11-23 03:12:44 UTC:"
    )
    assert kept(picture(process(), at="soon\x1b")).startswith("incident soon␛: pool")
    early = kept(picture(process(), at="0001-01-01T00:00:00+09:00"))
    assert early.startswith("incident 0")


def test_an_incident_shows_only_its_pool():
    of = process(
        hold("h1", site=frame("/srv/orders.py:1")),
        hold("h2", site=frame("/srv/billing.py:2"), pool="billing"),
        pools=(pool(), pool("billing")),
        waits=(wait("w1"), wait("w2", pool="billing", thread="biller")),
        findings=(
            finding("exhausted", text="mine"),
            finding("exhausted", text="other", pool="billing"),
            finding("nested", text="both", pool=None, holds=("h1",)),
            finding("nested", text="neither", pool=None, holds=("h2",)),
        ),
        sites=(site(), site("/srv/billing.py:2", pool="billing")),
        frozen=(IncidentMark("orders", "exhausted", "2026-11-23T03:12:44+00:00"),),
    )
    text = kept(picture(of), sites=True)
    for word in ("orders.py:1", "worker-9", "mine", "both", "repo.py:55"):
        assert word in text
    for word in ("billing", "biller", "other", "neither", "(poolwatch ps --frozen)"):
        assert word not in text


def test_no_incident_snapshots():
    assert kept() == (
        "no incident snapshot: no pool has been exhausted, timed out or deadlocked "
        "since it was instrumented"
    )


def test_no_incident_snapshots_and_an_unreachable_process():
    text = kept(unreachable=(Unreachable(7, "it is\x07 older"),))
    assert (
        text
        == "no incident snapshot was found\n\npid 7 could not be read: it is␇ older"
    )


# -- call sites --------------------------------------------------------------------


def test_sites_only_with_the_option():
    of = process(sites=(site(),))
    assert "CAUSED" not in shown(of)
    assert "CAUSED" in shown(of, sites=True)


@pytest.mark.parametrize("columns", [80, 120])
def test_a_site_row(columns):
    lines = shown(process(sites=(site(),)), sites=True, columns=columns).splitlines()
    assert lines[-3].split() == ["AVG", "WAIT", "IDLE"]
    assert lines[-2].split("  ")[1] == "CALL SITE"
    row = "orders/repo.py:55 12 1.23 12.3ms 4s 7.5s 42s 25 62 1"
    assert " ".join(lines[-1].split()) == row


def test_unknown_is_a_dash():
    unknown = site(
        hold_s=Distribution(0, 0.0, None, None, None, None),
        in_sql_s=None,
        in_transaction_idle_s=None,
        wait_caused_s=0.0,
    )
    last = shown(process(sites=(unknown,)), sites=True).splitlines()[-1]
    assert last.split()[3:] == ["-", "-", "-", "0.0s", "-", "-", "1"]
    seen = site(hold_s=Distribution(1, 0.0, 0.0, 0.0, 0.0, 0.0))
    last = shown(process(sites=(seen,)), sites=True).splitlines()[-1]
    assert last.split()[7:9] == ["-", "-"]


def test_the_costliest_sites_first_and_a_limit():
    sites = tuple(site(f"/srv/a/b.py:{n}", wait_caused_s=float(n)) for n in range(25))
    lines = shown(process(sites=sites), sites=True).splitlines()
    assert "b.py:24" in lines[-21]
    assert "b.py:5 " in lines[-2]
    assert lines[-1] == "  and 5 more (poolwatch ps --json)"


def test_sites_are_grouped_by_pool():
    of = process(
        pools=(pool("a"), pool("b"), pool("c")),
        sites=(site(pool="b"), site("/srv/x/y.py:1", pool="a")),
    )
    titles = [line for line in shown(of, sites=True).splitlines() if "sites of" in line]
    assert titles == [f"  call sites of {n}, costliest first:" for n in "ab"]


# -- findings ----------------------------------------------------------------------


def test_equal_findings_of_several_processes_come_first_and_once():
    long = finding("long_hold", severity="warning", text="mine", holds=("h1",))
    empty = finding("exhausted", text="is empty")
    many = [process(hold(), pid=pid, findings=(long,)) for pid in (1, 2)]
    text = shown(*many, process(pid=3, findings=(empty,)), columns=200)
    long_text = "orders/repo.py:55 holds 2 connections in 2 processes, longest 1.0s"
    assert text.splitlines()[:5] == [
        "CRITICAL exhausted: is empty [orders-api (pid 3)]",
        "  return the connection before the slow call",
        f"WARNING long_hold: {long_text} [orders-api (pid 1), orders-api (pid 2)]",
        "",
        "orders-api  pid 1 on web-1",
    ]
    assert text.count("long_hold") == 1


def test_findings_of_the_only_process_are_below_its_pools():
    lines = shown(process(findings=(finding(text="mine"),))).splitlines()
    assert lines[2] == "  CRITICAL exhausted: mine"


# -- the proof ---------------------------------------------------------------------


def test_proof_and_stacks_only_with_verbose():
    text = shown(process(hold(verdict="leaked"), findings=(finding(),)))
    assert "return the connection" in text
    assert "proof:" not in text
    assert "checked out here" not in text


def test_proof():
    text = shown(process(findings=(finding(),)), verbose=True)
    assert line_with(text, "proof") == "    proof: nothing is free and requests wait"


def test_three_stacks():
    """The user's own frames, the call site first, five at most."""
    callers = [frame(f"/srv/app/f{n}.py:{n}", f"f{n}") for n in range(9)]
    here = frame("/srv/app/export.py:88", "export")
    leaked = hold(
        verdict="leaked",
        site=here,
        evidence=("thread worker-1 checked it out and has ended", "kept by a global"),
        held_s=125.0,
        backend_pid=4711,
    )
    leaked = replace(
        leaked,
        stack=(frame(LIBRARY), frame("/srv/app/db.py:1", "wrap"), here, *callers),
        used=(frame(LIBRARY), callers[3]),
        now=(),
    )
    lines = shown(process(leaked, hold("h2")), verbose=True).splitlines()
    assert lines[-9:] == [
        "  leaked 2m05s: worker-1, backend 4711",
        "    evidence: thread worker-1 checked it out and has ended; kept by a global",
        "    checked out here  app/export.py:88 in export",
        "                      app/f0.py:0 in f0",
        "                      app/f1.py:1 in f1",
        "                      app/f2.py:2 in f2",
        "                      app/f3.py:3 in f3",
        "    last used here    app/f3.py:3 in f3",
        "    now here          the holder has ended, or cannot be read",
    ]
    assert sum("checked out here" in line for line in lines) == 1


def test_stacks_without_the_users_code():
    """The innermost frame is shown; the call site is kept, wherever it is installed."""
    installed = Frame("/v/lib/python3.12/site-packages/app/views.py", 5, "view")
    long = replace(
        hold(verdict="long", site=installed),
        stack=(frame(LIBRARY), installed),
        now=(frame("/usr/lib/python3.12/threading.py:331", "wait"), frame(LIBRARY)),
    )
    lines = shown(process(long), verbose=True).splitlines()
    assert lines[-3:] == [
        "    checked out here  app/views.py:5 in view",
        "    last used here    no statement was seen",
        "    now here          python3.12/threading.py:331 in wait",
    ]
    nowhere = replace(long, site=None, stack=())
    assert "checked out here  unknown" in shown(process(nowhere), verbose=True)


def test_an_incident_has_the_stacks_of_all_holds():
    """In an exhausted pool each hold is a suspect."""
    text = kept(picture(process(hold("h1"), hold("h2"))), verbose=True)
    assert text.count("checked out here") == 2


# -- terminals ---------------------------------------------------------------------


def everything():
    deep = "/srv/" + "very_long_directory_name/" * 8 + "模块.py"
    bad = replace(
        hold(
            verdict="leaked",
            site=Frame(deep, 123456, EVIL * 9),
            caller=Frame(deep, 7, EVIL * 9),
            thread=EVIL * 9,
            evidence=("because " * 30, EVIL),
            statement="select 'x' from y " * 30,
            server=server_row("idle in transaction", blocked_by=(1, 2, 3)),
            held_s=1e6,
            backend_pid=4194304,
        ),
        now=(Frame(EVIL * 30, 1, EVIL),),
        used=(Frame(deep, 1, "f" * 200),),
    )
    big = Distribution(10**9, 1e9, 1e6, 9.994, 59.9, 1e5)
    costly = site(
        deep + ":123456", count=10**8, connections=1234.5, hold_s=big, leaked=10**6
    )
    busy = pool(
        name=EVIL * 3,
        id="orders",
        gave_up=123456,
        waiting_s_per_s=1234.5,
        switched_off=True,
        counters=counters(checkouts=10**9, timeouts=10**6, leaked=10**5),
    )
    marks = tuple(IncidentMark("orders", "timeout", EVIL * 20) for _ in range(9))
    return process(
        bad,
        pools=(busy,),
        name=EVIL * 20,
        waits=(wait(thread=EVIL * 20, site=Frame(deep, 1, EVIL)),),
        sites=(costly, site()),
        callers=(replace(costly, caller=Frame(deep, 7, EVIL)), site(caller=None)),
        findings=(
            finding(kind=EVIL, text=EVIL * 20, proof="…" * 390, remedy="字" * 350),
        ),
        servers=(server_status(error=EVIL * 20),),
        frozen=marks,
        left_out=(EVIL * 9, "the heap " * 20),
    )


@pytest.mark.parametrize("columns", [80, 100, 200])
def test_everything_fits_and_is_harmless(columns):
    of = everything()
    lost = (Unreachable(7, EVIL * 30),)
    for text in (
        render(
            snapshot(of, unreachable=lost), Style(columns, verbose=True, sites=True)
        ),
        kept(
            picture(of, at=EVIL),
            unreachable=lost,
            columns=columns,
            verbose=True,
            sites=True,
        ),
    ):
        for line in text.splitlines():
            assert width(line) <= columns, line
        for sign in "\x1b\x07\u202e":
            assert sign not in text


def test_long_sentences_lose_nothing():
    words = " ".join(f"word{n}" for n in range(40))
    text = shown(process(findings=(finding(text=words),)), columns=80)
    assert " ".join(text.split()).count(words) == 1
