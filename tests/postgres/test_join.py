"""A row is joined with a hold only if it is proven to be the hold's own."""

from __future__ import annotations

from dataclasses import replace

import fakes
import pytest

from poolwatch.model import Backend, ClosedConnection, Connection, ServerRow
from poolwatch.postgres.join import SLACK_S, claimed, join, stray_sessions
from poolwatch.protocol.records import ServerReading

ROW = ServerRow("idle in transaction", 3.0, 4.0, "Client:ClientRead", "select ?", ())
HIDDEN = ServerRow(None, None, None, None, None, ())


def hold(pid=100, pool="p1", **connection):
    facts = {"age_s": 60.0, "connect_s": 0.02, "address": None, "client_port": None}
    return fakes.hold(
        f"h{pid}-{pool}",
        pool=pool,
        backend_pid=pid,
        connection=Connection(**(facts | connection)),
    )


def process(*holds, pools=("p1",)):
    return fakes.process(*holds, pools=tuple(map(fakes.pool, pools)), servers=())


def backend(pid=100, age_s=60.01, client_port=-1, row=ROW):
    return Backend(pid, age_s, client_port, "app", row)


def reading(*backends, identity="a/1", address=None):
    return ServerReading(identity, "18.4", 3, 100, backends, address)


def server_of(the_hold, the_backend, window=(0.0, 0.0), address=None):
    given = {"p1": reading(the_backend, address=address)}
    joined = join(process(the_hold), given, windows={"p1": window})
    return joined.holds[0].server


def test_the_age_of_a_unix_connection_is_proof():
    """PostgreSQL forks the backend during the connect call."""
    assert server_of(hold(), backend(age_s=60.0)) == ROW
    assert server_of(hold(), backend(age_s=60.02)) == ROW
    assert server_of(hold(connect_s=1.5), backend(age_s=61.4)) == ROW


@pytest.mark.parametrize("younger", [0.1, 0.5, 5.0, 59.9])
def test_a_reused_pid_is_not_joined(younger):
    """The new backend of that pid is younger than the connection."""
    assert server_of(hold(), backend(age_s=60.0 - younger)) is None


def test_a_backend_older_than_the_connect_call_is_not_joined():
    """PgBouncer may report the pid of an older, unrelated backend."""
    assert server_of(hold(), backend(age_s=61.0)) is None
    assert server_of(hold(), backend(age_s=86400.0)) is None


def test_time_between_snapshot_and_reading_counts():
    """A reading half a second later sees a backend half a second older."""
    assert server_of(hold(), backend(age_s=60.5)) is None
    assert server_of(hold(), backend(age_s=60.5), window=(0.4, 0.6)) == ROW
    assert server_of(hold(), backend(age_s=60.0), window=(0.4, 0.6)) is None
    assert server_of(hold(), backend(age_s=59.5), window=(-0.6, -0.4)) == ROW


def test_the_tolerance_is_small_and_grows_slowly():
    """Two clocks may drift apart, within bounds."""
    young = hold(age_s=1.0, connect_s=0.0)
    assert server_of(young, backend(age_s=1.0 + SLACK_S)) == ROW
    assert server_of(young, backend(age_s=1.0 + 2 * SLACK_S)) is None
    day = hold(age_s=86400.0)
    assert server_of(day, backend(age_s=86401.5)) == ROW
    assert server_of(day, backend(age_s=86403.0)) is None


def test_equal_ports_are_proof_regardless_of_the_clocks():
    """After a laptop slept, the server's clock is hours ahead of a monotonic one."""
    tcp = hold(client_port=40000, address="10.0.0.5:5432")
    assert server_of(tcp, backend(age_s=7200.0, client_port=40000)) == ROW


def test_with_different_ports_the_age_decides():
    """A proxy or a container network may be in between."""
    tcp = hold(client_port=40000)
    assert server_of(tcp, backend(client_port=50000)) == ROW
    assert server_of(tcp, backend(client_port=50000, age_s=59.0)) is None
    loose = hold(client_port=40000, connect_s=None)
    assert server_of(loose, backend(client_port=50000, age_s=59.9)) is None


def test_a_connection_older_than_the_instrumentation_has_a_loose_age():
    """Its age counts from before a connect call of unknown length."""
    old = hold(connect_s=None)
    assert server_of(old, backend(age_s=59.5)) == ROW
    assert server_of(old, backend(age_s=60.2)) is None
    assert server_of(old, backend(age_s=58.0)) is None


def test_a_connection_of_unknown_age_is_joined_by_its_address():
    """The server at that address has reported the pid, and the backend must be older
    than the time since the connection was first seen."""
    met = hold(connect_s=None, met=True, address="/run/pg:5432")
    old, young = backend(age_s=4000.0), backend(age_s=59.0)
    assert server_of(met, old, address="/run/pg:5432") == ROW
    assert server_of(met, young, address="/run/pg:5432") is None
    assert server_of(met, old, address="/run/pg:5433") is None
    assert server_of(met, old) is None
    assert (
        server_of(hold(connect_s=None, met=True), old, address="/run/pg:5432") is None
    )
    over_tcp = hold(connect_s=None, met=True, address="db:5432", client_port=40000)
    elsewhere = backend(client_port=50000, age_s=4000.0)
    assert server_of(over_tcp, elsewhere, address="db:5432") is None


def test_an_unknown_connection_is_not_joined():
    assert server_of(replace(hold(), connection=None), backend()) is None
    assert server_of(replace(hold(), backend_pid=None), backend()) is None


def test_a_hidden_row_without_age_and_port_is_not_shown():
    """An unprivileged role sees nothing that could prove whose row it is."""
    unseen = backend(age_s=None, client_port=None, row=HIDDEN)
    assert server_of(hold(), unseen) is None
    assert server_of(hold(client_port=40000), unseen) is None


