"""psycopg_pool's pools, sync and async."""
