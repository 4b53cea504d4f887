"""One statement reads the server, over every driver and for every role."""

from __future__ import annotations

import re
import threading
from contextlib import closing
from dataclasses import replace
from functools import partial

import pytest
from helpers import until

from poolwatch.adapters.connection_facts import connection_facts
from poolwatch.errors import ServerViewError
from poolwatch.postgres import activity
from poolwatch.postgres.activity import read
from poolwatch.postgres.connection import open_connection, prepare


def connection_to(server):
    return open_connection(server.connect, connection_facts)


def pid_of(connection) -> int:
    return connection.info.backend_pid


def connect(server, driver):
    if driver == "psycopg2":
        return server.connect()
    if driver == "psycopg":
        import psycopg

        return psycopg.connect(server.dsn, autocommit=True)
    pg8000 = pytest.importorskip("pg8000.dbapi")
    path = f"{server.host}/.s.PGSQL.{server.port}"
    return pg8000.connect("postgres", unix_sock=path, database="postgres")


@pytest.mark.parametrize("driver", ["psycopg2", "psycopg", "pg8000"])
def test_every_driver_reads_the_same(postgres, driver):
    """Parameter styles, arrays and numeric types of the drivers do not matter."""
    with closing(postgres.connect(application_name="held")) as held:
        cursor = held.cursor()
        cursor.execute("select 'secret', 42")
        pid = pid_of(held)
        with closing(connect(postgres, driver)) as connection:
            monitor = open_connection(lambda: connection, connection_facts)
            reading = monitor.read([pid, 2**33, -5, 0])
    (backend,) = reading.backends
    assert backend.pid == pid
    assert backend.application == "held"
    assert backend.client_port == -1
    assert 0 <= backend.age_s < 60
    assert backend.row.state == "idle"
    assert 0 <= backend.row.state_age_s <= backend.age_s
    assert backend.row.xact_age_s is None
    assert backend.row.query == "select ?, ?"
    assert reading.version.startswith(postgres.version)
    assert reading.max_connections == 100
    assert reading.sessions >= 2
    assert re.fullmatch(r"\d{15,}/\d+\.\d+", reading.identity)
    assert reading.address == f"{postgres.host}:{postgres.port}"
    assert reading.read_s > 0


def test_a_row_factory_of_the_application_does_not_matter(postgres):
    from psycopg2.extras import RealDictCursor

    monitor = open_connection(
        lambda: postgres.connect(cursor_factory=RealDictCursor), connection_facts
    )
    assert monitor.read([]).backends == ()
    monitor.close()


@pytest.mark.parametrize("version", [16, 18])
def test_old_and_new_servers(start_postgres, version):
    """The wheel has PostgreSQL 16 and 18."""
    server = start_postgres(version)
    with closing(server.connect()) as held:
        monitor = connection_to(server)
        assert monitor.read([pid_of(held)]).version.startswith(str(version))
        monitor.close()


def test_a_waiting_session_comes_with_its_blocker(postgres):
    """The reading has the blocker although its pid was not asked for."""
    postgres.execute("create table if not exists locked (id int primary key)")
    with closing(postgres.connect()) as holder, closing(postgres.connect()) as waiter:
        blocks, waits = pid_of(holder), pid_of(waiter)
        holder.autocommit = False
        holder.cursor().execute("lock table locked")
        waiting = threading.Thread(
            target=waiter.cursor().execute, args=("select 'x' from locked",)
        )
        waiting.start()
        monitor = connection_to(postgres)

        def blocked():
            found = {b.pid: b.row for b in monitor.read([waits]).backends}
            return found if found[waits].blocked_by else None

        rows = until(blocked)
        monitor.close()
        holder.rollback()
        waiting.join()
    assert set(rows) == {waits, blocks}
    assert rows[waits].blocked_by == (blocks,)
    assert 0.0 <= rows[waits].waited_s <= rows[waits].state_age_s
    assert rows[blocks].waited_s is None
    assert rows[waits].wait_event == "Lock:relation"
    assert rows[waits].state == "active"
    assert rows[blocks].state == "idle in transaction"
    assert rows[blocks].xact_age_s >= 0
    assert rows[blocks].query == "lock table locked"