def test_a_row_of_unknowns_is_joined_as_such():
    assert server_of(hold(), backend(row=HIDDEN)) == HIDDEN


def test_the_same_pid_on_another_server_of_the_same_pool():
    """A pool with several hosts: the reading is of one of them."""
    there = hold(address="10.0.0.6:5432", client_port=40000)
    mine = "10.0.0.5:5432"
    assert server_of(there, backend(client_port=50000), address=mine) is None
    assert server_of(there, backend(), address="10.0.0.6:5432") == ROW
    assert server_of(there, backend(client_port=40000), address=mine) == ROW


def test_every_pool_is_joined_with_its_own_server():
    """Two pools, two servers, one pid."""
    one, two = hold(100, "p1"), hold(100, "p2")
    other = replace(ROW, state="active")
    joined = join(
        process(one, two, pools=("p1", "p2")),
        {"p1": reading(backend()), "p2": reading(backend(row=other), identity="b/1")},
    )
    assert [h.server.state for h in joined.holds] == ["idle in transaction", "active"]
    only = join(process(one, two), {"p2": reading(backend())})
    assert [h.server for h in only.holds] == [None, ROW]


def idle(pid=100, **changes):
    facts = Connection(60.0, 0.02, None, None)
    return fakes.idle(pid, pool="p1", connection=facts, **changes)


def test_an_idle_connection_is_joined_with_the_same_proof():
    locked = replace(backend(), advisory_locks=2)
    given = replace(process(), idle=(idle(), idle(101)))
    joined = join(given, {"p1": reading(locked, backend(101, age_s=50.0))}).idle
    assert [(each.server, each.advisory_locks) for each in joined] == [
        (ROW, 2),
        (None, 0),
    ]


def test_how_long_an_idle_connection_had_been_as_the_reading_shows_it():
    """A reading comes after its snapshot: in between somebody may have used it."""
    given = replace(process(), idle=(idle(),))
    for latest, unchanged_s in ((0.5, 2.5), (4.0, -1.0)):
        windows = {"p1": (0.0, latest)}
        (joined,) = join(given, {"p1": reading(backend())}, windows=windows).idle
        assert joined.unchanged_s == pytest.approx(unchanged_s)


@pytest.mark.parametrize(
    ("state_age_s", "xact_age_s", "may_have_ended"),
    [(3.0, None, False), (0.1, 3.0, False), (0.1, 0.2, True), (None, None, False)],
)
def test_a_row_may_show_the_next_user(state_age_s, xact_age_s, may_have_ended):
    """Nothing in it is older than the snapshot: the hold may have ended in between."""
    row = replace(ROW, state_age_s=state_age_s, xact_age_s=xact_age_s)
    rows = reading(replace(backend(), row=row))
    (joined,) = join(process(hold()), {"p1": rows}, windows={"p1": (0.0, 0.5)}).holds
    assert joined.server == row
    assert joined.may_have_ended is may_have_ended


def test_a_pool_of_an_unknown_server_claims_rows_by_its_idle_connections():
    there = Connection(60.0, 0.02, "/run/pg:5432", None)
    given = replace(process(), idle=(replace(idle(), connection=there),))
    rows = reading(backend(), backend(101))
    assert [e.pid for e in claimed(given, "p1", rows, "/run/pg:5432").backends] == [100]
    assert claimed(given, "p1", rows, "db:5432").backends == ()


def test_no_readings_change_nothing():
    unjoined = process(hold())
    assert join(unjoined, {}) is unjoined


def test_rows_that_a_pool_of_an_unknown_server_can_claim():
    """Its port, or its address on this machine; not its pid."""
    by_port = hold(100, client_port=40000)
    by_address = hold(101, address="/run/pg:5432")
    by_pid = hold(102)
    rows = (backend(100, client_port=40000), backend(101), backend(102), backend(103))
    holds = process(by_port, by_address, by_pid)

    def pids(address):
        found = claimed(holds, "p1", reading(*rows), address)
        return [b.pid for b in found.backends]

    assert pids("/run/pg:5432") == [100, 101]
    assert pids(None) == [100]
    assert claimed(holds, "p2", reading(*rows)).backends == ()


# -- sessions that no pool has ---------------------------------------------------------


def given_up(pool="p1", error="CancelledError", closed_s=5.0, **connection):
    facts = {"age_s": 5.0, "connect_s": 0.2, "address": None, "client_port": None}
    return ClosedConnection(
        pool, 100, closed_s, Connection(**(facts | connection)), error, None
    )


def strays(gone, the_backend, pool="p1", address=None):
    asked = replace(process(), departed=(gone,))
    return [
        each.pid
        for _, each in stray_sessions(
            asked, {pool: reading(the_backend, address=address)}, {}
        )
    ]


def test_a_session_that_a_failed_request_has_opened():
    assert strays(given_up(), backend(age_s=5.1)) == [100]


def test_a_session_that_is_older_than_the_failed_request():
    """The request had a connection of others in its frames, for example a pool's."""
    older = backend(age_s=60.0, client_port=4711)
    assert strays(given_up(client_port=4711), older) == []


def test_a_closed_connection_needs_no_age_if_it_has_the_port():
    older = backend(age_s=60.0, client_port=4711)
    assert strays(given_up(error=None, client_port=4711), older) == [100]


def test_a_stray_is_found_by_another_pool_of_its_server():
    """The creator of its own pool may be broken, so that the agent cannot connect."""
    gone = given_up(address="/run:5432")
    assert strays(gone, backend(age_s=5.1), "p2", "/run:5432") == [100]
    assert strays(gone, backend(age_s=5.1), "p2", "/run:5433") == []
    assert strays(given_up(), backend(age_s=5.1), "p2", None) == []
