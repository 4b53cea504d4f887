"""What ``--pool-leaks=error`` adds to a suite of 1,000 small database tests.

    python -m pytest tests/benchmarks/test_plugin_cost.py --benchmark-only

The suite runs in three processes at once, in turns of a tenth of a second: without the
plugin, with it, and without it again, which tells how far the figures can be trusted.
No other plugin is loaded: the least time for what is added to be compared with.
"Without" has a plugin that does nothing: for each ``-p`` pytest goes through all
distributions that are installed, which nobody does for ours, as pytest finds it by
itself.

Two more suites make an engine for each test, on a database in memory or on a file.

Full garbage collections are counted: there are one or two, each takes as long as a
dozen tests, and whether one more falls into a run is chance. So both is said: what the
suite took, and what it took without them.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from statistics import mean, median, stdev
from typing import Any

import psycopg2
import pytest
from in_turns import Run, Took, in_turns

pytestmark = [pytest.mark.slow, pytest.mark.processes]

TESTS = 1000
FILES = 10
ROUNDS = 20

CONFTEST = """
import gc
import os
import time

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


full = []


def note_full(phase, info):
    if info["generation"] == 2:
        full.append(time.process_time())  # it may have to wait for its turn


gc.callbacks.append(note_full)


def pytest_unconfigure():
    spent = sum(full[1::2]) - sum(full[::2])
    print(f"full collections: {len(full) // 2} in {spent:.6f} s")


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


def run_of(directory: Path, url: str, ways: Sequence[str], *options: str) -> Run:
    """The suite in a directory of its own."""
    directory.mkdir()
    write_suite(directory, ways)
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTEST_", "POOLWATCH_"))
        and name not in ("GITHUB_ACTIONS", "PYTHONDONTWRITEBYTECODE")
    }
    environment |= {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "SUITE_URL": url}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    return Run([*command, *options], directory, environment)


def full_collections(run: Run) -> tuple[int, float]:
    """How many there were, and how many seconds they took; all tests have passed."""
    said = run.log.read_text(encoding="utf-8")
    assert f"{TESTS} passed" in said, said
    found = re.search(r"full collections: (\d+) in ([\d.]+) s", said)
    assert found, said
    return int(found[1]), float(found[2])


def added(pairs: Sequence[tuple[float, float]]) -> str:
    """What the second of each pair takes more than the first."""
    ratios = [with_it / without for without, with_it in pairs]
    error = stdev(ratios) / len(ratios) ** 0.5
    return (
        f"{median(ratios) - 1:+.1%} median of the rounds, "
        f"{mean(ratios) - 1:+.1%} +- {error:.1%} mean"
    )


WAYS: Mapping[str, Sequence[str]] = {
    "without": ("-p", "idle_plugin"),
    "with": ("-p", "poolwatch.testing.pytest_plugin", "--pool-leaks=error"),
    "again": ("-p", "idle_plugin"),
}


@pytest.mark.skipif(not hasattr(os, "wait4"), reason="stops processes, as POSIX can")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("database", SUITES)
def test_suite(
    benchmark: Any,
    database: str,
    tmp_path: Path,
    figure: Callable[[str], None],
    request: pytest.FixtureRequest,
) -> None:
    url, kinds = SUITES[database]
    runs = {}
    for way, options in WAYS.items():
        own = url or database_for(way, request.getfixturevalue("postgres"))
        runs[way] = run_of(tmp_path / way, own, kinds, *options)
    walls: list[dict[str, float]] = []
    cpus: list[dict[str, float]] = []
    but_full: list[dict[str, float]] = []
    counts: dict[str, set[int]] = {way: set() for way in WAYS}

    def one_round() -> None:
        took: dict[str, Took] = in_turns(runs)
        full = {way: full_collections(run) for way, run in runs.items()}
        for way, (count, _) in full.items():
            counts[way].add(count)
        walls.append({way: each.wall for way, each in took.items()})
        cpus.append({way: each.cpu for way, each in took.items()})
        but_full.append({way: took[way].wall - full[way][1] for way in WAYS})

    one_round()  # files come into the cache, modules get compiled
    for each in (walls, cpus, but_full, *counts.values()):
        each.clear()
    benchmark.pedantic(one_round, rounds=ROUNDS)
    figure(f"{TESTS} tests, {database}: what --pool-leaks=error adds")
    measured = {"wall": walls, "CPU": cpus, "wall without full collections": but_full}
    for what, rounds in measured.items():
        least = min(each["without"] for each in rounds)
        most = max(each["without"] for each in rounds)
        figure(
            f"    {what} ({least:.2f} to {most:.2f} s): "
            f"{added([(each['without'], each['with']) for each in rounds])}; "
            "of nothing at all: "
            f"{added([(each['without'], each['again']) for each in rounds])}"
        )
    figure(
        f"    full collections with it: {counts['with']}, without: {counts['without']}"
    )


def database_for(way: str, server: Any) -> str:
    """Two that insert the same row would wait for each other."""
    database = f"suite_{way}"
    with closing(psycopg2.connect(server.dsn)) as connection:
        connection.autocommit = True
        with connection.cursor() as cursor:
            cursor.execute(f"CREATE DATABASE {database}")
    return str(replace(server, database=database).url("psycopg2"))
