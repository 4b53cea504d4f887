"""The viewer's source: every hold with its own server's row, or with none."""

from __future__ import annotations

import threading
import time
from contextlib import closing
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import fakes
import pytest
from helpers import until

from poolwatch.adapters.connection_facts import connection_facts
from poolwatch.client.live import LiveSource
from poolwatch.errors import (
    MissingExtraError,
    NoProcessError,
    ServerViewError,
    SilentError,
    UnreachableError,
)
from poolwatch.model import (
    Connection,
    ServerStatus,
    Unreachable,
)
from poolwatch.postgres.agent_reader import AgentReader
from poolwatch.postgres.join import join
from poolwatch.protocol.records import AgentReading

HOST = "this-machine"


def stats(pool, url="postgresql://h/d"):
    return fakes.pool(pool, url=url, checked_out=0, idle=0, max_overflow=0)


@dataclass
class Held:
    """A real connection, with what a ledger would know of it."""

    pool: str
    connection: object
    began: float
    ended: float
    facts: tuple
    measured: bool = True

    def hold(self):
        now = time.monotonic()
        pid, address, port = self.facts
        since = self.ended if self.measured else self.began
        return fakes.hold(
            f"{self.pool}-{pid}",
            pool=self.pool,
            backend_pid=pid,
            site=None,
            connection=Connection(
                age_s=now - since,
                connect_s=self.ended - self.began if self.measured else None,
                address=address,
                client_port=port,
            ),
        )


@dataclass
class App:
    """An instrumented process, without the instrumentation."""

    pid: int
    servers: dict = field(default_factory=dict)
    """Server by pool."""
    other_pools: tuple = ()
    enabled: bool = True
    broken: str | None = None
    slow: threading.Event | None = None
    held: list = field(default_factory=list)
    asked: int = 0
    asked_for_all: int = 0
    host: str = HOST
    peer: None = None

    def __hash__(self):
        return self.pid

    def hold(self, pool, **more):
        began = time.monotonic()
        connection = self.servers[pool].connect(**more)
        ended = time.monotonic()
        held = Held(pool, connection, began, ended, connection_facts(connection))
        self.held.append(held)
        return held

    def view(self):
        return fakes.process(
            *[held.hold() for held in self.held],
            pid=self.pid,
            host=self.host,
            name=None,
            pools=(*map(stats, self.servers), *self.other_pools),
            servers=(),
        )

    def read(self, everyone=False):
        self.asked += 1
        self.asked_for_all += everyone
        if self.slow is not None:
            self.slow.wait(20)
        if self.broken or not self.enabled:
            pools = tuple(self.servers)
            return [AgentReading(pools, None, self.broken, self.enabled)]
        return [
            AgentReading(
                (pool,),
                AgentReader(server.connect, connection_facts).read(
                    [held.facts[0] for held in self.held if held.pool == pool],
                    everyone=everyone,
                ),
                None,
            )
            for pool, server in self.servers.items()
        ]


class FakeClient:
    """A client whose processes are here."""

    def __init__(self, *make_app):
        self.make_app = list(make_app)

    def agents(self):
        return list(self.make_app)

    def view(self, address):
        return address.view()

    def servers(self, address, *, linger, everyone=False):
        assert 0 <= linger <= 10
        return address.read(everyone) if everyone else address.read()


@pytest.fixture
def make_app():
    made = []

    def app(pid=1, **more):
        made.append(App(pid, **more))
        return made[-1]

    yield app
    for each in made:
        if each.slow is not None:
            each.slow.set()
        for held in each.held:
            held.connection.close()


@pytest.fixture
def live():
    made = []

    def source(*make_app, environ=(), **more):
        more = {"host": HOST, "environ": dict(environ)} | more
        made.append(LiveSource(FakeClient(*make_app), **more))
        return made[-1]

    yield source
    for each in made:
        each.close()


def states(process):
    return [hold.server and hold.server.state for hold in process.holds]


def in_transaction(held):
    held.connection.autocommit = False
    held.connection.cursor().execute("select 1")


# -- without a DSN ------------------------------------------------------------------


