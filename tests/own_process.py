"""Runs a test file in a process of its own, and reports it as one test.

A search for references is bounded, and sees less of a large heap: in a worker that has
run a thousand other tests, a verdict may be "not known".
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
ALONE = {
    "adapters/test_adoption.py",
    "adapters/test_asyncpg_pool.py",
    "adapters/test_django.py",
    "adapters/test_orphaned.py",
    "agent/test_circumstances.py",
    "agent/test_incident_snapshots.py",
    "agent/test_leak_search.py",
    "agent/test_races.py",
    "agent/test_standstills.py",
    "agent/test_watchdog.py",
    "stacks/test_callers.py",
}
"""Files whose tests wait for the verdict of a search, besides those of the search."""


def collect(path: Path, parent: pytest.Collector) -> pytest.File | None:
    """Collect a file of ``ALONE`` as one test; as usual in a run of such files only."""
    arguments = parent.config.args
    given = [Path(each.partition("::")[0]).absolute() for each in arguments]
    if not _is_alone(path) or all(map(_is_alone, given)):
        return None
    file: Any = FileOfItsOwn.from_parent(parent, path=path)
    return file


def _is_alone(path: Path) -> bool:
    if not path.is_relative_to(HERE):
        return False
    name = path.relative_to(HERE).as_posix()
    return name in ALONE or name.startswith("diagnosis/references")


class FileOfItsOwn(pytest.File):
    def collect(self):
        yield Run.from_parent(self, name="in_a_process_of_its_own")


class Run(pytest.Item):
    def runtest(self):
        done = subprocess.run(
            [sys.executable, "-m", "pytest", str(self.path), "-q"],
            cwd=self.config.rootpath,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-8000:]
