"""Findings over all hosts: two hosts on one server, or not; what has changed since."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import fakes
import pytest
from helpers import until

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.errors import NoProcessError
from poolwatch.model import Backend, RequestOfHost
from poolwatch.protocol import document
from poolwatch.sidecar.fleet import fleet_findings

NOON = "2026-01-01T12:00:00+00:00"


def at(seconds):
    return f"2026-01-01T12:00:{seconds:06.3f}+00:00"


# -- over capacity ---------------------------------------------------------------------


def host(name, size=60, url="postgresql://web:***@db/orders", **status):
    values = {"identity": "s/1", "reserved": 3, "sessions": 20, **status}
    pool = fakes.pool(size=size, max_overflow=0, url=url)
    servers = (fakes.server_status(**values),)
    return fakes.process(pid=7, host=name, pools=(pool,), servers=servers, at=NOON)


def test_all_hosts_together():
    (finding,) = fleet_findings([host("web-1"), host("web-2"), host("web-3", size=1)])
    assert (finding.kind, finding.severity) == ("over_capacity", "warning")
    assert finding.text == (
        "the pools of 3 processes on 3 hosts can open 121 connections; PostgreSQL at "
        "db:5432 accepts 97"
    )
    assert "'orders' of pid 7 on web-1 can open 60" in finding.proof


def test_the_newest_reading_counts():
    """Its sessions decide whether the server is full now."""
    earlier = replace(host("web-1", sessions=97), at="2026-01-01T11:59:58+00:00")
    (finding,) = fleet_findings([host("web-2"), earlier])
    assert finding.severity == "warning"
    assert "20 sessions now" in finding.proof


def test_one_host_alone_is_told_by_its_process():
    assert fleet_findings([host("web-1"), host("web-1")]) == []


UNREAD = {"identity": None, "error": "permission denied", "max_connections": None}


@pytest.mark.parametrize(
    "second",
    [
        host("web-2", url="postgresql://web:***@10.0.0.9:6432/orders"),
        host("web-2", **UNREAD),
        host("web-2", url="postgresql+asyncpg://etl@DB:5432/etl", **UNREAD),
        host("web-2", identity="/1"),
        replace(host("web-2"), servers=()),
    ],
    ids=["identity", "name", "name and port", "start", "no server view"],
)
def test_one_server(second):
    """By its identity at whatever address; unread, by the name and port of the URL."""
    assert len(fleet_findings([host("web-1"), second])) == 1


def test_a_name_is_enough_if_nobody_knows_an_identity():
    nameless = [host(name, identity=None) for name in ("web-1", "web-2")]
    assert len(fleet_findings(nameless)) == 1


@pytest.mark.parametrize(
    "url",
    [
        "postgresql://web@localhost/orders",
        "postgresql://web@127.0.0.1:5432/orders",
        "postgresql://web@127.8.0.1/orders",
        "postgresql://web@[::1]/orders",
        "postgresql:///orders?host=/run/postgresql",
        "postgresql://web@%2Frun%2Fpostgresql/orders",
        "postgresql:///orders",
        None,
    ],
)
@pytest.mark.parametrize("identities", [(None, None), ("a/1", None), ("a/1", "b/2")])
def test_a_local_address_means_another_server_on_each_host(url, identities):
    address = "/run/postgresql:5432" if url and "run" in url else "127.0.0.1:5432"
    hosts = [
        host(f"web-{number}", url=url, address=address, identity=identity)
        for number, identity in enumerate(identities)
    ]
    assert fleet_findings(hosts) == []


def test_two_servers_of_one_name():
    """Each is a database beside its host: a third host's may be either of them."""
    hosts = [host("web-1"), host("web-2", identity="b/2"), host("web-3", **UNREAD)]
    assert fleet_findings(hosts) == []


# -- lock chains -----------------------------------------------------------------------


def waiter(seconds=0.0, waited=10.0, by=11, event="Lock:transactionid", **changes):
    row = fakes.server_row(
        wait_event=event, blocked_by=(by,), state_age_s=waited, xact_age_s=waited
    )
    site = fakes.frame("/srv/app/job.py:5")
    held = fakes.hold("w", backend_pid=10, server=row, site=site, held_s=waited)
    return process("web-1", 1, seconds, held, **changes)


