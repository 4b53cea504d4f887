"""Who blocks a statement: a hold, an idle connection, or somebody else."""

from __future__ import annotations

from dataclasses import replace

import fakes

from poolwatch.diagnosis.lock_waits import lock_waits
from poolwatch.diagnosis.sessions import Sessions
from poolwatch.model import Backend, LockRequest

IDLE = fakes.server_row("idle", state_age_s=12.1, query="COMMIT")
EARLIER = LockRequest(
    fakes.frame("/srv/app/migrate.py:8"), fakes.frame("/srv/app/migrate.py:9"), 40.0
)


def blocked(by, id="h1", pid=10, event="Lock:advisory", line=5):  # noqa: A002
    row = fakes.server_row("active", wait_event=event, blocked_by=tuple(by))
    site = fakes.frame(f"/srv/app/job.py:{line}")
    return fakes.hold(id, backend_pid=pid, server=row, site=site)


def found(process, *others, backends=()):
    status = replace(process.servers[0], others=tuple(backends))
    process = replace(process, servers=(status,))
    return lock_waits(process, Sessions([process, *others]))


def on(identity="a/1", address="db:5432"):
    return (fakes.server_status(identity=identity, address=address),)


def lines(finding):
    return [site.line for site in finding.sites]


def test_blocked_by_a_hold():
    holder = fakes.hold(
        "h2", backend_pid=11, server=fakes.server_row("idle in transaction")
    )
    (finding,) = found(fakes.process(blocked([11], event="Lock:tuple"), holder))
    assert finding.text == (
        "app/job.py:5 is blocked by orders/repo.py:55 (idle in transaction, pid 11)"
    )
    assert finding.remedy.startswith("Commit or roll back")
    assert finding.proof.startswith("pg_blocking_pids(10) = 11; waiting for")
    assert (finding.holds, lines(finding)) == (("h1",), [5, 55])


def test_blocked_by_a_prepared_transaction():
    (finding,) = found(fakes.process(blocked([0], event="Lock:transactionid")))
    assert finding.text.endswith("is blocked by a prepared transaction")
    assert "pg_prepared_xacts" in finding.remedy


def test_a_hold_that_has_an_advisory_lock():
    """There may be nothing to commit."""
    holder = fakes.hold("h2", backend_pid=11, server=IDLE)
    (finding,) = found(fakes.process(blocked([11]), holder))
    assert "pg_advisory_unlock" in finding.remedy
    assert "Commit" not in finding.remedy


def test_blocked_by_an_idle_connection():
    idle = fakes.idle(server=IDLE, advisory_locks=1)
    (finding,) = found(fakes.process(blocked([7873]), idle=(idle,)))
    assert finding.text == (
        "app/job.py:5 is blocked by a session lock kept by a pooled connection (pool "
        "'orders', pid 7873), the statement that requested it was not seen; last used "
        "at app/reindex.py:41 (checked out at app/reindex.py:40), returned 12s ago"
    )
    assert "pg_advisory_xact_lock" in finding.remedy
    assert lines(finding) == [5, 40]


def test_blocked_by_an_idle_connection_in_a_transaction():
    row = fakes.server_row("idle in transaction", state_age_s=12.1)
    idle = fakes.idle(server=row, used=None)
    waiter = blocked([7873], event="Lock:relation")
    (finding,) = found(fakes.process(waiter, idle=(idle,)))
    assert finding.text.endswith(
        "last checked out at app/reindex.py:40, returned in a transaction 12s ago"
    )
    assert "did not roll back" in finding.remedy


def test_the_user_that_requested_the_lock_is_blamed():
    idle = fakes.idle(server=IDLE, advisory_locks=1, lock=EARLIER)
    (finding,) = found(fakes.process(blocked([7873]), idle=(idle,)))
    assert "pid 7873), requested at app/migrate.py:9 40s ago" in finding.text
    assert "last used at app/reindex.py:41" in finding.text
    assert lines(finding) == [5, 8]


def test_an_idle_connection_that_was_used_since_the_snapshot():
    """Its last user is not known any more; the pool is."""
    idle = fakes.idle(server=IDLE, advisory_locks=1, unchanged_s=-0.2)
    (finding,) = found(fakes.process(blocked([7873]), idle=(idle,)))
    assert "a connection of pool 'orders' (pid 7873) that was used" in finding.text
    assert lines(finding) == [5]