def test_agents_read_for_their_own_pools(make_app, live, postgres, second_postgres):
    """Two servers in one process, each pool joined with its own."""
    app = make_app(servers={"a": postgres, "b": second_postgres})
    in_transaction(app.hold("a"))
    app.hold("b")
    (process,) = live(app).snapshot().processes
    assert states(process) == ["idle in transaction", "idle"]
    assert process.holds[0].server.query == "select ?"
    assert [(s.pools, s.source, s.error) for s in process.servers] == [
        (("a",), "agent", None),
        (("b",), "agent", None),
    ]
    status = process.servers[0]
    assert status.address == f"{postgres.host}:{postgres.port}"
    assert status.version.startswith(postgres.version)
    assert (status.max_connections, status.read_s > 0) == (100, True)
    assert status.sessions >= 1


def test_over_tcp_and_with_connections_older_than_the_watch(
    make_app, live, postgres, postgres_tcp
):
    app = make_app(servers={"unix": postgres, "tcp": postgres_tcp})
    for pool in app.servers:
        app.hold(pool).measured = False
        app.hold(pool)
    (process,) = live(app).snapshot().processes
    assert states(process) == ["idle"] * 4


def test_without_postgresql_nobody_is_asked(make_app, live):
    """Neither the agent nor a server."""
    app = make_app(other_pools=(stats("s", "sqlite://"), stats("n", None)))
    (process,) = live(app, environ={"PGHOST": "nowhere.invalid"}).snapshot().processes
    assert process.servers == ()
    assert app.asked == 0


def test_an_agent_that_fails_says_why(make_app, live, postgres):
    app = make_app(servers={"a": postgres}, broken="PostgreSQL refused the password")
    app.hold("a")
    (process,) = live(app).snapshot().processes
    assert states(process) == [None]
    assert process.servers == (
        ServerStatus(("a",), "agent", "PostgreSQL refused the password"),
    )


def test_a_switched_off_view_says_so(make_app, live, postgres):
    app = make_app(servers={"a": postgres}, enabled=False)
    (process,) = live(app).snapshot().processes
    assert process.servers[0].error == (
        "the server view is switched off in this process (server_view=False): "
        "give --dsn"
    )


@pytest.mark.postgres
@pytest.mark.parametrize("door", ["postgres", "postgres_tcp"])
def test_the_environment_helps_where_the_agent_cannot(make_app, live, request, door):
    """With the same proof: the port, or the address on this machine."""
    server = request.getfixturevalue(door)
    app = make_app(servers={"a": server}, enabled=False)
    app.hold("a")
    source = live(app, environ={"DATABASE_URL": server.url("asyncpg")})
    (process,) = source.snapshot().processes
    assert states(process) == ["idle"]
    assert process.servers[0].source == "environment"
    assert process.servers[0].error is None


def test_the_environment_of_another_server_proves_nothing(
    make_app, live, postgres, second_postgres
):
    app = make_app(servers={"a": postgres}, broken="it broke")
    app.hold("a")
    for url in (second_postgres.dsn, "postgresql://127.0.0.1:1/x"):
        source = live(app, environ={"DATABASE_URL": url})
        (process,) = source.snapshot().processes
        assert states(process) == [None]
        assert process.servers == (ServerStatus(("a",), "agent", "it broke"),)


def test_a_hung_process_does_not_hold_up_the_others(make_app, live, postgres):
    """Its last status stays, marked; the next refresh does not wait for it at all."""
    good, bad = (
        make_app(1, servers={"a": postgres}),
        make_app(2, servers={"a": postgres}),
    )
    good.hold("a")
    bad.hold("a")
    source = live(good, bad, patience_s=6.0)
    assert [states(p) for p in source.snapshot().processes] == [["idle"], ["idle"]]
    bad.slow = threading.Event()
    began = time.monotonic()
    first, second = source.snapshot().processes
    assert time.monotonic() - began < 5.0  # a known server is waited for less
    assert (states(first), states(second)) == (["idle"], [None])
    (status,) = second.servers
    assert "not answered in time" in status.error
    assert status.version.startswith(postgres.version)
    began = time.monotonic()
    source.snapshot()
    assert time.monotonic() - began < 3.0
    bad.slow.set()
    bad.slow = None
    until(lambda: states(source.snapshot().processes[1]) == ["idle"])


