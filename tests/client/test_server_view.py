"""Which reading speaks for which pool, by table: no server, no process, no clock."""

from __future__ import annotations

from dataclasses import replace

import fakes
import pytest

from poolwatch.client.calls import Outcome
from poolwatch.client.server_view import attribute
from poolwatch.client.view import SILENT, CarriedState, OwnReading, View
from poolwatch.errors import ServerDownError
from poolwatch.model import Backend, Connection
from poolwatch.protocol.records import AgentReading, ServerReading

NOW = 100.0
HOST, ELSEWHERE = "web-1", "laptop"
REFUSED = "connection refused"


def backend(pid=7, port=5000, **changes):
    return replace(
        Backend(pid, 60.0, port, "app", fakes.server_row(f"by {pid}")), **changes
    )


def reading(identity="one", *backends, **changes):
    known = ServerReading(
        identity, "18", 3, 100, backends or (backend(),), address=f"{identity}:5432"
    )
    return replace(known, **changes)


def hold(pool="a", pid=7, port=5000, address="one:5432"):
    connection = Connection(
        age_s=60.0, connect_s=0.01, address=address, client_port=port
    )
    return fakes.hold(pool, pool=pool, backend_pid=pid, connection=connection)


def view(*holds, pools=("a",), carried=None, **changes):
    process = fakes.process(
        *holds, pools=tuple(map(fakes.pool, pools)), servers=(), departed=()
    )
    made = View(process, NOW - 0.2, NOW - 0.1, carried or CarriedState(), pools)
    return replace(made, **changes)


def told(*answers, **changes):
    """The view of a process whose agent has answered in this refresh."""
    outcome = Outcome(list(answers), None, NOW - 0.1, NOW)
    return view(hold(), **changes).with_answer(outcome, NOW)


def dsn(identity="one", *backends, source="dsn", **changes):
    found = reading(identity, *backends, **changes)
    return OwnReading(source, found, (NOW - 0.1, NOW), identity=identity)


def failed(identity="one", down=None):
    return OwnReading("dsn", None, error=REFUSED, down=down, identity=identity)


def agent(pool="a", identity="one", **changes):
    answer = AgentReading((pool,), reading(identity), None)
    return replace(answer, **changes)


PROVEN = CarriedState(pool_servers={"a": ("one", "one:5432")})
PROVEN_ELSEWHERE = CarriedState(pool_servers={"a": ("two", "two:5432")})
NO_READING = agent(reading=None, error="no driver")
OFF = agent(reading=None, enabled=False)
DOWN = agent(reading=None, error="in its words", down="starting up", address="one:1")


@pytest.mark.parametrize(
    ("seen", "own", "source", "error"),
    [
        (told(agent()), None, "agent", None),
        (told(agent()), dsn(), "dsn", None),  # proven to be on the same server
        (told(agent(identity="two")), dsn(), "agent", None),  # it is on another one
        (view(hold(), carried=PROVEN), dsn(), "dsn", None),
        (view(hold()), dsn(), "dsn", None),  # the port of the hold proves it
        (view(hold(port=1)), dsn(), "dsn", None),  # or its address, on one machine
        (
            view(hold(port=1, address="db:1")),
            dsn(),
            "agent",
            "not known which server this pool is on",
        ),
        (view(hold(), carried=PROVEN_ELSEWHERE), dsn(), "agent", "not known which"),
        (view(hold()), dsn(source="environment"), "environment", None),
        (told(agent()), dsn(source="environment"), "agent", None),
        (told(NO_READING), None, "agent", "no driver"),
        (told(NO_READING, carried=PROVEN), dsn(), "dsn", None),
        (
            told(NO_READING),
            dsn("two", backend(8, 1)),
            "agent",
            "not proven to be on the server of the DSN (no driver)",
        ),
        (told(OFF), None, "agent", "(server_view=False): give --dsn"),
        (told(DOWN), None, "agent", "in its words"),
        (view(hold(), carried=PROVEN), failed(), "dsn", REFUSED),
        (view(hold()), failed(identity=None), "dsn", REFUSED),
        (told(agent()), failed(), "agent", None),  # its agent can still read it
        (view(hold(), carried=PROVEN_ELSEWHERE), failed(), "agent", "not known which"),
        (view(hold(), pending=SILENT), dsn("two", backend(8, 1)), "agent", SILENT),
        (
            view(hold(), carried=PROVEN),
            dsn("one", backend(age_s=None)),
            "dsn",
            "grant it pg_read_all_stats",
        ),
    ],
)
def test_which_reading_speaks_for_a_pool(seen, own, source, error):
    found = attribute(seen, own, HOST, NOW)
    (status,) = found.process.servers
    assert (status.pools, status.source) == (("a",), source)
    assert (status.error is None) == (error is None)
    assert error is None or error in status.error
    assert (found.process.holds[0].server is None) == (error is not None)
    assert found.without_reading == (() if error is None else ("a",))


