"""What happened, in SQLite or PostgreSQL."""
