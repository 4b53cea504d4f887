"""What the programs of the zoo have in common: a database and a statement that lasts.

``pg_sleep`` exists in the SQLite files of the zoo, too. There it is ``time.sleep``
itself, without a Python frame: a thread in it is in SQL and nowhere else.
"""

from __future__ import annotations

from sqlalchemy import text

QUERY = text("SELECT pg_sleep(0.05)")
"""An ordinary statement."""

PING = text("SELECT 1")

ROWS = text(
    "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 100000)"
    " SELECT i, pg_sleep(0.01) FROM n"
)
"""Comes row by row, as long as anybody reads."""

SCHEMA = (
    "CREATE TABLE accounts (id integer PRIMARY KEY, owner text, balance integer)",
    """
    CREATE TABLE entries (
        id integer PRIMARY KEY, account_id integer REFERENCES accounts, amount integer
    )
    """,
    """
    INSERT INTO accounts
    VALUES (1, 'ada', 100), (2, 'bob', 100), (3, 'cay', 100), (4, 'dan', 100)
    """,
    "INSERT INTO entries VALUES (1, 1, 60), (2, 1, 40), (3, 2, 100), (4, 3, 100)",
)
