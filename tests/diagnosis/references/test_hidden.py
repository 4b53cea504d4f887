"""Where a running function may keep something in no variable."""

from __future__ import annotations

from pathlib import Path

import pytest

from poolwatch.diagnosis.references.hidden import may_hide
from poolwatch.model import Frame

SOURCE = """\
def loop():
    for row in rows():
        work()
    after()

def scope():
    with transaction():
        helper()
        work()
    after()

def named():
    with transaction() as one:
        helper()
        work()

def expression():
    return sum(map(price, rows()))

def rows():
    connect()
    yield 1

def helper():
    connect()

def closing():
    helper()
    try:
        helper()
        work()
    finally:
        session.remove()
    after()

def counting():
    try:
        helper()
        work()
    finally:
        count()

def cleaning():
    try:
        helper()
        work()
    except Exception:
        pass
    finally:
        if session:
            teardown_session()

def working():
    try:
        helper()
        while True:
            helper()
    finally:
        session.remove()

def labelled():
    with poolwatch.label(job="nightly"):
        helper()
        work()
"""


@pytest.fixture
def file(tmp_path: Path) -> str:
    path = tmp_path / "program.py"
    path.write_text(SOURCE)
    return str(path)


@pytest.mark.parametrize(
    ("function", "call_site", "by", "now_at", "hidden"),
    [
        ("loop", 2, "rows", 3, True),  # the iterator, in the body of its loop
        ("loop", 2, "rows", 2, True),  # ... and when the loop goes on
        ("loop", 2, "rows", 4, False),
        ("loop", 3, "helper", 3, False),  # what the body took is not the iterator's
        ("scope", 7, "transaction", 9, True),
        ("scope", 8, "helper", 9, True),  # lazily, in the body of a scope
        ("scope", 8, "helper", 10, False),
        ("named", 13, "transaction", 15, True),
        ("named", 14, "helper", 15, False),  # its variable would have shown it
        ("expression", 18, "rows", 18, True),
        ("expression", 18, "helper", 18, False),  # no generator: nothing is suspended
        ("closing", 30, "helper", 31, True),
        ("closing", 28, "helper", 31, True),  # opened in the statement before
        ("closing", 30, "helper", 34, False),
        ("counting", 38, "helper", 39, False),  # closes nothing
        ("cleaning", 45, "helper", 46, True),
        ("cleaning", 45, "helper", 48, True),
        ("labelled", 63, "helper", 64, False),  # a label returns nothing
        ("working", 55, "helper", 57, True),
        ("working", 57, "helper", 57, False),  # of a round: no end of it closes it
    ],
)
def test_what_a_statement_hides(
    file: str, function: str, call_site: int, by: str, now_at: int, hidden: bool
) -> None:
    lines = {"rows": 21, "helper": 25, "transaction": 40}
    taken = (Frame(file, lines[by], by), Frame(file, call_site, function))
    now = (Frame(file, 50, "work"), Frame(file, now_at, function))
    assert may_hide(taken, now) is hidden


def test_without_a_source_nothing_is_known() -> None:
    taken = (Frame("/gone.py", 9, "rows"), Frame("/gone.py", 2, "loop"))
    now = (Frame("/gone.py", 3, "loop"),)
    assert may_hide(taken, now)