def test_a_process_that_does_not_answer_is_unreachable(make_app, live):
    class Client(FakeClient):
        def view(self, address):
            raise UnreachableError("the document is damaged")

    app = make_app(7)
    source = LiveSource(Client(app), environ={}, host=HOST)
    assert source.snapshot().unreachable == (Unreachable(7, "the document is damaged"),)


# -- with a DSN ---------------------------------------------------------------------


def test_a_dsn_is_read_once_for_all_processes(make_app, live, start_postgres):
    """And the agents are asked once, for the proof."""
    server = start_postgres(log_statement="all", log_line_prefix="%a|")
    one, two = make_app(1, servers={"a": server}), make_app(2, servers={"a": server})
    one.hold("a")
    two.hold("a")
    source = live(one, two, dsn=server.dsn)
    source.snapshot()
    before = server.log.count("poolwatch|LOG:  statement")
    for _ in range(5):
        processes = source.snapshot().processes
    assert server.log.count("poolwatch|LOG:  statement") - before == 5
    assert [states(process) for process in processes] == [["idle"], ["idle"]]
    assert (one.asked, two.asked) == (1, 1)
    assert {p.servers[0].source for p in processes} == {"dsn"}


def test_a_dsn_speaks_only_for_its_own_server(
    make_app, live, postgres, second_postgres
):
    """The pools elsewhere are read by their agents, at every refresh."""
    app = make_app(servers={"a": postgres, "b": second_postgres})
    in_transaction(app.hold("a"))
    app.hold("b")
    source = live(app, dsn=postgres.dsn)
    for count in (1, 2, 3):
        (process,) = source.snapshot().processes
        assert states(process) == ["idle in transaction", "idle"]
        assert [(s.pools, s.source) for s in process.servers] == [
            (("a",), "dsn"),
            (("b",), "agent"),
        ]
        assert app.asked == count


@pytest.mark.postgres
@pytest.mark.parametrize("door", ["postgres", "postgres_tcp"])
@pytest.mark.parametrize("cannot", [{"enabled": False}, {"broken": "it broke"}])
def test_a_dsn_where_the_agent_cannot_tell(
    make_app, live, request, postgres, door, cannot
):
    app = make_app(servers={"a": request.getfixturevalue(door)}, **cannot)
    app.hold("a")
    source = live(app, dsn=app.servers["a"].dsn)
    for _ in range(3):
        (process,) = source.snapshot().processes
        assert states(process) == ["idle"]
        assert process.servers[0].error is None
    assert app.asked == 1


def test_the_port_proves_it_across_addresses_and_machines(make_app, live, postgres_tcp):
    """Seen from another container, by another door: the TCP port is the same."""
    app = make_app(servers={"a": postgres_tcp}, enabled=False, host="container-1")
    app.hold("a")
    unix = replace(postgres_tcp, host=str(postgres_tcp.directory))
    (process,) = live(app, dsn=unix.dsn).snapshot().processes
    assert states(process) == ["idle"]


def test_nothing_is_claimed_without_proof(make_app, live, postgres):
    """A Unix socket in another container may be anybody's, whatever its name."""
    app = make_app(servers={"a": postgres}, enabled=False, host="container-1")
    app.hold("a")
    (process,) = live(app, dsn=postgres.dsn).snapshot().processes
    assert states(process) == [None]
    assert process.servers[0].error.startswith("not proven to be on the server of")


def test_a_dsn_whose_role_sees_nothing(make_app, live, postgres):
    """The agent's own role does; where it cannot help, the remedy is named."""
    postgres.execute("drop role if exists onlooker")
    postgres.execute("create role onlooker login")
    dsn = postgres.as_role("onlooker").dsn
    app = make_app(servers={"a": postgres})
    app.hold("a")
    source = live(app, dsn=dsn)
    for _ in range(3):
        (process,) = source.snapshot().processes
        assert states(process) == ["idle"]
        assert process.servers[0].source == "agent"
    app.enabled = False
    for each in (source, live(app, dsn=dsn)):
        (process,) = each.snapshot().processes
        assert states(process) == [None]
        assert "grant it pg_read_all_stats" in process.servers[0].error
    postgres.execute("grant pg_read_all_stats to onlooker")
    (process,) = source.snapshot().processes
    assert states(process) == ["idle"]
    postgres.execute("drop role onlooker")


