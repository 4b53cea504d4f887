"""Equal findings of many processes as one, with true counts; the cause first."""

from __future__ import annotations

import re
from dataclasses import replace

import fakes
import pytest

from poolwatch.diagnosis.merging import merged, unmerged
from poolwatch.model import Connection, FleetFinding, RequestOfHost

GEN = fakes.frame("/srv/app/gen.py:21", "generate")
OTHER = fakes.frame("/srv/app/rep.py:7", "report")


def worker(pid, *findings, holds=(), **changes):
    values = {"host": "web-1", "findings": findings, **changes}
    return fakes.process(*holds, pid=pid, **values)


def finding(kind, *holds, site=GEN, severity="warning", **changes):
    return fakes.finding(
        kind, sites=(site,), severity=severity, holds=tuple(holds), **changes
    )


def held(*seconds, **changes):
    values = {"site": GEN, **changes}
    return [fakes.hold(f"h{n}", held_s=s, **values) for n, s in enumerate(seconds)]


def texts(*processes, **changes):
    return [m.text for m in merged(fakes.snapshot(*processes, **changes))]


def kinds(*processes):
    return [m.kind for m in merged(fakes.snapshot(*processes))]


def test_the_finding_of_one_process_keeps_its_words():
    one = worker(1, finding("long_hold", "h0", text="mine"), holds=held(40.0))
    (found,) = merged(fakes.snapshot(one))
    assert (found.text, found.who) == ("mine", "orders-api (pid 1)")
    assert (found.key, found.sites) == (("long_hold", "orders", (GEN,), ""), (GEN,))


def test_one_line_of_code_in_64_processes():
    many = [
        worker(n, finding("long_hold", "h0", "h1"), holds=held(31.0, 30.0 + n))
        for n in range(1, 65)
    ]
    (found,) = merged(fakes.snapshot(*many))
    assert found.text == (
        "app/gen.py:21 holds 128 connections in 64 processes, longest 1m34s"
    )
    assert (len(found.holds), len(found.processes)) == (128, 64)
    assert found.members[0][0].pid == 64
    assert found.who == (
        "orders-api (pid 64), orders-api (pid 63), orders-api (pid 62), "
        "orders-api (pid 61) and 60 more"
    )
    alone = unmerged(fakes.snapshot(*many))
    assert len({one.key for one in alone}) == len(alone) == 64


WORDS = {
    "leaked.orphaned": "checked out 4 connections in 2 processes; their threads or "
    "tasks have ended without returning them, the oldest 50s ago",
    "leaked.abandoned": "checked out 4 connections in 2 processes; nothing uses them "
    "any more, the oldest was checked out 50s ago",
    "held_across_io": "holds 4 connections in 2 processes during work outside the "
    "database, longest 50s",
    "idle_in_transaction": "holds 4 connections in 2 processes, idle in a transaction, "
    "longest 12s",
    "slow_query": "runs one statement on each of 4 connections in 2 processes, longest "
    "12s",
}


def test_four_faults_in_64_workers_are_four_findings():
    found = [finding(kind, "h0") for kind in ("nested", *list(WORDS)[:3])]
    many = [worker(n, *found, holds=held(40.0)) for n in range(64)]
    assert len(merged(fakes.snapshot(*many))) == 4
    assert len(unmerged(fakes.snapshot(*many))) == 256


@pytest.mark.parametrize(("kind", "words"), WORDS.items())
def test_the_words_of_each_kind(kind, words):
    row = fakes.server_row("active", state_age_s=12.0)
    holds = held(40.0, 50.0, server=row)
    found = texts(*[worker(n, finding(kind, "h0", "h1"), holds=holds) for n in (1, 2)])
    assert found == [f"app/gen.py:21 {words}"]


def test_findings_that_name_no_hold_are_counted_by_process():
    found = texts(*[worker(n, finding("nested", text="a in b")) for n in (1, 2, 3)])
    assert found == ["a in b; likewise in 2 more processes"]
    stray = fakes.finding("stray_session", text="backend 7 still runs")
    assert texts(worker(1, stray, stray)) == [
        "backend 7 still runs; and 1 more like it"
    ]