@pytest.mark.parametrize("version", [16, 18])
def test_idle_connections_are_read_if_they_have_something(start_postgres, version):
    """A session-level lock, an open transaction, LISTEN; a clean one is left out."""
    server = start_postgres(version)
    connections = [server.connect() for _ in range(5)]
    clean, locked, open_one, unknown, listener = map(pid_of, connections)
    cursors = [each.cursor() for each in connections]
    cursors[1].execute("select pg_advisory_lock(1), pg_advisory_lock(2, 3)")
    cursors[2].execute("begin")
    cursors[3].execute("select pg_advisory_lock(4)")
    cursors[4].execute("Listen orders")
    monitor = connection_to(server)
    idle = [clean, locked, open_one, listener]
    found = {each.pid: each for each in monitor.read([], idle).backends}
    assert set(found) == {locked, open_one, listener}
    assert found[locked].advisory_locks == 2
    assert found[open_one].advisory_locks == 0
    assert found[open_one].row.state == "idle in transaction"
    assert monitor.read([]).backends == ()
    (other,) = monitor.read([unknown]).backends
    assert other.advisory_locks == 0  # only counted for idle connections
    monitor.close()
    for each in connections:
        each.close()


def test_locks_of_a_transaction_end_with_it(postgres):
    with closing(postgres.connect()) as connection:
        connection.cursor().execute("select pg_advisory_xact_lock(1)")
        monitor = connection_to(postgres)
        assert monitor.read([], [pid_of(connection)]).backends == ()
        monitor.close()


def test_what_relays_a_connection_is_noticed(postgres, postgres_tcp, start_proxy):
    """The server has another address than the client has connected to."""
    relay = start_proxy(postgres)
    for server, relayed in ((postgres, False), (postgres_tcp, False), (relay, True)):
        monitor = connection_to(server)
        assert monitor.read([]).relayed == relayed
        monitor.close()


def test_the_address_of_a_client(postgres, postgres_tcp):
    for server, client in ((postgres, None), (postgres_tcp, "127.0.0.1")):
        with closing(server.connect()) as connection:
            monitor = connection_to(server)
            (backend,) = monitor.read([pid_of(connection)]).backends
            monitor.close()
        assert backend.client == client


def is_blocked(server, pid):
    found = server.execute(f"select pg_blocking_pids({pid}) <> '{{}}'")
    return found == [(True,)]


def test_a_chain_of_three_comes_with_its_root(postgres):
    """Only the last one was asked for: the blocker of its blocker is there, too."""
    postgres.execute("create table if not exists chain (id int primary key)")
    with (
        closing(postgres.connect()) as root,
        closing(postgres.connect()) as middle,
        closing(postgres.connect()) as last,
    ):
        pids = {pid_of(root), pid_of(middle), pid_of(last)}
        root.cursor().execute("select pg_advisory_lock(7)")
        threads = []
        for connection, statement in (
            (middle, "begin; lock table chain; select pg_advisory_lock(7)"),
            (last, "select 1 from chain"),
        ):
            cursor = connection.cursor()
            thread = threading.Thread(target=cursor.execute, args=(statement,))
            thread.start()
            threads.append(thread)
            until(partial(is_blocked, postgres, pid_of(connection)))
        monitor = connection_to(postgres)
        rows = {each.pid: each.row for each in monitor.read([pid_of(last)]).backends}
        monitor.close()
        root.cursor().execute("select pg_advisory_unlock(7)")
        threads[0].join()
        middle.cursor().execute("rollback")
        threads[1].join()
    assert set(rows) == pids
    assert sorted(len(row.blocked_by) for row in rows.values()) == [0, 1, 1]


