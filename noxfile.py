"""The matrix: the built wheel on every Python, with the oldest and newest libraries.

    nox                         the combinations this machine has an interpreter for
    nox -l                      lists them
    nox -p 3.13                 those of one interpreter
    nox -s "tests(oldest)"      one of them
    nox -- tests                the whole suite instead of the rooms that meet libraries
    nox -s table                the table of what has run

The oldest libraries are the minimum versions of pyproject.toml, whatever they are.
PostgreSQL comes from its wheel, or from the programs on this machine: those that
POOLWATCH_TEST_POSTGRES names, on PATH, or Debian's.
"""

from __future__ import annotations

import json
import os
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from pathlib import Path

import nox

HERE = Path(__file__).parent
RESULTS = HERE / ".nox" / "results"
ROOMS = ["tests/adapters", "tests/ledger", "tests/agent", "tests/postgres"]
"""What meets interpreters, SQLAlchemy, drivers and servers."""

NEWEST: list[str] = []
OLDEST = ["--resolution", "lowest-direct"]
OWN = "the machine's"
"""The server of this machine, with TLS."""

COMBINATIONS = {
    "oldest": ("3.11", OLDEST, "16"),
    "3.11": ("3.11", NEWEST, "18"),
    "3.12": ("3.12", NEWEST, "18"),
    "3.13": ("3.13", NEWEST, "18"),
    "3.14": ("3.14", NEWEST, "18"),
    "3.15": ("3.15", NEWEST, OWN),
    "sqlalchemy-2.0": ("3.13", ["SQLAlchemy<2.1"], OWN),
    "sqlalchemy-2.0.36": ("3.12", ["SQLAlchemy==2.0.36"], "18"),
}
"""By name: the interpreter, what is asked of the libraries, the server."""

SHOWN = [
    "SQLAlchemy",
    "psycopg2-binary",
    "psycopg",
    "psycopg-pool",
    "asyncpg",
    "textual",
]
_VERSIONS = f"""
import importlib.metadata as m, json, platform, poolwatch
assert "site-packages" in poolwatch.__file__, poolwatch.__file__
found = {{d.metadata["Name"].lower(): d.version for d in m.distributions()}}
shown = [found.get(name.lower()) for name in {SHOWN}]
print(json.dumps([platform.python_version(), *shown]))
"""

nox.options.default_venv_backend = "uv"
nox.options.sessions = ["tests", "table"]


@nox.session
@nox.parametrize(
    "python,libraries,server", list(COMBINATIONS.values()), ids=list(COMBINATIONS)
)
def tests(session: nox.Session, libraries: list[str], server: str) -> None:
    """Run the tests on the wheel, away from the tree."""
    name = session.name.partition("(")[2].rstrip(")")
    for old in RESULTS.glob(f"{name}.*"):
        old.unlink()
    postgres = _own_postgres() if server == OWN else server
    if postgres is None:
        session.skip("no PostgreSQL here: set POOLWATCH_TEST_POSTGRES")
    # the wheel's minimum versions count as direct only where they are read from here
    session.install(
        "--compile-bytecode", "-r", "pyproject.toml", "--extra", "test", *libraries
    )
    place = Path(session.create_tmp())
    session.install("--no-deps", _wheel(session, place / "wheel"))
    shutil.rmtree(place / "tests", ignore_errors=True)
    shutil.copytree(HERE / "tests", place / "tests")
    for file in ("pyproject.toml", "README.md"):
        shutil.copy(HERE / file, place)
    session.chdir(place)
    RESULTS.mkdir(parents=True, exist_ok=True)
    versions = json.loads(session.run("python", "-c", _VERSIONS, silent=True))
    if server == OWN:
        initdb = session.run(
            f"{postgres}/initdb", "--version", silent=True, external=True
        )
        server = f"{initdb.split()[2]}, TLS"
    (RESULTS / f"{name}.json").write_text(json.dumps([*versions, server]))
    report = f"--junitxml={RESULTS}/{name}.xml"
    session.run(
        *("pytest", "-n", "auto", "--dist", "worksteal", report),
        *(session.posargs or ROOMS),
        env={"POOLWATCH_TEST_POSTGRES": postgres},
    )


def _wheel(session: nox.Session, into: Path) -> str:
    shutil.rmtree(into, ignore_errors=True)
    session.run("uv", "build", "-q", "--wheel", "-o", str(into), str(HERE))
    return str(next(into.glob("*.whl")))


def _own_postgres() -> str | None:
    """Where the programs of this machine's PostgreSQL are."""
    given = os.environ.get("POOLWATCH_TEST_POSTGRES")
    on_path = shutil.which("initdb")
    debian = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin/initdb")))
    for program in filter(None, [given and f"{given}/initdb", *debian[-1:], on_path]):
        return str(Path(program).parent)
    return None


@nox.session(python=False)
def table(session: nox.Session) -> None:
    """Print what has run, as Markdown."""
    if not RESULTS.exists():
        session.error("nothing has run yet")
    heads = [
        "combination",
        "Python",
        *SHOWN,
        "PostgreSQL",
        "passed",
        "failed",
        "skipped",
    ]
    print("|", " | ".join(heads), "|")
    print("|---" * len(heads) + "|")
    for name, (python, _, _) in COMBINATIONS.items():
        cells = _result(name) or [f"{python}: not run", *[""] * (len(heads) - 2)]
        print("|", " | ".join([f"`{name}`", *map(str, cells)]), "|")


def _result(name: str) -> list[object] | None:
    """Versions and counts of a combination that has run to its end."""
    report = RESULTS / f"{name}.xml"
    if not report.exists():
        return None
    cases = list(ET.parse(report).iter("testcase"))  # noqa: S314 - our own
    reasons = Counter(
        each.get("message", "") for case in cases for each in case.iter("skipped")
    )
    failed = sum(
        case.find("failure") is not None or case.find("error") is not None
        for case in cases
    )
    skipped = reasons.total()
    told = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
    versions = json.loads((RESULTS / f"{name}.json").read_text())
    return [
        *versions,
        len(cases) - failed - skipped,
        failed,
        f"{skipped}: {told}" if told else 0,
    ]
