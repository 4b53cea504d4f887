"""Reads ``pg_stat_activity``, from the application or from the viewer."""
