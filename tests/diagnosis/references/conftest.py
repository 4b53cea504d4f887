"""A search for references is bounded, and sees less of a large heap.

So each file here is run in a process of its own. ``pytest tests/diagnosis/references``
is such a process, and so is one for a single file or test; a run of more tests starts
one for each file, and reports it as one test.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


def pytest_pycollect_makemodule(module_path, parent):
    if not _is_a_run_of_these_tests_only(parent.config):
        return FileOfItsOwn.from_parent(parent, path=module_path)
    return None  # collected as usual


def _is_a_run_of_these_tests_only(config):
    paths = [Path(each.partition("::")[0]).absolute() for each in config.args]
    return all(path.is_relative_to(HERE) for path in paths)


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