def test_a_wrong_dsn_is_one_sentence_and_the_rest_goes_on(
    make_app, live, postgres, tmp_path: Path
):
    app = make_app(servers={"a": postgres}, other_pools=(stats("s", "sqlite://"),))
    app.hold("a")
    source = live(app, dsn=f"host={tmp_path} password=hunter2")
    for _ in range(2):
        (process,) = source.snapshot().processes
        assert states(process) == [None]
        assert process.servers == (
            ServerStatus(("a",), "dsn", "no PostgreSQL answers at this address"),
        )
    assert source.server_error == "no PostgreSQL answers at this address"


def test_a_wrong_dsn_is_said_before_there_is_a_process(live, postgres):
    source = live(dsn="host=/nowhere")
    assert source.snapshot().processes == ()
    assert source.server_error == "no PostgreSQL answers at this address"
    right = live(dsn=postgres.dsn)
    right.snapshot()
    assert right.server_error is None


def test_a_missing_extra_is_said_the_same_way(make_app, live, postgres):
    missing = MissingExtraError("this needs psycopg2", "tui")

    class Reader:
        def read(self, pids, idle):
            raise missing

        def close(self):
            pass

    app = make_app(servers={"a": postgres})
    source = live(app, dsn="host=h", reader=lambda dsn: Reader())
    (process,) = source.snapshot().processes
    assert process.servers[0].error == str(missing)


def test_a_restarted_server_is_recognised(make_app, live, start_postgres):
    """A new start is a new identity, for the DSN and for the pool."""
    server = start_postgres()
    app = make_app(servers={"a": server})
    app.hold("a")
    source = live(app, dsn=server.dsn)
    assert states(source.snapshot().processes[0]) == ["idle"]
    server.stop()
    (process,) = source.snapshot().processes
    assert process.servers[0].error == "PostgreSQL closed the connection"
    assert process.servers[0].version.startswith(server.version), "last known"
    server.start()
    app.held.clear()
    app.hold("a")
    until(lambda: states(source.snapshot().processes[0]) == ["idle"])


# -- the proof, for real ------------------------------------------------------------


def reuse_pid(server, pid):
    """A connection whose backend has this pid; None if the kernel does not let us."""
    last = Path("/proc/sys/kernel/ns_last_pid")
    for _ in range(300):
        try:
            last.write_text(str(pid - 1))
        except OSError:
            return None
        connection = server.connect()
        if connection.info.backend_pid == pid:
            return connection
        connection.close()
    return None


@pytest.mark.postgres
@pytest.mark.parametrize("door", ["postgres", "postgres_tcp"])
@pytest.mark.parametrize("after", [0.3, 1.0])
def test_a_pid_used_again_is_never_shown(make_app, live, request, door, after):
    """The backend of a hold is killed, and its pid goes to somebody else."""
    server = request.getfixturevalue(door)
    app = make_app(servers={"a": server})
    held = app.hold("a")
    source = live(app)
    assert states(source.snapshot().processes[0]) == ["idle"]
    server.execute(f"select pg_terminate_backend({held.facts[0]}, 5000)")
    (process,) = source.snapshot().processes
    assert states(process) == [None]
    time.sleep(after)
    stranger = reuse_pid(server, held.facts[0])
    if stranger is None:
        pytest.skip("the kernel gives out pids as it likes (no write to ns_last_pid)")
    (process,) = source.snapshot().processes
    assert states(process) == [None]
    rows = app.read()[0].reading.backends
    assert [row.pid for row in rows] == [held.facts[0]], "the row was there"
    stranger.close()


def test_the_same_pid_on_another_server_is_never_shown(
    make_app, postgres, second_postgres
):
    """Both servers have a backend of this pid, of nearly the same age."""
    app = make_app(servers={"a": postgres})
    held = app.hold("a")
    reader = AgentReader(second_postgres.connect, connection_facts)
    other = reader.read([])
    mine = AgentReader(postgres.connect, connection_facts).read([held.facts[0]])
    disguised = replace(other, backends=mine.backends)
    window = {"a": (-1.0, 1.0)}
    assert states(join(app.view(), {"a": mine}, windows=window)) == ["idle"]
    assert states(join(app.view(), {"a": disguised}, windows=window)) == [None]


