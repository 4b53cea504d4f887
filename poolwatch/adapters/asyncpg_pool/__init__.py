"""asyncpg's pool."""