def test_what_is_not_equal_stays_apart():
    other_pool = fakes.pool("billing", id="p2")
    found = texts(
        worker(1, finding("long_hold", text="a")),
        worker(2, finding("long_hold", site=OTHER, text="b")),
        worker(3, finding("held_across_io", text="c")),
        worker(4, finding("long_hold", pool="p2", text="d"), pools=(other_pool,)),
    )
    assert sorted(found) == ["a", "b", "c", "d"]


def test_the_same_hold_is_counted_once():
    both = finding("long_hold", "h0"), finding("long_hold", "h0", "h1", "gone")
    (found,) = merged(fakes.snapshot(worker(1, *both, holds=held(40.0, 41.0))))
    assert found.text == "app/gen.py:21 holds 2 connections, longest 41s"


def test_the_worst_member_gives_proof_and_remedy():
    (found,) = merged(
        fakes.snapshot(
            worker(1, finding("nested", remedy="mild", proof="p1")),
            worker(2, finding("nested", severity="critical", remedy="now", proof="p2")),
        )
    )
    assert (found.severity, found.proof, found.remedy) == ("critical", "p2", "now")


def empty(pid, waited=(17.0,), timeouts=20, **changes):
    pool = fakes.pool(
        checked_out=2,
        size=2,
        max_overflow=0,
        counters=fakes.counters(timeouts=timeouts),
    )
    waits = tuple(fakes.wait(f"w{n}", waited_s=s) for n, s in enumerate(waited))
    found = fakes.finding(
        "exhausted", holds=("h0", "h1"), waits=tuple(w.id for w in waits), **changes
    )
    leaked = fakes.hold("h1", site=OTHER, verdict="leaked", held_s=60.0)
    holds = (*held(40.0), leaked)
    return worker(pid, found, holds=holds, waits=waits, pools=(pool,))


def test_a_pool_that_is_empty_in_several_processes():
    (found,) = merged(fakes.snapshot(empty(1), empty(2, (3.0, 4.0))))
    assert found.text == (
        "pool 'orders' is empty in 2 processes: 4 of 4 out, 3 wait (oldest 17s of "
        "30s), 40 timed out so far. 2 at app/gen.py:21, 2 leaked at app/rep.py:7"
    )
    assert (found.key, len(found.waits)) == (("exhausted", "orders", (), ""), 3)


# -- servers -----------------------------------------------------------------------


def down(pid, text, **changes):
    found = fakes.finding("server_down", pool=None, text=text)
    return worker(pid, found, **changes)


def test_a_server_that_is_down_is_one_finding():
    text = "PostgreSQL at db:5432 does not answer; 2 pools of 2 processes use it"
    other = "PostgreSQL at db:54321 does not answer; 1 pool of 1 process uses it"
    assert texts(down(1, text), down(2, text), down(3, other)) == [text, other]


def test_a_local_address_means_another_server_on_each_host():
    text = "PostgreSQL at 127.0.0.1:5432 does not answer; 1 pool of 1 process uses it"
    assert len(texts(down(1, text), down(1, text, host="web-2"))) == 2
    shared = text.replace("127.0.0.1", "db")
    (found,) = texts(down(1, shared), down(1, f"{shared} ", host="web-2"))
    assert found == "PostgreSQL at db:5432 does not answer; 2 processes use it"


def ghosts(pid, count, age_s, up_s=60.0):
    holds = held(*[9.0] * count, connection=Connection(age_s, 0.1, "db:5432", None))
    ids = [hold.id for hold in holds]
    status = fakes.server_status(identity="7/1793000000.25", up_s=up_s)
    found = finding("ghost", *ids, severity="critical", text=f"{count} ghosts")
    return worker(pid, found, holds=holds, servers=(status,))


def test_a_restart_of_the_server_is_one_finding_with_a_count():
    (found,) = merged(fakes.snapshot(ghosts(1, 5, 61.0), ghosts(2, 7, 99.0)))
    assert found.text.startswith(
        "12 holds of 2 processes are on a server that was restarted at "
    )
    assert found.text.count(":") == 2
    (ended,) = texts(ghosts(1, 5, 10.0), ghosts(2, 7, 10.0))
    assert ended == "12 holds in 2 processes have lost their sessions on the server"


