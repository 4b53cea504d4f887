"""Fixtures by subject, in files of their own."""

pytest_plugins = ["fix_core", "fix_postgres", "fix_processes"]
