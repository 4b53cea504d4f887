"""Whose session it is, also where only another process has read its row."""

from __future__ import annotations

import fakes
import pytest

from poolwatch.diagnosis.sessions import Sessions
from poolwatch.model import Backend, Connection

KEY = ("a/1", 7)
ROW = fakes.server_row("idle", state_age_s=30.0)


def known(connection, idle=False, identity="a/1", row=ROW, **changes):
    values = {"age_s": 60.5, "client_port": 5000, "application": "app"} | changes
    backend = Backend(7, row=row, **values)
    status = fakes.server_status(identity="a/1", others=(backend,))
    teller = fakes.process(servers=(status,))
    theirs = (fakes.server_status(identity=identity),)
    if idle:
        each = fakes.idle(7, connection=connection)
        owner = fakes.process(idle=(each,), servers=theirs, pid=2)
    else:
        each = fakes.hold(backend_pid=7, connection=connection)
        owner = fakes.process(each, servers=theirs, pid=2)
    return Sessions([teller, owner]).known[KEY], owner


@pytest.mark.parametrize("idle", [False, True])
@pytest.mark.parametrize(
    ("connection", "is_ours"),
    [
        (Connection(60.0, 0.1, "db:5432", None), True),  # the age
        (Connection(5.0, None, "db:5432", 5000), True),  # the port
        (Connection(5.0, 0.1, "db:5432", 4000), False),
        (Connection(60.0, None, "db:5432", 4000, met=True), False),
    ],
)
def test_a_row_that_another_process_has_read(connection, is_ours, idle):
    session, owner = known(connection, idle)
    assert session.process is (owner if is_ours else None)
    assert session.row.state == "idle"
    assert session.backend.application == "app"


def test_of_another_server_or_hidden():
    connection = Connection(60.0, 0.1, "db:5432", None)
    assert known(connection, identity="b/2")[0].process is None
    assert known(connection, age_s=None)[0].process is None


@pytest.mark.parametrize("age_s", [0.5, 30.0])
def test_a_connection_may_have_changed_hands_between_two_readings(age_s):
    connection = Connection(60.0, 0.1, "db:5432", None)
    row = fakes.server_row("idle in transaction", state_age_s=age_s)
    held, idle = known(connection, row=row)[0], known(connection, True, row=row)[0]
    assert held.hold.may_have_ended == (idle.idle.unchanged_s < 0) == (age_s < 2)