# -- lock chains -------------------------------------------------------------------


def locked(pid, *blocked_by, state="active", id=None, **changes):  # noqa: A002
    event = "Lock:transactionid" if blocked_by else None
    row = fakes.server_row(
        state,
        wait_event=event,
        blocked_by=blocked_by,
        state_age_s=changes.pop("age", 9),
    )
    site = fakes.frame(f"/srv/app/site.py:{pid}")
    values = {"site": site, **changes}
    return fakes.hold(id or f"h{pid}", backend_pid=pid, server=row, **values)


def waits_of(*holds):
    return [
        fakes.finding("lock_wait", holds=(h.id,), text=f"{h.id} is blocked", sites=())
        for h in holds
        if h.server.blocked_by
    ]


def chained(pid, *holds, identity="a/1", **changes):
    servers = (fakes.server_status(identity=identity),)
    return worker(pid, *waits_of(*holds), holds=holds, servers=servers, **changes)


def test_a_chain_over_two_processes_is_one_finding_about_its_root():
    """With soft edges: 23 and 24 are behind each other in the queue."""
    root = locked(21, state="idle in transaction", age=176.0)
    root = replace(
        root, now=(fakes.frame("/v/site-packages/urllib3/connection.py:9"),
                   fakes.frame("/srv/app/site.py:93")),
    )  # fmt: skip
    first = chained(1, root, locked(22, 21), locked(23, 22))
    second = chained(2, locked(24, 23, 22), locked(25, 24))
    (found,) = merged(fakes.snapshot(first, second))
    assert found.text == (
        "app/site.py:21 holds up 4 sessions: idle in transaction for 2m56s, its code "
        "is in an HTTP request at :93"
    )
    assert found.key == ("lock_wait", "orders", (root.site,), "")
    assert [hold.id for _, hold in found.holds] == ["h21", "h22", "h23", "h24", "h25"]
    assert found.remedy.startswith("Commit or roll back")


def test_one_victim_has_the_words_of_many_and_its_line():
    root = locked(21, state="idle in transaction", age=176.0)
    process = chained(1, root, locked(22, 21))
    (found,) = merged(fakes.snapshot(process))
    assert found.text == (
        "app/site.py:21 holds up 1 session (app/site.py:22): idle in transaction for "
        "2m56s"
    )
    (alone,) = unmerged(fakes.snapshot(process))
    assert alone.text == "h22 is blocked"


def test_a_kept_lock_is_a_root_whatever_its_borrower_waits_for():
    """Who borrows the connection now cannot release the lock."""
    row = fakes.server_row(
        wait_event="Lock:advisory", blocked_by=(21,), state_age_s=60.0, waited_s=60.0
    )
    waiter = replace(locked(22, 21), server=row)
    kept, held = "a session lock kept by a pooled connection", "app/site.py:31"
    for blocker, roots in ((), [kept]), ((31,), [kept, held]):
        borrower = locked(21, *blocker, held_s=0.2)
        process = chained(1, borrower, waiter, locked(31))
        found = {each.text: each for each in merged(fakes.snapshot(process))}
        assert sorted(re.split(r" \(pool| holds", text)[0] for text in found) == roots
        (lock,) = [each for text, each in found.items() if text.startswith(kept)]
        assert lock.key == ("lock_wait", None, (), "advisory lock of a/1 21")
        assert "holds up 1 session (app/site.py:22)" in lock.text


def test_several_roots_at_one_line_are_one_finding():
    roots = [
        locked(pid, state="idle in transaction", age=float(pid), site=GEN)
        for pid in (10, 20)
    ]
    waiting = [locked(11, 10), locked(12, 10), locked(21, 20)]
    (found,) = texts(chained(1, *roots, *waiting))
    assert found == (
        "app/gen.py:21 holds up 3 sessions with 2 connections, longest idle in "
        "transaction for 20s"
    )


def test_a_root_that_is_no_hold():
    (found,) = merged(fakes.snapshot(chained(1, locked(11, 99), locked(12, 11))))
    assert found.text == "the session with pid 99 holds up 2 sessions"
    assert found.key == ("lock_wait", None, (), "a/1 pid 99")
    assert "pg_terminate_backend(99)" in found.remedy


