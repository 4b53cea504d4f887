"""Fixtures by subject, in files of their own; markers by the fixtures of a test."""

from __future__ import annotations

import signal

import own_process
import pytest

# a run in the background, as by nohup, ignores what tests send to their processes
for number, handler in (
    (signal.SIGINT, signal.default_int_handler),
    (signal.SIGHUP, signal.SIG_DFL),
):
    if signal.getsignal(number) is signal.SIG_IGN:
        signal.signal(number, handler)

pytest_plugins = [
    "pytester",
    "fix_core",
    "fix_postgres",
    "fix_pgbouncer",
    "fix_psycopg_pool",
    "fix_processes",
    "fix_suites",
]

MARKERS = {
    "postgres": "postgres",
    "second_postgres": "postgres",
    "start_postgres": "postgres",
    "start_pgbouncer": "postgres",
    "apps": "processes",
    "suites": "processes",
}
"""Marker by fixture; modules that do without the fixture have a pytestmark."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for fixture in getattr(item, "fixturenames", ()):
            if fixture in MARKERS:
                item.add_marker(MARKERS[fixture])


def pytest_pycollect_makemodule(module_path, parent):
    return own_process.collect(module_path, parent)