def test_an_unprivileged_role_sees_its_own_sessions_only(postgres):
    """Hidden values are None, never the server's placeholder text."""
    postgres.execute("drop role if exists nobody_special")
    postgres.execute("create role nobody_special login")
    role = postgres.as_role("nobody_special")
    with closing(postgres.connect()) as other, closing(role.connect()) as own:
        monitor = connection_to(role)
        theirs, ours = pid_of(other), pid_of(own)
        reading = monitor.read([theirs, ours])
        monitor.close()
    rows = {backend.pid: backend for backend in reading.backends}
    hidden, seen = rows[theirs], rows[ours]
    assert (hidden.age_s, hidden.client_port) == (None, None)
    assert (hidden.row.state, hidden.row.query, hidden.row.blocked_by) == (
        None,
        None,
        (),
    )
    assert seen.row.state == "idle"
    assert seen.age_s is not None
    assert reading.sessions >= 3


def test_a_server_that_hides_its_system_identifier(start_postgres):
    """Some managed servers do; the start time still identifies the server."""
    server = start_postgres()
    server.execute("revoke execute on function pg_control_system() from public")
    server.execute("create role app login")
    monitor = connection_to(server.as_role("app"))
    assert not monitor.identify
    reading = monitor.read([])
    monitor.close()
    assert re.fullmatch(r"/\d+\.\d+", reading.identity)


def test_a_statement_in_another_encoding_is_left_out(start_postgres):
    """A statement that cannot be decoded is None; the rest of the row is there."""
    server = start_postgres()
    server.execute(
        "create database latin encoding 'latin1' lc_collate 'C' lc_ctype 'C' "
        "template template0"
    )
    with closing(server.connect(dbname="latin")) as held:
        held.set_client_encoding("LATIN1")
        held.cursor().execute(f'/*{chr(0xE9)}*/ select 1 as "{chr(0xE9)}"')
        monitor = connection_to(server)
        (backend,) = monitor.read([pid_of(held)]).backends
        assert monitor.read([], [pid_of(held)]).backends == ()
        monitor.close()
    assert backend.row.state == "idle"
    assert backend.row.query is None


def test_one_statement_per_refresh_in_the_servers_log(start_postgres):
    """One when the connection opens, and one per refresh."""
    server = start_postgres(log_statement="all", log_line_prefix="%a|")
    monitor = connection_to(server)
    for _ in range(5):
        monitor.read([1, 2, 3])
    monitor.close()
    counted = re.findall(
        r"^(.*?)\|LOG:  (?:statement|execute)", server.log, re.MULTILINE
    )
    assert counted == ["[unknown]"] + ["poolwatch"] * 5


def test_the_session_is_bounded(postgres):
    """The server cancels a statement after two seconds."""
    monitor = connection_to(postgres)
    cursor = monitor.dbapi_connection.cursor()
    cursor.execute("show statement_timeout")
    assert cursor.fetchone() == ("2s",)
    with pytest.raises(Exception, match="statement timeout"):
        cursor.execute("select pg_sleep(60)")
    cursor.execute("select pg_catalog.current_setting('idle_session_timeout')")
    assert cursor.fetchone() == ("1min",)
    monitor.close()


def test_behind_a_pooler_no_setting_is_changed_and_no_row_is_read(postgres):
    """The pooler invents the driver's pid, and its sessions are shared."""
    with closing(postgres.connect()) as connection:
        cursor = connection.cursor()
        with pytest.raises(ServerViewError, match="pooler"):
            prepare(cursor, pid_of(connection) + 1)
        cursor.execute("show statement_timeout")
        assert cursor.fetchone() == ("0",)
        cursor.execute("show application_name")
        assert cursor.fetchone() == ("",)


