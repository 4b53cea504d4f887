"""Suites that use the pools of drivers, without SQLAlchemy."""

from __future__ import annotations

POOLS = """
    import asyncio, os
    import asyncpg, psycopg_pool, pytest
    from psycopg2.pool import ThreadedConnectionPool

    DSN = os.environ["SUITE_DSN"]
    kept = []

    @pytest.fixture(scope="session")
    def two():
        pool = ThreadedConnectionPool(0, 10, DSN)
        yield pool
        pool.closeall()

    @pytest.fixture(scope="session")
    def three():
        with psycopg_pool.ConnectionPool(DSN, min_size=1, max_size=10) as pool:
            yield pool

    def test_psycopg2_leaks(two):
        kept.append(two.getconn())  # here

    def test_psycopg2_leaks_by_dropping(two):
        two.getconn().cursor().execute("select 1")  # here

    def test_psycopg2_fine(two):
        connection = two.getconn()
        two.putconn(connection)

    def test_psycopg_leaks(three):
        kept.append(three.getconn())  # here

    def test_psycopg_leaks_by_dropping(three):
        three.getconn().execute("select 1")  # here

    def test_psycopg_fine(three):
        with three.connection() as connection:
            connection.execute("select 1")

    async def test_asyncpg_leaks():
        pool = await asyncpg.create_pool(DSN, min_size=1, max_size=2)
        connection = await pool.acquire()  # here
        kept.append(connection)

    async def test_asyncpg_fine():
        async with asyncpg.create_pool(DSN, min_size=1, max_size=2) as pool:
            async with pool.acquire() as connection:
                await connection.execute("select 1")
"""


def test_each_is_blamed_on_its_test(suites, postgres, monkeypatch):
    """Whatever the library is; each at the line that took it, and nobody else."""
    monkeypatch.setenv("SUITE_DSN", postgres.dsn)
    suites.write("test_pools", POOLS, plain=True)
    ran = suites.run("-W", "ignore")
    ran.accuses_the_right_ones()
    assert len(ran.leaks) == 5
    assert ran.passed == [
        "test_asyncpg_fine",
        "test_asyncpg_leaks",
        "test_psycopg2_fine",
        "test_psycopg2_leaks",
        "test_psycopg2_leaks_by_dropping",
        "test_psycopg_fine",
        "test_psycopg_leaks",
        "test_psycopg_leaks_by_dropping",
    ]