def test_the_same_pid_on_two_servers_is_two_roots():
    one, two = (chained(n, locked(11, 99), identity=f"s/{n}") for n in (1, 2))
    assert len(merged(fakes.snapshot(one, two))) == 2


def test_a_cycle_has_no_root():
    both = chained(1, locked(11, 12), locked(12, 11))
    assert [m.key.about for m in merged(fakes.snapshot(both))] == [""]


def test_a_lock_over_two_hosts_is_part_of_the_same_finding():
    root = chained(1, locked(21, state="idle in transaction"))
    waiting = chained(2, locked(22, 21), locked(23, 21), host="web-2")
    over = FleetFinding(
        "lock_wait", "critical", None, "over hosts", "", "",
        holds=(RequestOfHost("web-2", 2, "h22"), RequestOfHost("web-1", 1, "h21")),
    )  # fmt: skip
    (found,) = merged(fakes.snapshot(root, waiting, findings=(over,)))
    assert found.text.startswith("app/site.py:21 holds up 2 sessions")
    assert len(found.processes) == 1


# -- the cause first ---------------------------------------------------------------


def test_the_order():
    pool = fakes.pool(checked_out=10)
    other = fakes.pool("free", checked_out=0)
    holds = [
        locked(21, state="idle in transaction", held_s=50.0),
        *(locked(pid, 21) for pid in (22, 23)),
        locked(31, state="idle in transaction", held_s=90.0),
        *(locked(pid, 31) for pid in (32, 33, 34)),
    ]
    process = worker(
        1,
        fakes.finding("nested", severity="info", sites=(OTHER,)),
        fakes.finding("leaked.orphaned", pool="free", sites=(OTHER,)),
        fakes.finding("leaked.orphaned", sites=(GEN,)),
        fakes.finding("idle_in_transaction", severity="warning", holds=("h21",)),
        fakes.finding("exhausted", holds=("h22",)),
        *waits_of(*holds),
        fakes.finding("pool_deadlock", pool="free"),
        fakes.finding("server_down", pool=None),
        holds=holds,
        pools=(pool, other),
        servers=(fakes.server_status(identity="a/1"),),
    )
    found = merged(fakes.snapshot(process))
    assert [(m.kind, m.pool) for m in found] == [
        ("server_down", None),
        ("pool_deadlock", "free"),
        ("lock_wait", "orders"),
        ("lock_wait", "orders"),
        ("exhausted", "orders"),
        ("leaked.orphaned", "orders"),
        ("leaked.orphaned", "free"),
        ("idle_in_transaction", "orders"),
        ("nested", "orders"),
    ]
    assert [m.text.partition(":")[2][:14] for m in found[2:4]] == [
        "31 holds up 3 ",
        "21 holds up 2 ",
    ]
    leads = {(m.kind, m.sites): [key.kind for key in m.leads_to] for m in found}
    assert leads["lock_wait", (holds[0].site,)] == ["exhausted"]
    assert leads["leaked.orphaned", (GEN,)] == ["exhausted"]
    assert leads["leaked.orphaned", (OTHER,)] == []
    assert leads["exhausted", ()] == []


def test_a_server_that_is_down_explains_its_empty_pools_only():
    text = "PostgreSQL at db:5432 does not answer; 1 pool of 1 process uses it"
    for address, leads in (("db:5432", ["exhausted"]), ("db:5433", [])):
        url = f"postgresql://web@{address}/x"
        pool = fakes.pool(url=url)
        servers = (fakes.server_status(address=address, down="no"),)
        found = merged(
            fakes.snapshot(
                down(1, text),
                worker(2, fakes.finding(), servers=servers, pools=(pool,)),
            )
        )
        assert [m.kind for m in found] == ["server_down", "exhausted"]
        assert [key.kind for key in found[0].leads_to] == leads


def test_a_deadlock_comes_before_what_made_it_possible():
    one = worker(1, finding("nested"), fakes.finding("pool_deadlock"))
    found = merged(fakes.snapshot(one))
    assert [m.kind for m in found] == ["pool_deadlock", "nested"]
    assert [key.kind for key in found[1].leads_to] == ["pool_deadlock"]
