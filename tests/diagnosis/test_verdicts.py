"""The verdict on one hold, from what was seen of it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from poolwatch.diagnosis.verdicts import Keeping, Seen, judge
from poolwatch.model import Frame

LONG = Seen(
    held_s=40.0,
    long_after=30.0,
    ended_owner=None,
    long_hold=None,
    detached=False,
    statement_s=None,
    taken_by=2,
    still_there=1,
    doing=None,
    keeping=None,
)
ELSEWHERE = Keeping(
    in_use=True,
    words="local 'db' of f",
    in_use_by_taker=False,
    complete=True,
    direct=True,
)


def test_a_search_that_saw_nothing_is_no_proof_if_it_is_incomplete():
    nothing = Keeping(in_use=False, words=None, in_use_by_taker=None, complete=False)
    assert judge(replace(LONG, keeping=nothing)).verdict == "long"
    complete = replace(nothing, complete=True)
    assert judge(replace(LONG, keeping=complete)).kind == "leaked.abandoned"


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
    at = Frame(str(file), 2, "f")
    assert judge(replace(LONG, keeping=replace(ELSEWHERE, at=at))).kind == kind


def test_a_frame_that_sees_it_as_an_attribute(tmp_path):
    """Another method of the same object may be the one that uses it."""
    file = tmp_path / "app.py"
    file.write_text("def f(self):\n    time.sleep(30)\n")
    at = Frame(str(file), 2, "f")
    seen = replace(ELSEWHERE, at=at, direct=False)
    assert judge(replace(LONG, keeping=seen)).kind == "long_hold"
    used = replace(LONG, keeping=seen, used=(Frame(str(file), 1, "f"),))
    assert judge(used).kind == "held_across_io"
