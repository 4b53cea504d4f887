"""Whatever an agent says: one sentence, or a snapshot that every face can show.

POOLWATCH_EXAMPLES=2000 python -m pytest tests/protocol/test_hostile_documents.py
"""

from __future__ import annotations

import json
import os
import re
from functools import partial

import pytest
from drawn import rows, text
from fakes import (
    finding,
    frame,
    hold,
    idle,
    process,
    server_row,
    server_status,
    snapshot,
    times,
    wait,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from poolwatch.commands.ps_table import Style, render, render_incident_snapshots
from poolwatch.diagnosis.incidents import Incidents
from poolwatch.errors import UnreachableError
from poolwatch.model import (
    Backend,
    ClosedConnection,
    Connection,
    IncidentMark,
    IncidentSnapshot,
    LabelStats,
    LockRequest,
    SiteStats,
    Unreachable,
)
from poolwatch.protocol import document as wire
from poolwatch.protocol.records import AgentReading, Request, ServerReading, Trace
from poolwatch.sidecar.looks import Look
from poolwatch.sidecar.metrics.exposition import exposition
from poolwatch.sidecar.metrics.series import Series
from poolwatch.tui.polling import Reading
from poolwatch.tui.state.board import Board
from poolwatch.tui.views import VIEWS

EXAMPLES = int(os.environ.get("POOLWATCH_EXAMPLES", "12"))
MANY = 100
"""From so many on, they are others each time."""
AT = 1_790_000_000.0
WHEN = "2026-09-21T14:13:20+00:00"
CONTROLS = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\ud800-\udfff]")
FRAME = frame("/srv/app.py:3")
LOCK = LockRequest(FRAME, FRAME, 1.0)
CONNECTION = Connection(9.0, 0.1, "db:5432", 4000)
SITE = SiteStats("orders", FRAME, 3, 0.5, times(1.0), times(1.0), 1, caller=FRAME)
BACKEND = Backend(5, 1.0, 5432, "psql", server_row(), "10.0.0.1")


def everything():
    """A snapshot that has a record of each kind."""
    one = hold(
        backend_pid=7,
        labels={"endpoint": "/"},
        task="t",
        statement="select ?",
        evidence=("it has ended",),
        server=server_row(blocked_by=(5,)),
        connection=CONNECTION,
        used=(FRAME,),
        caller=FRAME,
        earlier_lock=LOCK,
    )
    label = LabelStats(
        "orders", "endpoint", "/", 1, 0.1, times(1.0), times(1.0), 0, 0.1, 0.1, 0.1
    )
    shown = process(
        one,
        waits=(wait(caller=FRAME),),
        sites=(SITE,),
        callers=(SITE,),
        labels=(label,),
        departed=(ClosedConnection("orders", 7, 1.0, CONNECTION, "reset", FRAME),),
        idle=(idle(server=server_row(), lock=LOCK),),
        frozen=(IncidentMark("orders", "exhausted", WHEN),),
        findings=(finding(sites=(FRAME,), holds=("h1",), waits=("w1",)),),
        servers=(server_status(identity="a/b", since=WHEN, others=(BACKEND,)),),
    )
    return snapshot(shown, unreachable=(Unreachable(5, "why", WHEN, True, "web-2"),))


def documents():
    """Every kind of document that a viewer reads, and how it is read and shown."""
    whole = everything()
    reading = ServerReading("a/b", "18.4", 3, 100, (BACKEND,), "db:5432", 0.1)
    request = Request(0.1, 0.2, 0.3, 0)
    pool = whole.processes[0].pools[0]
    yield wire.to_json(whole, viewers=True), wire.from_json, show
    yield wire.to_json(whole, viewers=True, compact=True), wire.from_json, show
    for kind, record in {
        "servers": AgentReading(("orders",), reading, None),
        "traces": Trace(pool, 1.0, (request,), (FRAME,), 0, 0, 1, 0),
        "frozen": IncidentSnapshot("orders", "exhausted", WHEN, whole.processes[0]),
    }.items():
        read = partial(list_of, type(record), kind)
        yield wire.list_to_json([record], kind), read, show_list


def list_of(kind, member, text):
    return wire.list_from_json(kind, text, member)


def show(seen):
    """Give a snapshot to every face."""
    told = [render(seen, Style(120)), wire.to_json(seen, viewers=True)]
    changes = Incidents().update(seen, AT)
    series = Series(("endpoint",), pid_label=True)
    series.take(Look(AT, 0.1, seen, None, changes))
    exposition(series.values(), "")
    board = Board()
    board.accept(Reading(100.0, seen))
    told += [text(rows(board, 160, view=view.name)) for view in VIEWS]
    assert not CONTROLS.search("\n".join(told))


def show_list(records):
    wire.list_to_json(records, "records")
    pictures = [each for each in records if isinstance(each, IncidentSnapshot)]
    assert not CONTROLS.search(render_incident_snapshots(pictures, (), Style(120)))


def places(value, path=()):
    yield path
    for key in value if isinstance(value, dict) else range(len(value)):
        each = value[key]
        if isinstance(each, (dict, list)):
            yield from places(each, (*path, key))
        else:
            yield (*path, key)


DOCUMENTS = [(text, read, show, list(places(json.loads(text)))[1:])
             for text, read, show in documents()]  # fmt: skip
TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ["\x1b]0;x\x07\x1b[2J", "\x9b31m\u202e[/b]", "\ud800", "\0", "x" * 10_000, WHEN,
         "9999-12-31T23:59:59+00:00", "0001-01-01", "postgresql://[::1", "nan"]
    ),
)  # fmt: skip
NUMBERS = st.one_of(
    st.integers(),
    st.floats(),
    st.sampled_from([2**31, 2**53, 2**63, 10**400, 1e299, -1e299, -1, 0]),
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda each: each[0][14:24])
@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=EXAMPLES < MANY,
    database=None,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
def test_any_values_anywhere(document, data):
    text, read, show, found = document
    changed = json.loads(text)
    for path in data.draw(st.lists(st.sampled_from(found), min_size=1, max_size=4)):
        spot = changed
        try:
            for key in path[:-1]:
                spot = spot[key]
            spot[path[-1]] = data.draw(VALUES)
        except (TypeError, LookupError):
            continue  # an earlier change has replaced it
    try:
        seen = read(json.dumps(changed))
    except UnreachableError as error:
        said = str(error)
    else:
        said = ""
        show(seen)
    assert len(said) < 500
    assert not CONTROLS.search(said)
