"""Reads ``pg_stat_activity``: from inside the application, and from the viewer."""
