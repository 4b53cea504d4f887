"""Fixtures by subject, in files of their own."""

pytest_plugins = [
    "pytester",
    "fix_core",
    "fix_postgres",
    "fix_psycopg_pool",
    "fix_processes",
    "fix_suites",
]