def test_a_pid_that_a_pooler_made_up_is_never_shown(make_app, live, postgres):
    """The driver believes in a pid that belongs to a stranger on the same server."""
    app = make_app(servers={"a": postgres})
    with_pid_of = app.hold("a")
    time.sleep(0.3)
    held = app.hold("a")
    held.facts = (with_pid_of.facts[0], *held.facts[1:])
    (process,) = live(app).snapshot().processes
    assert states(process) == ["idle", None]


def test_through_a_proxy_the_age_is_the_proof(make_app, live, postgres, start_proxy):
    """The server sees the proxy's port, not ours."""
    app = make_app(servers={"a": start_proxy(postgres)})
    held = app.hold("a")
    (row,) = app.read()[0].reading.backends
    assert row.client_port != held.facts[2]
    assert states(live(app).snapshot().processes[0]) == ["idle"]
    held.began -= 5.0
    held.ended -= 5.0
    assert states(live(app).snapshot().processes[0]) == [None]


def test_behind_a_pooler_it_is_unknown_and_said_so(
    make_app, live, postgres, start_proxy, start_postgres
):
    """The pids are made up, here even one that a stranger's backend has."""
    stranger = postgres.connect()
    app = make_app(servers={"a": start_proxy(postgres, pid=stranger.info.backend_pid)})
    held = app.hold("a")
    assert held.facts[0] == stranger.info.backend_pid
    reader = AgentReader(app.servers["a"].connect, connection_facts)
    with pytest.raises(ServerViewError, match="pooler such as PgBouncer"):
        reader.read([])
    app.broken = "it goes through a pooler"
    for dsn in (None, postgres.dsn, postgres.over_tcp().dsn):
        (process,) = live(app, dsn=dsn).snapshot().processes
        assert states(process) == [None]
        assert "pooler" in process.servers[0].error
    stranger.close()


def test_no_process_and_a_wrong_dsn(live):
    """A client that raises does not keep the DSN from being checked."""

    class Client(FakeClient):
        def agents(self):
            raise NoProcessError("none")

    source = LiveSource(Client(), dsn="host=/nowhere", environ={}, host=HOST)
    with pytest.raises(NoProcessError):
        source.snapshot()
    assert source.server_error == "no PostgreSQL answers at this address"


def test_failures_of_a_foreign_kind_are_not_swallowed(make_app, live):
    """A bug of ours is not a server that is down."""

    class Client(FakeClient):
        def view(self, address):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        LiveSource(Client(make_app()), environ={}, host=HOST).snapshot()


# -- servers that do not answer -----------------------------------------------------


def down(snapshot):
    """Texts of server_down, by the process that has them."""
    return {
        process.pid: [f.text for f in process.findings if f.kind == "server_down"]
        for process in snapshot.processes
    }


def refuse(app, words="connection refused", **more):
    """Let the agent answer that its servers refuse."""
    answer = AgentReading(tuple(app.servers), None, "none answers", down=words, **more)
    app.read = lambda: [answer]


def test_a_down_server_is_said_once_for_all_processes(make_app, live, start_postgres):
    """The same finding in each, with the address that the viewer remembers."""
    server = start_postgres().over_tcp()
    one, two = (
        make_app(1, servers={"a": server, "b": server}),
        make_app(2, servers={"c": server}),
    )
    for app in (one, two):
        for pool in app.servers:
            app.hold(pool)
    source = live(one, two)
    assert down(source.snapshot()) == {1: [], 2: []}
    for app in (one, two):
        refuse(app)
    found = down(source.snapshot())
    (text,) = found[1]
    assert found[2] == [text]
    assert text.startswith(
        f"PostgreSQL at 127.0.0.1:{server.port} does not answer since"
    )
    assert text.endswith(": connection refused; 3 pools of 2 processes use it")
    first, second = [each.findings for each in source.snapshot().processes]
    assert first == second
    (finding,) = first
    assert finding.severity == "critical"
    assert "'a' of pid 1, 'b' of pid 1, 'c' of pid 2" in finding.proof