def test_an_idle_connection_that_got_the_lock_after_its_row_was_read():
    """By its row it has neither a lock nor a transaction: it blocks nobody."""
    idle = fakes.idle(server=IDLE)
    (finding,) = found(fakes.process(blocked([7873]), idle=(idle,)))
    assert "a connection of pool 'orders' (pid 7873) that was used" in finding.text
    assert lines(finding) == [5]


def test_a_blocker_that_may_have_ended_since():
    """The next user of its connection has the lock, as far as one knows."""
    holder = fakes.hold("h2", backend_pid=11, server=fakes.server_row("active"))
    holder = replace(holder, may_have_ended=True, earlier_lock=EARLIER)
    (finding,) = found(fakes.process(blocked([11]), holder))
    assert "a connection of pool 'orders' (pid 11) that was used" in finding.text
    assert lines(finding) == [5]


def test_a_waiter_that_may_have_ended_since():
    """The statement that waits may be the next user's."""
    waiter = replace(blocked([11]), may_have_ended=True)
    assert found(fakes.process(waiter)) == []


def test_an_idle_connection_of_another_process_at_another_address():
    """One server, reached by its socket and over TCP: its identity decides."""
    idle = fakes.idle(server=IDLE, advisory_locks=1)
    other = fakes.process(pid=99, idle=(idle,), servers=on(address="/run/pg:5432"))
    (finding,) = found(fakes.process(blocked([7873]), servers=on()), other)
    assert "connection (pool 'orders', process 99, pid 7873)" in finding.text
    assert lines(finding) == [5, 40]


def test_the_same_pid_on_another_server_is_not_it():
    idle = fakes.idle(server=IDLE, advisory_locks=1)
    other = fakes.process(pid=99, idle=(idle,), servers=on("b/2"))
    (finding,) = found(fakes.process(blocked([7873]), servers=on()), other)
    assert finding.text.endswith("is blocked by the session with pid 7873")
    assert lines(finding) == [5]


def test_a_stranger_is_named_by_what_the_server_says():
    row = fakes.server_row(
        "idle in transaction", state_age_s=180.0, query="SELECT 1 FOR UPDATE"
    )
    psql = Backend(4711, 200.0, 50000, "psql", row, client="10.0.0.7")
    process = fakes.process(blocked([4711], event="Lock:tuple"), servers=on())
    (finding,) = found(process, backends=[psql])
    assert finding.text == (
        "app/job.py:5 is blocked by a session of 'psql' (pid 4711, client 10.0.0.7, "
        "idle in transaction for 3m00s: SELECT 1 FOR UPDATE)"
    )
    assert "pg_terminate_backend(4711)" in finding.remedy


def test_a_stranger_of_whom_nothing_may_be_seen():
    row = fakes.server_row(None, state_age_s=None, query=None)
    hidden = Backend(4711, None, None, None, row)
    process = fakes.process(blocked([4711]), servers=on())
    (finding,) = found(process, backends=[hidden])
    assert finding.text.endswith("by a session without application_name (pid 4711)")


def test_control_characters_of_a_stranger_are_harmless():
    row = fakes.server_row("active", query="select '\x1b[2J'")
    evil = Backend(4711, 1.0, -1, "\x1b[31mroot", row)
    process = fakes.process(blocked([4711]), servers=on())
    (finding,) = found(process, backends=[evil])
    assert "\x1b" not in finding.text
    assert "over a Unix socket" in finding.text


def test_a_chain_names_its_root():
    row = fakes.server_row("idle in transaction", state_age_s=12.1)
    idle = fakes.idle(server=row)
    middle = blocked([7873], "h2", 11, "Lock:relation", line=6)
    waiter = blocked([11], event="Lock:relation")
    first, second = found(fakes.process(waiter, middle, idle=(idle,)))
    assert "is blocked by app/job.py:6 (active, pid 11); at the root" in first.text
    assert "chain is an idle connection of pool 'orders'" in first.text
    assert "did not roll back" in first.remedy
    assert lines(first) == [5, 6, 40]
    assert "root" not in second.text


