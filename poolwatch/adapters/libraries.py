"""The pool libraries that are known: a closed table, which loads none of them."""

LIBRARIES = {
    "sqlalchemy": "sqlalchemy.engines:Engines",
    "psycopg2.pool": "psycopg2_pool.pools:Psycopg2Pools",
    "psycopg_pool": "psycopg3.pools:PsycopgPools",
    "asyncpg": "asyncpg_pool.pools:AsyncpgPools",
}
"""By the module that is loaded when the application uses the library: the adapter."""

TAKES = (
    "a SQLAlchemy Engine, AsyncEngine or Pool, a psycopg2 pool, a psycopg_pool pool or "
    "an asyncpg pool, or no argument for all of them"
)
"""What can be instrumented, in words."""