def blocker(seconds=0.0, age=60.0, state="idle in transaction", xact=None, **changes):
    row = fakes.server_row(state, state_age_s=age, xact_age_s=xact or age)
    held = fakes.hold("b", backend_pid=11, server=row, held_s=age)
    return process("web-2", 2, seconds, held, **changes)


def process(name, pid, seconds, *holds, **changes):
    changes.setdefault("servers", (fakes.server_status(identity="s/1"),))
    return fakes.process(*holds, host=name, pid=pid, at=at(seconds), **changes)


def sites(finding):
    return [site.line for site in finding.sites]


def test_call_sites_at_both_ends():
    (finding,) = fleet_findings([waiter(), blocker()])
    assert (finding.kind, finding.severity) == ("lock_wait", "critical")
    assert finding.text == (
        "process 1 on web-1: app/job.py:5 is blocked by orders/repo.py:55 (process 2 "
        "on web-2, idle in transaction, pid 11)"
    )
    assert finding.holds == (
        RequestOfHost("web-1", 1, "w"),
        RequestOfHost("web-2", 2, "b"),
    )
    assert sites(finding) == [5, 55]
    wire = document.to_document(fakes.snapshot(findings=(finding,)), viewers=True)
    assert wire["findings"][0]["holds"][1] == {"host": "web-2", "pid": 2, "id": "b"}


def test_a_chain_over_three_hosts():
    row = fakes.server_row("idle in transaction", state_age_s=90.0, xact_age_s=90.0)
    held = fakes.hold(
        "c",
        backend_pid=12,
        server=row,
        held_s=90.0,
        site=fakes.frame("/srv/app/etl.py:9"),
    )
    middle = replace(waiter(1.0, by=12), host="web-2", pid=2)
    middle = replace(middle, holds=(replace(middle.holds[0], id="m", backend_pid=11),))
    chain = [waiter(), middle, process("web-3", 3, 1.5, held)]
    (finding,) = fleet_findings(chain)
    assert (
        "at the root of the chain is app/etl.py:9 (process 3 on web-3" in finding.text
    )
    assert [each.id for each in finding.holds] == ["w", "m", "c"]


def test_a_thousand_holds_that_wait_for_one_session():
    """One finding, in the words of the hold that has waited longest."""
    others = [
        replace(waiter(waited=5.0 + number / 1000), pid=100 + number)
        for number in range(999)
    ]
    found = fleet_findings([*others, waiter(), blocker()])
    (finding,) = [each for each in found if each.kind == "lock_wait"]
    assert finding.text.startswith("process 1 on web-1: app/job.py:5 is blocked by")
    assert finding.text.endswith("; 999 more holds wait for the same session")
    assert len(finding.holds) == 1001
    assert sites(finding) == [5, 55]


def test_a_stranger_at_the_root_of_a_chain_over_two_hosts():
    """Each host tells what blocks its own holds; neither is forgotten."""
    row = fakes.server_row("idle in transaction", state_age_s=90.0)
    stranger = Backend(12, 900.0, 5000, "dba-laptop", row, client="10.0.3.7")
    status = fakes.server_status(identity="s/1", others=(stranger,))
    middle = replace(waiter(by=12, servers=(status,)), host="web-2", pid=2)
    middle = replace(middle, holds=(replace(middle.holds[0], id="m", backend_pid=11),))
    (finding,) = fleet_findings([middle, waiter(1.0)])
    assert "chain is a session of 'dba-laptop' (pid 12, client 10.0.3.7" in finding.text


@pytest.mark.parametrize(
    ("wait_of", "block_of", "named"),
    [
        ({"seconds": 5}, {"seconds": 2}, True),  # it waited already when that was seen
        ({"seconds": 5, "waited": 2}, {"seconds": 2}, False),  # it did not
        ({"seconds": 2}, {"seconds": 5}, True),  # that transaction was open already
        ({"seconds": 2}, {"seconds": 5, "age": 2}, False),  # it was not
        ({"seconds": 2}, {"seconds": 5, "xact": 2}, False),  # an earlier one was
        ({"seconds": 2}, {"seconds": 5, "xact": 2, "state": "idle"}, False),
        ({"seconds": 2, "event": "Lock:advisory"}, {"seconds": 5, "xact": 2}, True),
        ({"waited": 0.2}, {}, False),  # clocks differ by that much
    ],
)
def test_what_may_have_ended_in_between_is_not_claimed(wait_of, block_of, named):
    (finding,) = fleet_findings([waiter(**wait_of), blocker(**block_of)])
    assert sites(finding) == ([5, 55] if named else [5])
    assert len(finding.holds) == (2 if named else 1)
    if not named:
        assert finding.text.endswith(
            "a connection of pool 'orders' (process 2 on web-2, pid 11) that may have "
            "had another user then"
        )