def test_two_servers_that_are_down_are_two_findings(make_app, live, postgres):
    app = make_app(servers={"a": postgres, "b": postgres})
    app.read = lambda: [
        AgentReading(("a",), None, "none", down="connection refused", address="h:1"),
        AgentReading(("b",), None, "none", down="connection refused", address="h:2"),
    ]
    (texts,) = down(live(app).snapshot()).values()
    assert [text.split(" does")[0] for text in texts] == [
        "PostgreSQL at h:1",
        "PostgreSQL at h:2",
    ]


def test_one_look_knows_the_address_from_the_url_and_invents_no_time(
    make_app, live, postgres
):
    app = make_app(servers={"a": postgres})
    refuse(app)
    ((text,),) = down(live(app).snapshot()).values()
    assert text == (
        "PostgreSQL at h:5432 does not answer: connection refused; "
        "1 pool of 1 process uses it"
    )


def test_the_same_local_address_on_two_hosts_is_two_servers(make_app, live, postgres):
    made = [make_app(n, servers={"a": postgres}, host=f"host-{n}") for n in (1, 2)]
    for app in made:
        refuse(app, address="127.0.0.1:5432")
    found = down(live(*made).snapshot())
    assert [len(texts) for texts in found.values()] == [1, 1]


@pytest.mark.parametrize("door", ["unix", "tcp"])
def test_with_a_dsn_too(make_app, live, start_postgres, door):
    """Proven to be the pools' own server, it is down; and back as soon as an agent has
    read it, although our own next attempt is seconds away."""
    server = start_postgres() if door == "unix" else start_postgres().over_tcp()
    app = make_app(servers={"a": server})
    app.hold("a")
    source = live(app, dsn=server.dsn)
    assert down(source.snapshot()) == {1: []}
    server.stop("immediate")
    app.broken = "none answers"
    for _ in range(4):
        ((text,),) = down(source.snapshot()).values()
        assert "does not answer since" in text
        time.sleep(0.3)
    assert source.server_down
    server.start()
    app.broken = None
    assert down(source.snapshot()) == {1: []}


def test_a_wrong_dsn_is_not_the_servers_fault(make_app, live, postgres):
    app = make_app(servers={"a": postgres})
    app.hold("a")
    source = live(app, dsn="host=127.0.0.1 port=1")
    assert down(source.snapshot()) == {1: []}
    assert source.server_down


def test_a_dsn_that_hangs(make_app, live, postgres):
    """It is waited for once, and said to be down; when it is back it is read again."""

    class Reader:
        def __init__(self):
            self.free = threading.Event()
            self.free.set()
            self.real = AgentReader(postgres.connect, connection_facts)

        def read(self, pids, idle):
            self.free.wait(20)
            return self.real.read(pids, idle)

        def close(self):
            self.free.set()

    reader = Reader()
    app = make_app(servers={"a": postgres})
    app.hold("a")
    source = live(app, dsn="host=h", reader=lambda dsn: reader, patience_s=0.4)
    assert down(source.snapshot()) == {1: []}
    reader.free.clear()
    app.slow = threading.Event()
    began = time.monotonic()
    ((text,),) = down(source.snapshot()).values()
    assert "does not answer since" in text
    source.snapshot()
    assert time.monotonic() - began < 2.0
    reader.free.set()
    app.slow.set()
    app.slow = None
    deadline = time.monotonic() + 10
    while down(source.snapshot()) != {1: []}:
        assert time.monotonic() < deadline


def test_a_late_answer_of_an_agent_counts(make_app, live, postgres):
    """It says after 2.5 s that its server hangs; looks come in between."""
    app = make_app(servers={"a": postgres})
    app.hold("a")
    source = live(app, patience_s=0.2)
    assert down(source.snapshot()) == {1: []}
    said = AgentReading(("a",), None, "PostgreSQL hangs", down="no answer")

    def slowly():
        time.sleep(0.5)
        return [said]

    app.read = slowly
    (process,) = source.snapshot().processes
    assert down(source.snapshot()) == {1: []}
    assert "not answered in time" in process.servers[0].error
    deadline = time.monotonic() + 10
    while down(source.snapshot()) == {1: []}:
        assert time.monotonic() < deadline
        time.sleep(0.1)
    for _ in range(8):  # also while the next answer is awaited
        assert down(source.snapshot()) != {1: []}
        time.sleep(0.1)


# -- processes that do not answer ---------------------------------------------------


