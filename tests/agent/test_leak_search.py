"""When a hold is called leaked, and when that is taken back: real holds."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from fix_core import Look
from helpers import until
from sqlalchemy import text

import poolwatch

PING = text("SELECT 1")
LOOKS = 4
"""So many that a leak is confirmed, and more."""
kept: list[Any] = []


@pytest.fixture
def engine(
    instrument: Callable[..., poolwatch.Watch], sqlite: Callable[..., Any]
) -> Iterator[Any]:
    engine = sqlite()
    instrument(engine, long_after=0.001)
    yield engine
    kept.clear()


def verdicts() -> list[str]:
    """Those on the only hold, in several looks."""
    looks = [Look().process.holds for _ in range(LOOKS)]
    return [hold.verdict for (hold,) in looks]


def is_leaked() -> bool:
    (hold,) = Look().process.holds
    return hold.verdict == "leaked"


def take_lock(engine: Any) -> None:
    """A leader's lock: its connection stays in a global, and is used now and then."""
    kept.append(engine.connect())
    kept[0].execute(PING)


def beat() -> None:
    kept[0].execute(PING)


def test_a_use_disproves_a_leak_for_good(engine: Any) -> None:
    take_lock(engine)
    until(is_leaked)
    beat()
    assert verdicts() == ["long"] * LOOKS  # long after its last use, too
    (hold,) = Look().process.holds
    assert "used again after it was called leaked" in hold.evidence


def test_what_was_used_before_is_leaked_all_the_same(engine: Any) -> None:
    take_lock(engine)
    beat()
    until(is_leaked)
    assert verdicts() == ["leaked"] * LOOKS


def test_a_holder_that_ends_after_all(engine: Any) -> None:
    """It has used the connection once more, and nobody else ever has."""
    taken, found, used, ended = (threading.Event() for _ in range(4))

    def hold() -> None:
        take_lock(engine)
        taken.set()
        found.wait()
        beat()
        used.set()
        ended.wait()

    thread = threading.Thread(target=hold)
    thread.start()
    taken.wait()
    until(is_leaked)
    found.set()
    used.wait()
    assert verdicts() == ["long"] * LOOKS
    ended.set()
    thread.join()
    until(is_leaked)
    assert "leaked.orphaned" in Look().kinds()


def test_the_remedy_for_a_hold_that_is_meant_to_last(engine: Any) -> None:
    take_lock(engine)
    until(is_leaked)
    (finding,) = [f for f in Look().process.findings if f.kind == "leaked.abandoned"]
    assert 'with poolwatch.long_hold("why")' in finding.remedy


WITHOUT_SOURCE = """
def rows(engine):
    with engine.connect() as connection:
        yield from connection.execute(PING)

def export(engine, work):
    for row in rows(engine):
        work()

def audit(engine):
    kept.append(engine.connect())

def leak(engine, work):
    audit(engine)
    work()
"""


def compiled(file: Path) -> dict[str, Any]:
    code = {"PING": PING, "kept": kept, "__name__": "shop.export"}
    exec(compile(WITHOUT_SOURCE, str(file), "exec"), code)
    return {name: code[name] for name in ("export", "leak")}


@pytest.mark.parametrize(("function", "said"), [("export", "long"), ("leak", "leaked")])
def test_code_without_a_source(
    engine: Any, tmp_path: Path, function: str, said: str
) -> None:
    """Of an image of .pyc files: the loop may have it, unless a list does."""
    target = compiled(tmp_path / "export.py")[function]
    working, done = threading.Event(), threading.Event()

    def work() -> None:
        working.set()
        done.wait()

    thread = threading.Thread(target=target, args=(engine, work))
    thread.start()
    working.wait()
    until(lambda: verdicts() == [said] * LOOKS)
    done.set()
    thread.join()
