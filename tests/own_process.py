"""Runs a test file in a process of its own, and reports it as one test.

A search for references is bounded, and sees less of a large heap: in a worker that has
run a thousand other tests, a verdict may be "not known".
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


def collect(
    module_path: Path, parent: pytest.Collector, is_small: Callable[[Path], bool]
) -> pytest.File | None:
    """Collect a file as one test; as usual in a run of such files only.

    ``is_small`` says of a path on the command line whether it is such a file.
    """
    paths = [Path(each.partition("::")[0]).absolute() for each in parent.config.args]
    if all(map(is_small, paths)):
        return None
    file: Any = FileOfItsOwn.from_parent(parent, path=module_path)
    return file


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
