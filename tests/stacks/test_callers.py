"""The caller beside the call site, from stacks to every face."""

from __future__ import annotations

import logging
import threading
from pathlib import Path

import pytest
from fakes import frame
from fix_core import Look, book_of, null_pool_of
from helpers import until
from sqlalchemy import text

from poolwatch.adapters.sqlalchemy.hooks import PoolHooks  # noqa: F401 - loaded before stacks
from poolwatch.agent.instrument import agent
from poolwatch.commands import ps_table
from poolwatch.commands.ps_table import Style
from poolwatch.diagnosis.timeout_note import note
from poolwatch.model import Frame, Snapshot
from poolwatch.protocol import document as wire
from poolwatch.stacks.callers import Request, callers, first_difference

TAKE, MIDDLE = frame("/srv/app/db.py:5", "take"), frame("/srv/app/repo.py:7", "load")
A, B, C = (
    frame("/srv/app/views.py:10", "view_a"),
    frame("/srv/app/views.py:20", "view_b"),
    frame("/srv/app/jobs.py:30", "job_c"),
)
MAIN = frame("/srv/app/main.py:1", "<module>")
LIBRARY = frame("/srv/v/lib/python3.11/site-packages/sqlalchemy/pool.py:3", "connect")


def named(*stacks, known=()):
    requests = {n: Request(TAKE, stack) for n, stack in enumerate(stacks)}
    found = callers(requests, {TAKE: list(known)})
    return [found.get(n) for n in range(len(stacks))]


# -- which caller --------------------------------------------------------------------


def test_one_stack_needs_no_caller():
    assert named((TAKE, A, MAIN), (TAKE, A, MAIN)) == [None, None]


def test_the_first_frame_that_differs():
    stacks = (LIBRARY, TAKE, MIDDLE, A, MAIN), (LIBRARY, TAKE, MIDDLE, B, MAIN)
    assert named(*stacks) == [A, B]


def test_lines_of_one_caller_differ():
    first, second = frame("/srv/app/views.py:10"), frame("/srv/app/views.py:14")
    assert named((TAKE, first), (TAKE, second)) == [first, second]


def test_frames_of_libraries_tell_nothing_apart():
    other = frame("/srv/v/lib/python3.11/site-packages/sqlalchemy/orm.py:9")
    assert named((LIBRARY, TAKE, other, A), (LIBRARY, TAKE, LIBRARY, A)) == [None, None]


def test_what_was_seen_earlier_keeps_the_caller():
    assert named((TAKE, A, MAIN), known=[(TAKE, B, MAIN)]) == [A]
    assert named((TAKE, A, MAIN), known=[(TAKE, A, MAIN)]) == [None]


def test_the_nearest_frame_that_differs_is_enough():
    stacks = (TAKE, MIDDLE, A), (TAKE, MIDDLE, B), (TAKE, C)
    assert named(*stacks) == [MIDDLE, MIDDLE, C]
    assert named(stacks[0], known=stacks) == [MIDDLE]


def test_a_stack_that_ends_is_told_from_one_that_goes_on():
    assert named((TAKE,), (TAKE, A)) == [None, A]


def test_a_stack_that_was_cut_short_may_go_on_alike():
    long = (TAKE, A, B, C, MAIN)
    assert named(long, known=[long[:4]]) == [None]
    assert first_difference([long, long[:4], long[:3]]) == 3


def test_many_holds_with_the_same_stack_are_named_alike():
    stacks = [(TAKE, A)] * 400 + [(TAKE, B)] * 600
    assert named(*stacks) == [A] * 400 + [B] * 600


# -- real pools ----------------------------------------------------------------------


def take(engine):
    return engine.connect()  # every connection of this file is taken here


def first_view(engine):
    return take(engine)


def second_view(engine):
    return take(engine)


