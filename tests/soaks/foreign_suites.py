"""Tests of the pools' own projects, with and without poolwatch: no result differs.

    python tests/soaks/foreign_suites.py TREE [PYTEST-ARGUMENT ...]

TREE is a source tree of SQLAlchemy or of psycopg, as from Git or an sdist. Its tests
are run in it twice, the second time with every pool instrumented; without arguments
these are the tests of engines, pools and asyncio, or those of psycopg_pool. Prints each
test whose result differs, and exits with 1 then. A test that differs is run again both
ways, because some depend on time.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree as ET

TESTS = Path(__file__).parent.parent
SUITES = {
    "lib/sqlalchemy": [
        ["test/engine", "test/base/test_events.py"],
        ["test/ext/asyncio", "--dburi", "sqlite+aiosqlite:///:memory:"],
    ],
    "tests/pool": [["tests/pool"]],
}
MODULES = {"lib/sqlalchemy": ["lib"], "tests/pool": ["psycopg_pool"]}

_BAD = ("failure", "error", "skipped")
Results = dict[str, str]


def run(tree: Path, arguments: list[str], *, watched: bool) -> Results:
    """Outcome of each test by its name."""
    kind = next(each for each in SUITES if (tree / each).exists())
    paths = [tree / each for each in MODULES[kind]]
    paths += [TESTS / "soaks", TESTS.parent]
    plugins = [
        "pool_leaks",
        "asyncio",
        "randomly",
        "rerunfailures",
        "benchmark",
    ]
    with tempfile.TemporaryDirectory(prefix="pw", dir="/tmp") as directory:
        report = Path(directory) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--maxfail=100000"]
        for each in plugins:
            command += ["-p", f"no:{each}"]
        if watched:
            command += ["-p", "with_poolwatch"]
        done = subprocess.run(
            [*command, f"--junitxml={report}", *arguments],
            cwd=tree,
            check=False,
            capture_output=True,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join(map(str, paths)),
                "POOLWATCH_DIR": directory,
                "PYTHONDONTWRITEBYTECODE": "1",
            },
        )
        if not report.exists():
            raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
        said = [each for each in done.stdout.splitlines() if "has seen" in each]
        print(*said, sep="\n")
        cases = ET.parse(report).iter("testcase")
        return {
            f"{case.get('classname')}::{case.get('name')}": _outcome(case)
            for case in cases
        }


def _outcome(case: ET.Element) -> str:
    tags = [each.tag for each in case]
    return next((each for each in _BAD if each in tags), "passed")


def differences(bare: Results, watched: Results) -> dict[str, tuple[str, str]]:
    names = sorted(bare.keys() | watched.keys())
    pairs = {name: (bare.get(name, "-"), watched.get(name, "-")) for name in names}
    return {name: pair for name, pair in pairs.items() if pair[0] != pair[1]}


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__)
        return 2
    tree = Path(sys.argv[1]).resolve()
    kinds = [each for each in SUITES if (tree / each).exists()]
    if not kinds:
        print(f"{tree} has neither {' nor '.join(SUITES)}", file=sys.stderr)
        return 2
    found = 0
    for arguments in [sys.argv[2:]] if sys.argv[2:] else SUITES[kinds[0]]:
        bare = run(tree, arguments, watched=False)
        watched = run(tree, arguments, watched=True)
        different = differences(bare, watched)
        if different:
            again = differences(
                run(tree, arguments, watched=False), run(tree, arguments, watched=True)
            )
            print(*(f"  once only: {name}" for name in different.keys() - again.keys()))
            different = {name: different[name] for name in different if name in again}
        print(" ".join(arguments))
        print(f"  without: {dict(Counter(bare.values()))}")
        print(f"  with:    {dict(Counter(watched.values()))}")
        for name, (without, with_it) in different.items():
            print(f"  {name}: {without}, with poolwatch {with_it}")
        found += len(different)
    print(f"{found} results differ")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
