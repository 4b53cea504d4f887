"""The verdict on one hold, from what was seen of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolwatch.diagnosis.evidence import HoldEvidence, Search
from poolwatch.diagnosis.references.path import ReferencePath
from poolwatch.diagnosis.verdicts import judge
from poolwatch.model import Frame
from poolwatch.stacks.classify import Activity

LONG = HoldEvidence(held_s=40.0, long_after=30.0, frames_at_checkout=2, frames_left=1)


KEPT = replace(LONG, kept="in use by the request that its thread serves")


def test_a_connection_that_a_framework_keeps():
    """No variable has it, but the next statement of its thread uses it."""
    nothing_found = replace(KEPT, search=Search(None))
    assert judge(nothing_found).verdict == "long"
    assert KEPT.kept in judge(nothing_found).reasons
    ended = replace(nothing_found, ended_owner="thread one")
    assert judge(ended).kind == "leaked.orphaned"


def test_a_thread_s_own_connection_between_two_jobs():
    """It takes a connection from nobody else, as long as code of the thread runs."""
    between = replace(KEPT, own_connection=True, search=Search(None))
    assert (judge(between).verdict, judge(between).kind) == ("ok", None)
    nothing_runs = replace(between, kept=None)
    assert judge(nothing_runs).kind == "leaked.abandoned"


def elsewhere(at, *, direct=True):
    """A search has found the connection in a frame of another thread."""
    path = ReferencePath(
        kind="running frame",
        owner="worker",
        same_holder=False,
        is_user=True,
        frame=at,
        steps=("local 'db' of f",),
        in_hand=True,
        direct=direct,
        near=True,
    )
    return replace(LONG, search=Search(path))


def test_an_incomplete_search_that_found_nothing_is_no_proof():
    incomplete = Search(None, unseen="threads: worker not looked at")
    assert judge(replace(LONG, search=incomplete)).verdict == "long"
    asleep = replace(LONG, activity=Activity("sleep", Frame("/srv/app.py", 9, "rest")))
    for search in (incomplete, None):  # cut short; not begun
        cut_short = judge(replace(asleep, search=search))
        assert cut_short.kind == "long_hold"
        assert "asleep" not in " ".join(cut_short.reasons)
    complete = replace(LONG, search=Search(None))
    assert judge(complete).kind == "leaked.abandoned"


@pytest.mark.parametrize(
    ("line", "kind"),
    [
        ("    async with pool.acquire() as second:", "long_hold"),
        ("    await second.execute(statement)", "long_hold"),
        ("    time.sleep(30)", "held_across_io"),
    ],
)
def test_a_user_of_whom_one_frame_is_known(tmp_path, line, kind):
    """A line that waits does not say for what: it may be a pool, or a statement."""
    file = tmp_path / "app.py"
    file.write_text(f"def f(db):\n{line}\n")
    assert judge(elsewhere(Frame(str(file), 2, "f"))).kind == kind


def test_a_frame_that_sees_it_as_an_attribute(tmp_path):
    """Another method of the same object may be the one that uses it."""
    file = tmp_path / "app.py"
    file.write_text("def f(self):\n    time.sleep(30)\n")
    seen = elsewhere(Frame(str(file), 2, "f"), direct=False)
    assert judge(seen).kind == "long_hold"
    used = replace(seen, used=(Frame(str(file), 1, "f"),))
    assert judge(used).kind == "held_across_io"


def test_an_adopted_hold_is_judged_by_what_is_known_of_it():
    """What has it is said at once; a leak only after it was seen out for long."""
    young = HoldEvidence(held_s=5.0, long_after=30.0, adopted=True, search=Search(None))
    assert judge(young).verdict == "ok"
    assert "unknown" in judge(young).reasons[0]
    old = replace(young, held_s=40.0)
    assert judge(old).kind == "leaked.abandoned"
    assert judge(old).reasons[0].startswith("held at least 40s")
    assert judge(replace(old, unused_s=15.0)).verdict == "ok"
    found = elsewhere(Frame("/srv/app.py", 9, "f")).search
    for each in (young, old):
        reasons = judge(replace(each, search=found)).reasons
        assert any(reason.startswith("in use by local 'db' of f") for reason in reasons)
    assert judge(replace(old, search=found)).verdict == "long"