def test_holds_waits_and_sites_name_the_caller(instrument, sqlite):
    engine = sqlite(pool_size=2, max_overflow=0, pool_timeout=20)
    watch = instrument(engine)
    first, second = first_view(engine), second_view(engine)
    waiter = threading.Thread(target=lambda: first_view(engine).close())
    waiter.start()
    try:
        while not Look().waits(watch):
            pass
        look = Look()
        by_caller = {hold.caller.function for hold in look.holds(watch)}
        assert by_caller == {"first_view", "second_view"}
        assert {hold.site.function for hold in look.holds(watch)} == {"take"}
        (wait,) = look.waits(watch)
        assert (wait.site.function, wait.caller.function) == ("take", "first_view")
        (site,) = look.process.sites
        assert (site.count, site.caller) == (2, None)
        assert {(s.caller.function, s.count) for s in look.process.callers} == {
            ("first_view", 1),
            ("second_view", 1),
        }
    finally:
        first.close()
        waiter.join()
        second.close()


def test_the_caller_stays_when_the_others_have_gone(instrument, sqlite):
    engine = sqlite()
    watch = instrument(engine)
    second_view(engine).close()
    held = first_view(engine)
    for _ in range(3):
        (hold,) = Look().holds(watch)
        assert hold.caller.function == "first_view"
    held.close()
    costs = {each.caller.function: each.count for each in Look().process.callers}
    assert costs == {"first_view": 1, "second_view": 1}


def test_one_caller_is_not_worth_a_word(instrument, sqlite):
    engine = sqlite()
    watch = instrument(engine)
    for _ in range(3):
        with first_view(engine):
            (hold,) = Look().holds(watch)
            assert hold.caller is None
    assert Look().process.callers == ()


def test_callers_are_bounded(instrument):
    pool = null_pool_of()
    instrument(pool)
    space = {"pool": pool}
    source = "def take():\n    pool.connect().close()\n"
    source += "".join(f"def f{n}():\n    take()\n" for n in range(600))
    exec(compile(source, "/srv/app/many.py", "exec"), space)
    for n in range(600):
        space[f"f{n}"]()
    book = book_of(pool)
    assert len(book._sites.all()) <= 260
    (process,) = (agent.source.process(),)
    (site,) = process.sites
    assert site.count == sum(each.count for each in process.callers) == 600
    assert any(
        each.caller == Frame("(other call sites)", 0, "") for each in process.callers
    )


KEPT = []


# -- faces ---------------------------------------------------------------------------


@pytest.fixture
def shared(instrument, sqlite):
    """Two holds of one call site, by two callers, each kept by nothing that runs."""
    engine = sqlite(pool_size=2, max_overflow=0, pool_timeout=0.01)
    instrument(engine, name="orders", long_after=1e-9)
    for view in (first_view, second_view):
        thread = threading.Thread(target=lambda: KEPT.append(view(engine)))  # noqa: B023
        thread.start()
        thread.join()
    yield engine
    while KEPT:
        KEPT.pop().close()


def lines():
    source = Path(__file__).read_text().splitlines()
    return [
        next(n for n, code in enumerate(source, 1) if begin in code) + more
        for begin, more in (
            ("def take(", 1),
            ("def first_view(", 1),
            ("def second_view(", 1),
        )
    ]


def judged():
    """Return a snapshot in which both holds are judged: a busy machine cuts looks
    short."""

    def look():
        snapshot = agent.source.snapshot()
        holds = snapshot.processes[0].holds
        return snapshot if {hold.verdict for hold in holds} == {"leaked"} else None

    return until(look)


def test_tables_name_both(shared):
    at, first, second = lines()
    for columns in (200, 120, 80):
        told = ps_table.render(judged(), Style(columns))
        rows = [row for row in told.splitlines() if row.lstrip().startswith("leaked ")]
        assert len(rows) == 2
        assert any(f":{at} " in row and f":{first} " in row for row in rows)
        assert any(f":{at} " in row and f":{second} " in row for row in rows)
        wide = f"stacks/test_callers.py:{at} from stacks/test_callers.py:{first} "
        assert (wide in told) == (columns > 80)