def test_look_alike_tables_of_other_users_are_not_read(postgres):
    """A planted view at the front of the search path is ignored."""
    with closing(postgres.connect()) as connection:
        cursor = connection.cursor()
        cursor.execute("create temp view pg_stat_activity as select 1 as pid")
        cursor.execute("set search_path = pg_temp, pg_catalog")
        assert read(cursor, [pid_of(connection)], identify=True).backends


def test_all_sessions_of_the_databases_in_question(start_postgres):
    """Those of our connections and our own; not the reader itself, nor other ones."""
    server = start_postgres()
    for name in ("shop", "elsewhere"):
        server.execute(f"create database {name}")
    shop = replace(server, database="shop")
    with (
        closing(shop.connect(application_name="ours")) as ours,
        closing(shop.connect(application_name="psql")) as theirs,
        closing(server.connect(application_name="maintenance")) as maintenance,
        closing(replace(server, database="elsewhere").connect()),
    ):
        cursor = theirs.cursor()
        cursor.execute("begin isolation level repeatable read")
        cursor.execute("select 'secret'")
        monitor = connection_to(server)
        for wanted in (([pid_of(ours)], []), ([], [pid_of(ours)])):
            reading = monitor.read(*wanted, everyone=True)
            found = {each.pid: each for each in reading.backends}
            assert set(found) == {pid_of(each) for each in (ours, theirs, maintenance)}
            assert reading.left_out == 0
        assert monitor.read([pid_of(ours)]).left_out is None
        assert len(monitor.read([], everyone=True).backends) == 1
        monitor.close()
        stranger, idle = found[pid_of(theirs)], found[pid_of(maintenance)]
    assert (stranger.application, stranger.database) == ("psql", "shop")
    assert (stranger.user, stranger.row.query) == ("postgres", "select ?")
    assert stranger.xmin_age >= 0
    assert idle.xmin_age is None


def test_sessions_that_do_not_fit(start_postgres, monkeypatch):
    """Those asked for are there in any case, then those that do something."""
    postgres = start_postgres()
    monkeypatch.setattr(activity, "MAX_SESSIONS", 4)
    connections = [postgres.connect() for _ in range(8)]
    pids = list(map(pid_of, connections))
    connections[7].cursor().execute("begin")
    monitor = connection_to(postgres)
    few = monitor.read(pids[:2], everyone=True)
    many = monitor.read(pids[:6], everyone=True)
    monitor.close()
    total = few.sessions - 1
    for each in connections:
        each.close()
    found = {each.pid for each in few.backends}
    assert {*pids[:2], pids[7]} < found
    assert (len(found), few.left_out) == (4, total - 4)
    assert {each.pid for each in many.backends} == {*pids[:6]}
    assert many.left_out == total - 6


@pytest.mark.parametrize("version", [16, 18])
def test_a_chain_of_twenty_comes_with_its_root(start_postgres, version):
    server = start_postgres(version, deadlock_timeout="1h")
    server.execute("create table t as select generate_series(0, 20) as id")
    connections = [server.connect() for _ in range(21)]
    threads = []
    for number, connection in enumerate(connections):
        connection.autocommit = False
        cursor = connection.cursor()
        cursor.execute(f"select from t where id = {number} for update")
        if number:
            wanted = f"select from t where id = {number - 1} for update"
            threads.append(threading.Thread(target=cursor.execute, args=(wanted,)))
            threads[-1].start()
            until(partial(is_blocked, server, pid_of(connection)))
    pids = list(map(pid_of, connections))
    monitor = connection_to(server)
    rows = {each.pid: each.row for each in monitor.read(pids[-1:]).backends}
    monitor.close()
    for each, thread in zip(connections, [None, *threads], strict=True):
        if thread is not None:
            thread.join()
        each.close()
    assert {pid: row.blocked_by for pid, row in rows.items()} == {
        pid: () if pid == pids[0] else (pids[pids.index(pid) - 1],) for pid in pids
    }
