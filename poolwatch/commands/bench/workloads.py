"""What is done with a connection: almost nothing, or one document of an ETL."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from poolwatch.commands.bench.ways import Lend

TABLE = "poolwatch_bench"
CREATE = f"""
CREATE UNLOGGED TABLE IF NOT EXISTS {TABLE} (
  id integer PRIMARY KEY, title text NOT NULL, body jsonb NOT NULL
)"""
DROP = f"DROP TABLE IF EXISTS {TABLE}"
_UPSERT = (
    f"INSERT INTO {TABLE} (id, title, body) VALUES (%s, %s, %s) "  # noqa: S608 - our own name
    "ON CONFLICT (id) DO UPDATE SET title = EXCLUDED.title, body = EXCLUDED.body"
)


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload: what an operation is, and how many there are."""

    name: str
    operations: int
    run: Callable[[Lend, int], None]
    """Do so many operations."""


def _checkouts(lend: Lend, operations: int) -> None:
    for _ in range(operations):
        with lend() as connection:
            _execute(connection, "SELECT 1", ())
            connection.rollback()


def _documents(lend: Lend, operations: int) -> None:
    """Each document takes its connection by itself, as the textbook mistake does."""
    for number in range(operations):
        body = json.dumps({"number": number, "words": ["pool"] * 20})
        with lend() as connection:
            _execute(connection, _UPSERT, (number, f"document {number}", body))
            connection.commit()


def _execute(connection: Any, statement: str, values: tuple[Any, ...]) -> None:
    cursor = connection.cursor()
    try:
        cursor.execute(statement, values)
    finally:
        cursor.close()


def workloads(operations: int) -> tuple[Workload, ...]:
    """Both, with that many operations each."""
    return (
        Workload("take a connection, SELECT 1", operations, _checkouts),
        Workload(f"ETL of {operations:,} documents", operations, _documents),
    )
