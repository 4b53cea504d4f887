"""``poolwatch demo``: PostgreSQL, a small real app with real faults, the dashboard."""
