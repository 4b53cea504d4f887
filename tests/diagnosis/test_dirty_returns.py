"""What a connection brought back: what is said, of which line, and what proves it."""

from __future__ import annotations

import fakes
import pytest

from poolwatch.diagnosis.dirty_returns import dirty_returns
from poolwatch.diagnosis.sessions import Sessions
from poolwatch.model import LockRequest

IDLE = fakes.server_row("idle", state_age_s=12.1, query="COMMIT")
OPEN = fakes.server_row("idle in transaction", state_age_s=12.1, xact_age_s=13.0)
EARLIER = LockRequest(
    fakes.frame("/srv/app/migrate.py:8"), fakes.frame("/srv/app/migrate.py:9"), 40.0
)


def found(*idle, holds=(), **changes):
    process = fakes.process(*holds, idle=idle, **changes)
    return dirty_returns(process, Sessions([process]))


def locked(pid=7873, **changes):
    return fakes.idle(pid, **{"server": IDLE, "advisory_locks": 1, **changes})


def test_a_session_level_lock():
    """Named at the call site of the last user, although no hold has the connection."""
    (finding,) = found(locked())
    assert (finding.kind, finding.severity) == ("dirty_return", "warning")
    assert finding.sites == (fakes.frame("/srv/app/reindex.py:40", "reindex"),)
    assert finding.holds == finding.waits == ()
    assert finding.text == (
        "app/reindex.py:40 returned a connection to pool 'orders' with a "
        "session-level advisory lock, 12s ago (pid 7873)"
    )
    assert finding.proof == (
        "pg_locks: backend 7873 holds 1 advisory lock without a transaction; the "
        "statement that requested it was not seen; last used at app/reindex.py:41 "
        "(checked out at app/reindex.py:40), returned 12s ago"
    )
    assert "pg_advisory_xact_lock" in finding.remedy
    assert finding.remedy.endswith("SELECT pg_terminate_backend(7873).")


def test_the_line_that_requested_the_lock_is_blamed_not_the_last_user():
    (finding,) = found(locked(lock=EARLIER))
    assert finding.sites == (EARLIER.site,)
    assert finding.text.startswith("app/migrate.py:8 returned a connection to pool")
    assert "requested 40s ago" in finding.text
    assert "requested at app/migrate.py:9, 40s ago" in finding.proof


def test_a_lock_that_was_lent_again_needs_no_second_of_rest():
    """Its return is over: the pool has lent the connection since."""
    busy = {"returned_s": 0.1, "unchanged_s": 0.05}
    assert found(locked(lock=EARLIER, **busy))
    assert not found(locked(**busy))


def test_an_open_transaction():
    (finding,) = found(fakes.idle(server=OPEN))
    assert "in an open transaction, 12s ago" in finding.text
    assert "is idle in transaction, its transaction is 13s old" in finding.proof
    assert "older than that use" not in finding.proof
    assert "pool_reset_on_return" in finding.remedy


def test_an_open_transaction_of_a_driver_pool():
    """Its pool has no reset_on_return to look at."""
    pools = (fakes.pool(kind="ThreadedConnectionPool"),)
    (finding,) = found(fakes.idle(server=OPEN), pools=pools)
    assert "BEGIN" in finding.remedy
    assert "reset_on_return" not in finding.remedy


def test_a_transaction_that_is_older_than_the_last_use():
    row = fakes.server_row("idle in transaction", state_age_s=12.1, xact_age_s=90.0)
    (finding,) = found(fakes.idle(server=row))
    assert finding.proof.endswith("(the transaction is older than that use)")


@pytest.mark.parametrize("query", ["LISTEN orders", "COMMIT", "commit;"])
def test_a_listener(query):
    row = fakes.server_row("idle", state_age_s=12.1, query=query)
    (finding,) = found(fakes.idle(server=row, listening=True))
    assert "still listening" in finding.text
    assert finding.remedy.startswith("UNLISTEN")


def test_a_listener_whose_statements_are_not_seen():
    """In a psycopg2 pool: the server has it as the last statement."""
    row = fakes.server_row("idle", state_age_s=12.1, query="listen a")
    (finding,) = found(fakes.idle(server=row, used=None))
    assert "still listening" in finding.text


@pytest.mark.parametrize(
    "idle",
    [
        pytest.param(locked(advisory_locks=0), id="no lock is left"),
        pytest.param(locked(server=None), id="no row is proven"),
        pytest.param(locked(returned_s=0.5), id="the return is not over"),
        pytest.param(locked(unchanged_s=0.5), id="it was used a moment ago"),
        pytest.param(locked(unchanged_s=-0.1, lock=EARLIER), id="it may be in use"),
        pytest.param(locked(declared=True), id="declared"),
        pytest.param(locked(server=fakes.server_row("active")), id="in a statement"),
        pytest.param(
            fakes.idle(
                server=fakes.server_row("idle", query="ROLLBACK"), listening=True
            ),
            id="LISTEN was rolled back",
        ),
        pytest.param(
            fakes.idle(server=fakes.server_row("idle", query="COMMIT")),
            id="the last user committed something else",
        ),
    ],
)
def test_innocents(idle):
    assert found(idle) == []


def test_a_connection_that_another_pool_holds():
    """A pool over a pool: idle in one, held in the other."""
    hold = fakes.hold(backend_pid=7873, server=IDLE)
    assert found(locked(), holds=(hold,)) == []


def test_several_connections_of_one_line_are_one_finding():
    (finding,) = found(locked(1), locked(2, returned_s=5.0), locked(3))
    assert "returned 3 connections" in finding.text
    assert "5.0s ago (pid 1, 2, 3)" in finding.text