def test_an_address_proves_nothing_on_another_machine():
    found = attribute(view(hold(port=1)), dsn(), ELSEWHERE, NOW)
    assert found.process.servers[0].error is not None


def test_each_pool_has_its_own_server():
    seen = told(
        agent(),
        agent("b", "two"),
        pools=("a", "b"),
    )
    seen = replace(
        seen, process=replace(seen.process, holds=(hold(), hold("b", 8, 1, "two:5432")))
    )
    found = attribute(seen, dsn(), HOST, NOW)
    statuses = [(s.pools, s.source, s.identity) for s in found.process.servers]
    assert statuses == [(("a",), "dsn", "one"), (("b",), "agent", "two")]


def test_a_server_that_is_down_keeps_what_is_known_of_it():
    first = attribute(told(agent()), None, HOST, NOW)
    later = view(hold(), carried=first.carried).with_answer(
        Outcome([DOWN], None, NOW + 4, NOW + 5), NOW + 5
    )
    (status,) = attribute(later, None, HOST, NOW + 5).process.servers
    assert (status.down, status.address) == ("starting up", "one:5432")
    assert (status.identity, status.version) == ("one", "18")
    assert status.silent_s == pytest.approx(5.0)
    assert status.read_s is None


def test_a_hold_without_a_backend():
    """Only a whole reading proves that there is none."""
    seen = view(hold(pid=9, port=None), carried=PROVEN)
    assert attribute(seen, dsn(), HOST, NOW).missing == {"a"}
    unproven = view(hold(pid=9, port=None))
    assert attribute(unproven, dsn(), HOST, NOW).missing == frozenset()


def test_behind_a_balancer_only_what_was_there_is_missing():
    """The session may be on another server: a first look proves nothing."""
    relayed = agent(reading=reading("one", backend(8), relayed=True))
    first = attribute(told(relayed), None, HOST, NOW)
    assert first.missing == frozenset()
    by_dsn = view(hold(), carried=first.carried)  # which is not relayed itself
    assert attribute(by_dsn, dsn("one", backend(8)), HOST, NOW).missing == frozenset()
    there = agent(reading=reading(relayed=True))
    seen = attribute(told(there, carried=first.carried), None, HOST, NOW)
    again = attribute(told(relayed, carried=seen.carried), None, HOST, NOW)
    assert again.missing == {"a"}
    assert attribute(told(agent(reading=reading("one", backend(8)))), None, HOST,
                     NOW).missing == {"a"}  # fmt: skip


def test_carried_state_is_returned_and_what_was_given_stays():
    seen = told(agent())
    before = seen.carried
    found = attribute(seen, None, HOST, NOW)
    assert seen.carried is before
    assert before.read_at == {}
    assert found.carried.read_at == {"a": NOW}
    assert found.carried.servers == found.process.servers
    assert found.carried.pool_servers == {"a": ("one", "one:5432")}


def test_a_hold_that_was_joined_proves_the_home_of_its_pool():
    found = attribute(view(hold()), dsn(), HOST, NOW)
    assert found.carried.pool_servers == {"a": ("one", "one:5432")}


def test_an_agent_that_is_late_and_its_answer_that_comes_later():
    pending = view(hold()).with_answer(Outcome(None, None, NOW - 1, None), NOW)
    assert pending.pending == SILENT
    assert pending.carried.incomplete
    slow = view(hold()).with_answer(Outcome(None, None, NOW - 9, None), NOW)
    assert "has not answered in time when asked" in slow.pending
    late = replace(pending, pending=None).with_late_answer(
        Outcome([agent()], None, NOW - 1, NOW)
    )
    assert (late.fresh, late.carried.incomplete) == ((), False)
    assert late.carried.pool_servers == {"a": ("one", "one:5432")}


def test_a_dsn_whose_server_is_down():
    error = ServerDownError("PostgreSQL does not answer", "starting up")
    own = OwnReading.of("dsn", Outcome(None, error, NOW - 1, NOW), "one")
    assert (own.reading, own.down, own.identity) == (None, "starting up", "one")
    (status,) = attribute(view(hold(), carried=PROVEN), own, HOST, NOW).process.servers
    assert (status.source, status.down) == ("dsn", "starting up")