class Flaky(FakeClient):
    """A client whose processes can be told to hang."""

    def __init__(self, *make_app):
        super().__init__(*make_app)
        self.hung = {}
        self.asked = []

    def view(self, address):
        self.asked.append(address.pid)
        if address.pid in self.hung:
            self.hung[address.pid].wait(20)
            raise SilentError("it does not answer")
        return address.view()


def test_a_silent_process_is_asked_more_and_more_rarely(make_app, monkeypatch):
    """And is not waited for; when it answers again it is there at once."""
    client = Flaky(make_app(1), make_app(2))
    source = LiveSource(client, environ={}, host=HOST, patience_s=0.5)
    assert len(source.snapshot().processes) == 2
    client.hung[2] = threading.Event()
    began = time.monotonic()
    (lost,) = source.snapshot().unreachable
    assert time.monotonic() - began >= 0.4
    assert (lost.pid, lost.alive) == (2, None)
    assert datetime.now(UTC) - datetime.fromisoformat(lost.since) < timedelta(seconds=9)
    began, client.asked = time.monotonic(), []
    for _ in range(20):
        assert [p.pid for p in source.snapshot().processes] == [1]
    assert time.monotonic() - began < 0.4
    assert client.asked.count(2) == 0
    client.hung.pop(2).set()
    deadline = time.monotonic() + 10
    while len(source.snapshot().processes) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert source.snapshot().unreachable == ()


# -- all sessions -------------------------------------------------------------------


def others(process):
    return {each.pid for status in process.servers for each in status.others}


@pytest.mark.postgres
@pytest.mark.parametrize("by_dsn", [False, True])
def test_one_process_tells_all_sessions_of_a_server(make_app, live, postgres, by_dsn):
    """Only one agent is asked for them, or none with a DSN."""
    apps = [make_app(pid, servers={"a": postgres}) for pid in (1, 2, 3)]
    held = [app.hold("a").facts[0] for app in apps]
    with closing(postgres.connect(application_name="psql")) as stranger:
        dsn = postgres.dsn if by_dsn else None
        source = live(*apps, dsn=dsn, sessions=True)
        for _ in range(2):
            first, *rest = source.snapshot().processes
            assert {stranger.info.backend_pid, *held[1:]} <= others(first)
            assert held[0] not in others(first)
            assert [others(each) for each in rest] == [set(), set()]
        assert [app.asked_for_all for app in apps] == [0 if by_dsn else 2, 0, 0]
        assert not any(map(others, live(*apps, dsn=dsn).snapshot().processes))


def test_each_database_of_a_server_has_a_process_that_tells(make_app, live, postgres):
    apps = [make_app(pid, servers={"a": postgres}) for pid in (1, 2, 3)]
    for app, database in zip(apps, ("shop", "shop", "stock"), strict=True):
        pool = stats("a", f"postgresql://h/{database}")
        app.view = partial(one_pool, app.view, pool)
    source = live(*apps, sessions=True)
    source.snapshot()
    source.snapshot()
    assert [app.asked_for_all for app in apps] == [2, 0, 2]


def one_pool(view, pool):
    return replace(view(), pools=(pool,))


def test_a_foreign_blocker_is_told_by_whom_it_blocks(make_app, live, postgres):
    """Without all sessions, too: its name, and what it is doing."""
    one, two = (make_app(pid, servers={"a": postgres}) for pid in (1, 2))
    with closing(postgres.connect(application_name="dba-laptop")) as stranger:
        stranger.cursor().execute("select pg_advisory_lock(24)")
        two.hold("a")
        waiter = one.hold("a")
        cursor = waiter.connection.cursor()
        waiting = threading.Thread(
            target=cursor.execute, args=("select pg_advisory_lock(24)",)
        )
        waiting.start()
        source = live(one, two)
        until(lambda: others(source.snapshot().processes[0]))
        first, second = source.snapshot().processes
        stranger.cursor().execute("select pg_advisory_unlock(24)")
        waiting.join()
    (blocker,) = first.servers[0].others
    assert (blocker.application, blocker.database) == ("dba-laptop", "postgres")
    assert (blocker.user, blocker.row.state) == ("postgres", "idle")
    assert others(second) == set()
    (finding,) = first.findings
    assert "by a session of 'dba-laptop'" in finding.text