@pytest.mark.parametrize(("unchanged", "named"), [(30.0, True), (2.0, False)])
def test_an_idle_connection_of_another_host(unchanged, named):
    row = fakes.server_row("idle", query="COMMIT")
    idle = fakes.idle(11, server=row, advisory_locks=1, unchanged_s=unchanged)
    other = process("web-2", 2, 5.0, idle=(idle,))
    (finding,) = fleet_findings([waiter(event="Lock:advisory"), other])
    assert sites(finding) == ([5, 40] if named else [5])
    assert ("a session lock kept by" in finding.text) is named


def test_a_waiter_whose_row_may_be_of_the_next_user():
    first = waiter()
    (held,) = first.holds
    first = replace(first, holds=(replace(held, may_have_ended=True),))
    assert fleet_findings([first, blocker()]) == []


@pytest.mark.parametrize(
    ("identity", "address", "url", "one"),
    [
        ("t/2", "db:5432", "postgresql://db/orders", False),
        (None, "127.0.0.1:5432", "postgresql://localhost/orders", False),
        (None, "/run/pg:5432", None, False),
        (None, "db:5432", "postgresql://db/orders", True),
    ],
)
def test_the_same_pid_of_another_server_is_not_it(identity, address, url, one):
    own = fakes.server_status(identity="s/1" if identity else None, address=address)
    other = fakes.server_status(identity=identity, address=address)
    pools = (fakes.pool(url=url),)
    found = fleet_findings(
        [waiter(servers=(own,), pools=pools), blocker(servers=(other,), pools=pools)]
    )
    assert len(found) == one


def test_a_chain_within_one_host_is_told_by_its_process():
    assert fleet_findings([waiter(), replace(blocker(), host="web-1")]) == []


# -- really ----------------------------------------------------------------------------

JOB = """
    import sys, threading
    from sqlalchemy import create_engine, text
    import poolwatch

    engine = create_engine({url!r}, pool_size={size}, max_overflow=0)
    poolwatch.instrument(engine)

    def lock():
        with engine.begin() as connection:
            connection.execute(text("UPDATE fleet_jobs SET n = n + 1"))
            taken.set()
            sys.stdin.read()

    taken = threading.Event()
    thread = threading.Thread(target=lock, daemon=True)
    thread.start()
    taken.wait({patience})
    print("ready", flush=True)
    thread.join()
"""


@pytest.mark.processes
@pytest.mark.postgres
def test_two_hosts_really(start_postgres, apps, tmp_path_factory):
    """One locks a row that the other one wants; neither sidecar sees the other host."""
    server = start_postgres(max_connections=20)
    server.execute("CREATE TABLE fleet_jobs AS SELECT 1 AS n")
    sources = {}
    for name, url, patience in (
        ("web-1", server.url(), 60),
        ("web-2", server.over_tcp().url(), 0.1),
    ):
        directory = tmp_path_factory.mktemp(name)
        directory.chmod(0o700)
        apps.environ["POOLWATCH_DIR"] = str(directory)
        source = JOB.format(url=url, size=9, patience=patience)
        sources[name] = (
            LiveSource(Client(directory), environ={}),
            apps.start(source, f"{name}.py"),
        )

    def found():
        looked = []
        for name, (source, _) in sources.items():
            try:
                (each,) = source.snapshot().processes
            except (NoProcessError, ValueError):  # its socket is not there yet
                return None
            now = datetime.now(UTC).isoformat()
            looked.append(replace(each, host=name, at=now))
        kinds = {each.kind: each for each in fleet_findings(looked)}
        waited = kinds.get("lock_wait")
        return kinds if waited and len(waited.sites) == 2 else None

    kinds = until(found)
    for source, _ in sources.values():
        source.close()
    (waiter, holder) = kinds["lock_wait"].holds
    assert (waiter.host, holder.host) == ("web-2", "web-1")
    assert "web-1.py:10 (process" in kinds["lock_wait"].text
    assert "can open 18 connections" in kinds["over_capacity"].text
    assert "on 2 hosts" in kinds["over_capacity"].text
