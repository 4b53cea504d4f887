"""Fixtures by subject, in files of their own."""

import os

# A look at references is bounded, and sees less of a large heap: these tests need a
# process of their own, which tests/test_keepers.py gives them.
collect_ignore = [] if os.environ.get("POOLWATCH_FRESH_PROCESS") else ["keeping"]

pytest_plugins = [
    "pytester",
    "fix_core",
    "fix_postgres",
    "fix_psycopg_pool",
    "fix_processes",
    "fix_suites",
]