def test_a_chain_into_the_unknown_has_no_root():
    middle = blocked([12], "h2", 11, line=6)
    first, _ = found(fakes.process(blocked([11]), middle))
    assert "root" not in first.text


def test_a_circle_ends():
    """The server will resolve it; until then it is two findings, not a hang."""
    one, two = blocked([11], "h1", 10), blocked([10], "h2", 11, line=6)
    assert len(found(fakes.process(one, two))) == 2


def test_a_lent_connection_with_the_lock_of_an_earlier_user():
    """Its user knows nothing of the lock, and need not be waited for."""
    user = replace(blocked([12], "h2", 11, "Lock:tuple", 6), earlier_lock=EARLIER)
    first, _ = found(fakes.process(blocked([11]), user))
    assert "requested at app/migrate.py:9 40s ago, and no unlock" in first.text
    assert "root" not in first.text
    assert lines(first) == [5, 8]
    assert "pg_advisory_xact_lock" in first.remedy


def test_an_earlier_lock_does_not_explain_another_kind_of_wait():
    user = fakes.hold(
        "h2",
        backend_pid=11,
        server=fakes.server_row("idle in transaction"),
        earlier_lock=EARLIER,
    )
    (finding,) = found(fakes.process(blocked([11], event="Lock:tuple"), user))
    assert "migrate" not in finding.text
    assert lines(finding) == [5, 55]


def borrower(held_s, **changes):
    row = fakes.server_row("idle in transaction", xact_age_s=held_s)
    return fakes.hold("h2", backend_pid=11, server=row, held_s=held_s, **changes)


def waiting(waited_s, *by, **changes):
    waiter = blocked(by or [11], **changes)
    row = replace(waiter.server, state_age_s=60.0, waited_s=waited_s)
    return replace(waiter, server=row)


def test_who_borrowed_the_connection_during_the_wait_is_not_to_blame():
    """Also if the request for the lock was not seen."""
    (finding,) = found(fakes.process(waiting(30.0), borrower(0.3)))
    assert finding.text == (
        "app/job.py:5 is blocked by a session lock kept by a pooled connection (pool "
        "'orders', pid 11), the statement that requested it was not seen; now borrowed "
        "by orders/repo.py:55 (idle in transaction)"
    )
    assert "pg_advisory_xact_lock" in finding.remedy
    assert lines(finding) == [5]


def test_who_had_the_connection_before_the_wait_may_have_taken_the_lock():
    """The statement that waits may be much older than its wait."""
    (finding,) = found(fakes.process(waiting(4.0), borrower(5.0)))
    assert lines(finding) == [5, 55]
    assert "Release the advisory lock before other work" in finding.remedy


def test_a_kept_lock_has_one_name_whoever_has_its_connection():
    idle = fakes.idle(11, server=IDLE, advisory_locks=1, lock=EARLIER)
    states = [
        {"idle": (idle,)},
        {"idle": (replace(idle, unchanged_s=-0.2, advisory_locks=0),)},
        {"hold": borrower(0.3, earlier_lock=EARLIER)},
        {"hold": borrower(0.3, earlier_lock=EARLIER, may_have_ended=True)},
        {"hold": blocked([12], "h2", 11, "Lock:relation", 6)},
    ]
    servers = (fakes.server_status(identity="a/1", late_s=0.05),)
    names, sites = set(), set()
    for state in states:
        holds = [waiting(1.5), *([state["hold"]] if "hold" in state else [])]
        process = fakes.process(*holds, idle=state.get("idle", ()), servers=servers)
        finding = found(process)[0]
        names.add(finding.text.partition(" (pool")[0])
        sites.add(tuple(lines(finding)))
    assert names == {
        "app/job.py:5 is blocked by a session lock kept by a pooled connection"
    }
    assert sites == {(5, 8), (5,)}  # the last one's request was not seen


def test_who_is_ahead_in_the_queue_keeps_nothing():
    """It waits for the same lock, with a connection that it borrowed a moment ago."""
    ahead = replace(blocked([99], "h2", 11, line=6), held_s=0.3)
    first, _ = found(fakes.process(waiting(30.0, 99, 11), ahead))
    assert "kept" not in first.text


def test_many_blockers_are_counted():
    process = fakes.process(blocked(range(100, 110)))
    (finding,) = found(process)
    assert finding.text.endswith("pid 103 and 6 more")