def test_costs_by_site_and_by_caller(shared):
    at, first, second = lines()
    told = ps_table.render(agent.source.snapshot(), Style(120, sites=True)).splitlines()
    below = told[told.index(next(x for x in told if "call sites of" in x)) :]
    assert [row.split()[0] for row in below[3:]] == [
        f"stacks/test_callers.py:{at}",
        "from",
        "from",
    ]
    assert {row.split()[1] for row in below[4:]} == {
        f"stacks/test_callers.py:{first}",
        f"stacks/test_callers.py:{second}",
    }
    flat = ps_table.render(agent.source.snapshot(), Style(160, sites=True, by="caller"))
    assert f"stacks/test_callers.py:{at} from stacks/test_callers.py:{first}" in flat
    assert "callers of orders, costliest first:" in flat


def test_the_document_has_both(shared):
    _, first, second = lines()
    text = wire.to_json(agent.source.snapshot(), viewers=True)
    (again,) = wire.from_json(text).processes
    assert {hold.caller.line for hold in again.holds} == {first, second}
    assert [site.caller for site in again.sites] == [None]
    assert {each.caller.line for each in again.callers} == {first, second}
    (public,) = wire.to_document(agent.source.snapshot())["processes"]
    assert "caller" not in public["holds"][0]  # the public document has its schema


def test_one_finding_names_the_callers(shared):
    at, first, second = lines()
    findings = [f for f in judged().processes[0].findings if f.holds]
    (leak,) = [f for f in findings if f.kind.startswith("leaked")]
    here = "stacks/test_callers.py"
    assert leak.text.startswith(f"{here}:{at} from {here}:")
    assert f"{here}:{first}" in leak.text
    assert f"{here}:{second}" in leak.text
    assert [site.line for site in leak.sites] == [at]


def test_the_log_names_the_callers(shared, caplog, watchdog):
    at, first, second = lines()
    with caplog.at_level(logging.WARNING, "poolwatch"):
        until(lambda: watchdog.tick() or caplog.records)
    (said,) = [
        r.message for r in caplog.records if "connection checked out at" in r.message
    ]
    head = said.splitlines()[0]
    assert f"test_callers.py:{at} from " in head
    assert f"test_callers.py:{first}" in head
    assert f"test_callers.py:{second}" in head


def test_the_note_of_a_timeout_names_the_callers(shared):
    engine = shared
    at, first, second = lines()
    told = note(agent.source.process(), book_of(engine).id)
    here = "stacks/test_callers.py"
    assert f"1 held by {here}:{at} in take from {here}:{first} in first_view" in told
    assert f"1 held by {here}:{at} in take from {here}:{second} in second_view" in told


def test_dropped_connections_name_who_dropped_them(instrument, sqlite):
    engine = sqlite()
    instrument(engine)
    second_view(engine).close()
    first_view(engine)  # and not kept
    (found,) = [f for f in Look().process.findings if f.kind == "leaked.collected"]
    at, first, second = lines()
    assert (
        f"test_callers.py:{at} from stacks/test_callers.py:{first} dropped"
        in found.text
    )
    assert f":{second}" not in found.text


def test_statements_are_no_callers(instrument, sqlite):
    engine = sqlite()
    watch = instrument(engine)
    second_view(engine).close()
    with first_view(engine) as connection:
        connection.execute(text("select 1"))
        (hold,) = Look().holds(watch)
    assert hold.caller.function == "first_view"


def test_a_snapshot_survives_the_wire_without_callers():
    """A process with an older poolwatch knows no callers."""
    document = wire.to_json(Snapshot((agent.source.process(),)), viewers=True)
    old = document.replace(', "callers": []', "")
    assert wire.from_json(old).processes[0].callers == ()
