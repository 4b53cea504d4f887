"""Files whose tests wait for the verdict of a search run in a process of their own."""

from __future__ import annotations

from pathlib import Path

import own_process

ALONE = {
    "test_circumstances.py",
    "test_races.py",
    "test_standstills.py",
    "test_watchdog.py",
}
HERE = Path(__file__).parent


def pytest_pycollect_makemodule(module_path, parent):
    if module_path.name not in ALONE or module_path.parent != HERE:
        return None
    return own_process.collect(module_path, parent, lambda path: path.name in ALONE)
