"""Guarded actions on a real server: only what was shown is hit, and what follows."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack, closing
from dataclasses import replace

import pytest
from helpers import until

from poolwatch.adapters.connection_facts import connection_facts
from poolwatch.errors import PoolwatchError, RefusedError
from poolwatch.model import Connection
from poolwatch.model.actions import Chosen
from poolwatch.postgres import actions as module
from poolwatch.postgres.actions import DsnActions
from poolwatch.postgres.dsn_reader import DsnReader

pytestmark = pytest.mark.postgres


class Stage:
    """Sessions of one server, and the actions on them."""

    def __init__(self, server, stack):
        self.server = server
        self.stack = stack
        self.actions = DsnActions(server.dsn, connection_facts)
        self.reader = DsnReader(server.dsn, connection_facts)
        stack.callback(self.reader.close)
        server.execute("drop table if exists acted")
        server.execute("create table acted as select 1 as id, 0 as n")

    def session(self, name="app", **changes):
        connection = self.stack.enter_context(
            closing(self.server.connect(application_name=name, **changes))
        )
        return connection, connection.info.backend_pid

    def run(self, connection, sql):
        """Run a statement on a thread; its error, if any, is of no interest."""

        def work():
            try:
                connection.cursor().execute(sql)
            except Exception:
                return

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        self.stack.callback(thread.join, 60)
        return thread

    def root(self):
        connection, pid = self.session("root")
        connection.cursor().execute("begin; update acted set n = n + 1")
        return connection, pid

    def waiter(self, name="waiter"):
        connection, pid = self.session(name)
        self.run(connection, "update acted set n = n + 1")
        until(lambda: self.state(pid)[1] == "Lock")
        return pid

    def state(self, pid):
        rows = self.server.execute(
            f"select state, wait_event_type from pg_stat_activity where pid = {pid}"
        )
        return rows[0] if rows else (None, None)

    def chosen(self, pid, **changes):
        """What a viewer knows of a session of nobody it knows."""
        began = time.monotonic()
        reading = self.reader.read([pid])
        (backend,) = (each for each in reading.backends if each.pid == pid)
        facts = Connection(backend.age_s or 0.0, 0.0, None, backend.client_port)
        seen = (began, time.monotonic())
        return Chosen(pid, reading.identity, facts, seen, **changes)

    def look(self, pid, **changes):
        return self.actions.look(self.chosen(pid, **changes))


@pytest.fixture
def stage(postgres_tcp):
    with ExitStack() as stack:
        yield Stage(postgres_tcp, stack)
        postgres_tcp.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity "
            "where application_name in ('app', 'root', 'waiter', 'middle', 'last')"
        )


def test_ending_a_root_frees_those_behind_it(stage, caplog):
    caplog.set_level("INFO", "poolwatch")
    _, root = stage.root()
    waiters = [stage.waiter("first"), stage.waiter("second")]
    target = stage.look(root, process="shop 8812 on web-1", site="cart.py:14")
    assert [each.pid for each in target.frees] == sorted(waiters)
    assert {each.application for each in target.frees} == {"first", "second"}
    assert target.row.state == "idle in transaction"
    outcome = stage.actions.act("terminate", target)
    assert outcome.done
    assert f"backend {root} is gone" in outcome.text
    assert outcome.text.endswith("2 of 2 sessions behind it go on")
    assert stage.state(root) == (None, None)
    said = caplog.messages[-1]
    assert "shop 8812 on web-1, call site cart.py:14" in said
    assert "is gone" in said
    # the same target once more: its backend is no more
    again = stage.actions.act("terminate", target)
    assert (again.done, again.text) == (
        False,
        f"backend {root} has ended meanwhile; nothing was done",
    )


def test_a_chain_is_followed(stage):
    _, root = stage.root()
    middle, middle_pid = stage.session("middle")
    stage.server.execute("drop table if exists acted_too")
    stage.server.execute("create table acted_too as select 1 as n")
    middle.cursor().execute("begin; update acted_too set n = 2")
    stage.run(middle, "update acted set n = 5")
    until(lambda: stage.state(middle_pid)[1] == "Lock")
    last, last_pid = stage.session("last")
    stage.run(last, "update acted_too set n = 3")
    until(lambda: stage.state(last_pid)[1] == "Lock")
    target = stage.look(root)
    assert [each.pid for each in target.frees] == sorted([middle_pid, last_pid])
    outcome = stage.actions.act("terminate", stage.look(middle_pid))
    assert outcome.text.endswith("; the session behind it goes on")


def test_what_others_block_as_well_is_not_freed(stage):
    """Two share a lock that a third one wants."""
    holders = [stage.session("root") for _ in range(2)]
    for connection, _ in holders:
        connection.cursor().execute("begin; lock acted in share mode")
    waiter = stage.waiter()
    target = stage.look(holders[0][1])
    assert target.frees == ()
    assert [each.pid for each in target.behind_others] == [waiter]
    assert "behind it" not in stage.actions.act("terminate", target).text
    assert stage.state(waiter)[1] == "Lock"


def test_a_reused_pid_and_another_transaction_are_not_hit(stage):
    connection, pid = stage.root()
    target = stage.look(pid)
    reused = replace(target, started=f"{float(target.started) - 60:.6f}")
    outcome = stage.actions.act("terminate", reused)
    assert not outcome.done
    assert "has ended meanwhile, and another one has its pid; nothing" in outcome.text
    connection.cursor().execute("rollback")
    connection.cursor().execute("begin; select 2")
    outcome = stage.actions.act("terminate", target)
    assert "has gone on meanwhile to another transaction" in outcome.text
    assert stage.state(pid)[0] == "idle in transaction"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"age_s": 3600.0}, "not proven"),
        ({"age_s": -60.0}, "not proven"),
        ({"client_port": 9, "connect_s": None}, "not proven"),
    ],
)
def test_only_the_session_that_was_shown_is_looked_at(stage, change, why):
    _, pid = stage.session()
    chosen = stage.chosen(pid)
    facts = replace(chosen.connection, **change)
    with pytest.raises(RefusedError, match=why):
        stage.actions.look(replace(chosen, connection=facts))


def test_what_is_over_or_elsewhere_is_refused_with_one_sentence(stage, second_postgres):
    connection, pid = stage.root()
    chosen = stage.chosen(pid, xact_age_s=50.0)
    with pytest.raises(RefusedError, match=r"transaction .* has ended meanwhile"):
        stage.actions.look(chosen)
    elsewhere = DsnActions(second_postgres.dsn, connection_facts)
    with pytest.raises(RefusedError, match="on a different server"):
        elsewhere.look(chosen)
    system = chosen.server.partition("/")[0]
    with pytest.raises(RefusedError, match="restarted"):
        stage.actions.look(replace(chosen, server=f"{system}/1.5"))
    connection.close()
    until(lambda: stage.state(pid) == (None, None))
    with pytest.raises(RefusedError, match=f"backend {pid} has ended"):
        stage.actions.look(chosen)


def test_own_sessions_and_those_of_the_server_are_refused(stage):
    stage.reader.read([1])
    (own,) = stage.server.execute(
        "select pid from pg_stat_activity where application_name = 'poolwatch'"
    )
    with pytest.raises(RefusedError, match="a session of poolwatch itself"):
        stage.look(own[0])
    (writer,) = stage.server.execute(
        "select pid from pg_stat_activity where backend_type = 'checkpointer'"
    )
    with pytest.raises(RefusedError, match="serves no client: checkpointer"):
        stage.look(writer[0])


def test_a_running_statement_is_cancelled_and_a_finished_one_is_not(stage):
    connection, pid = stage.session()
    thread = stage.run(connection, "begin; select 'secret', pg_sleep(60)")
    until(lambda: stage.state(pid)[0] == "active")
    target = stage.look(pid)
    assert target.is_running
    assert "secret" not in (target.row.query or "")
    outcome = stage.actions.act("cancel", target)
    assert outcome.done
    assert "idle in transaction (aborted)" in outcome.text
    thread.join(60)
    stage.run(connection, "rollback").join(60)
    # the same text again: another statement all the same
    stage.run(connection, "begin; select 'secret', pg_sleep(60)")
    until(lambda: stage.state(pid)[0] == "active")
    outcome = stage.actions.act("cancel", target)
    assert (outcome.done, outcome.text) == (
        False,
        f"the statement of backend {pid} has ended meanwhile; nothing was done",
    )
    assert stage.state(pid)[0] == "active"
    stage.actions.act("terminate", stage.look(pid))


def test_a_role_without_rights_is_told_what_it_needs(stage):
    for role in ("sees", "blind"):
        stage.server.execute(f"drop role if exists {role}")
        stage.server.execute(f"create role {role} login")
    stage.server.execute("grant pg_monitor to sees")
    _, pid = stage.root()
    chosen = stage.chosen(pid)
    blind = DsnActions(stage.server.as_role("blind").dsn, connection_facts)
    with pytest.raises(RefusedError, match="sees only the pid"):
        blind.look(chosen)
    sees = DsnActions(stage.server.as_role("sees").dsn, connection_facts)
    with pytest.raises(RefusedError, match="needs pg_signal_backend"):
        sees.act("terminate", sees.look(chosen))
    assert stage.state(pid)[0] == "idle in transaction"


def test_success_is_not_claimed_before_it_is_seen(stage, monkeypatch):
    """The signal is sent, but the backend does not react."""
    harmless = module._ACT.replace("pg_terminate_backend(pid)", "pid > 0")
    monkeypatch.setattr(module, "_ACT", harmless)
    monkeypatch.setattr(module, "OBSERVED_S", 0.3)
    _, pid = stage.root()
    stage.waiter()
    outcome = stage.actions.act("terminate", stage.look(pid))
    assert not outcome.done
    assert outcome.text == (
        f"backend {pid} has not reacted yet: it is still idle in transaction; "
        "the session behind it still waits"
    )


def test_a_server_that_hangs_ends_with_a_sentence(stage, monkeypatch):
    _, pid = stage.session()
    target = stage.look(pid)
    monkeypatch.setattr(module, "PATIENCE_S", 0.3)
    release = threading.Event()
    monkeypatch.setattr(module, "connect", lambda _: release.wait(60))
    with pytest.raises(PoolwatchError, match=r"not answered within 0\.3 s$"):
        stage.actions.look(target.chosen)
    with pytest.raises(PoolwatchError, match="is not known"):
        stage.actions.act("terminate", target)
    release.set()
    assert stage.state(pid)[0] == "idle"
