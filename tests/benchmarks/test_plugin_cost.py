"""What ``--pool-leaks=error`` adds to a suite of 1,000 small database tests.

    python -m pytest tests/benchmarks/test_plugin_cost.py --benchmark-only

The suite runs in processes of its own, without the plugin and with it in turn, and with
no other plugin loaded: the least time for what is added to be compared with. "Without"
has a plugin that does nothing: for each ``-p`` pytest goes through all distributions
that are installed, which nobody does for ours, as pytest finds it by itself.

Two more suites make an engine for each test, on a database in memory or on a file.

Full garbage collections are counted: there are one or two, each takes as long as a
dozen tests, and whether one more falls into a run is chance.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any

import pytest

TESTS = 1000
FILES = 10
ROUNDS = 21

CONFTEST = """
import gc
import os

import pytest
from sqlalchemy import QueuePool, create_engine
from sqlalchemy.orm import Session

from model import Base


@pytest.fixture(scope="session")
def engine():
    engine = create_engine(os.environ["SUITE_URL"], poolclass=QueuePool)
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)
    yield engine
    Base.metadata.drop_all(engine)
    engine.dispose()


def pytest_unconfigure():
    print("full collections:", gc.get_stats()[-1]["collections"])


@pytest.fixture
def own(tmp_path):
    engine = create_engine(os.environ["SUITE_URL"].format(tmp_path))
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield session
    engine.dispose()


@pytest.fixture
def connection(engine):
    with engine.connect() as connection:
        yield connection
        connection.rollback()


@pytest.fixture
def session(engine):
    with Session(engine) as session:
        yield session
        session.rollback()
"""

MODEL = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase): ...


class Item(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
"""

HEAD = """
from model import Item
from sqlalchemy import func, insert, select
"""

SELECTS = """
def test_select_{n}(connection):
    assert connection.scalar(select(func.count()).select_from(Item)) == 0
"""

INSERTS = """
def test_insert_{n}(connection):
    connection.execute(insert(Item).values(id={n}, name="item {n}"))
    assert connection.scalar(select(Item.name).where(Item.id == {n})) == "item {n}"
"""

ORM = """
def test_orm_{n}(session):
    session.add(Item(id={n}, name="item {n}"))
    session.flush()
    assert session.scalars(select(Item)).one().name == "item {n}"
"""

WITH_ENGINE = """
def test_engine_{n}(engine):
    with engine.begin() as connection:
        assert connection.scalar(select(Item.name).where(Item.id == {n})) is None
"""


OWN_ENGINE = """
def test_own_engine_{n}(own):
    own.add(Item(id={n}, name="item {n}"))
    own.flush()
    assert own.scalars(select(Item)).one().name == "item {n}"
"""

ONE_ENGINE = (SELECTS, INSERTS, ORM, WITH_ENGINE)
SUITES = {
    "SQLite file": ("sqlite:///suite.db", ONE_ENGINE),
    "local PostgreSQL": (None, ONE_ENGINE),
    "SQLite in memory, an engine for each test": ("sqlite://", (OWN_ENGINE,)),
    "SQLite file, an engine for each test": ("sqlite:///{}/own.db", (OWN_ENGINE,)),
}
"""By name: the URL, and the kinds of tests."""


def write_suite(directory: Path, ways: Sequence[str] = ONE_ENGINE) -> None:
    """1,000 tests in ten files, of these ways by turns."""
    (directory / "idle_plugin.py").write_text("", encoding="utf-8")
    (directory / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
    (directory / "conftest.py").write_text(CONFTEST, encoding="utf-8")
    (directory / "model.py").write_text(MODEL, encoding="utf-8")
    for number in range(FILES):
        tests = range(number, TESTS, FILES)
        bodies = [ways[n // FILES % len(ways)].format(n=n) for n in tests]
        path = directory / f"test_{number}.py"
        path.write_text(HEAD + "\n".join(bodies), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Took:
    """Of one run of the suite, in seconds."""

    wall: float
    user: float
    collections: int
    """Full ones."""


def run_suite(directory: Path, url: str, *options: str) -> Took:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "POOLWATCH_"))
        and name not in ("GITHUB_ACTIONS", "PYTHONDONTWRITEBYTECODE")
    }
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "SUITE_URL": url}
    log = directory / "log.txt"
    with log.open("wb") as output:
        began = time.perf_counter()
        process = subprocess.Popen(
            [*command, *options],
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        _, status, usage = os.wait4(process.pid, 0)
        wall = time.perf_counter() - began
    process.returncode = os.waitstatus_to_exitcode(status)
    said = log.read_text(encoding="utf-8")
    assert process.returncode == 0, said
    assert f"{TESTS} passed" in said, said
    collections = said.rpartition("full collections:")[2]
    return Took(wall, usage.ru_utime, int(collections))


def fastest_quarter(times: list[float]) -> float:
    """Their mean: what a machine does that is shared slows the rest."""
    return mean(sorted(times)[: len(times) // 4])


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="tells a child's CPU time")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("database", SUITES)
def test_suite(
    benchmark: Any,
    database: str,
    tmp_path: Path,
    figure: Callable[[str], None],
    request: pytest.FixtureRequest,
) -> None:
    url, kinds = SUITES[database]
    if url is None:
        url = request.getfixturevalue("postgres").url("psycopg2")
    write_suite(tmp_path, kinds)
    ways = {
        "without": ("-p", "idle_plugin"),
        "with": ("-p", "poolwatch.testing.pytest_plugin", "--pool-leaks=error"),
    }
    took: dict[str, list[Took]] = {way: [] for way in ways}

    def one_round() -> None:
        order = list(ways) if len(took["with"]) % 2 else list(reversed(ways))
        for way in order:
            took[way].append(run_suite(tmp_path, url, *ways[way]))

    one_round()  # files come into the cache, modules get compiled
    for runs in took.values():
        runs.clear()
    benchmark.pedantic(one_round, rounds=ROUNDS)
    figure(f"{TESTS} tests, {database}, --pool-leaks=error / no plugin:")
    ours, bare = (
        {each.collections for each in took[way]} for way in ("with", "without")
    )
    figure(f"    full garbage collections: {ours} / {bare}")
    for what in ("user", "wall"):
        bare, ours = (
            [getattr(each, what) for each in took[way]] for way in ("without", "with")
        )
        quiet, quiet_bare = fastest_quarter(ours), fastest_quarter(bare)
        figure(
            f"    {what} time: minimum {min(ours):.3f} / {min(bare):.3f} s "
            f"= {min(ours) / min(bare):.3f}, "
            f"fastest quarter {quiet:.3f} / {quiet_bare:.3f} s "
            f"= {quiet / quiet_bare:.3f}, "
            f"median {median(ours):.3f} / {median(bare):.3f} s "
            f"= {median(ours) / median(bare):.3f}, median of the pairs "
            f"{median(a / b for a, b in zip(ours, bare, strict=True)):.3f}"
        )
