"""A store of the history in both dialects, and what it can be filled with."""

from __future__ import annotations

import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, insert

sys.path.insert(0, str(Path(__file__).parents[3]))  # tests/fakes.py

from poolwatch.model import Process, Snapshot
from poolwatch.protocol import document
from poolwatch.sidecar.history import partitions, schema
from poolwatch.sidecar.history.store import open_store


class Filled:
    """A store, and methods that write rows as a sidecar does."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.engine: Engine = open_store(url, write=True)

    def add(self, table: Any, *rows: dict[str, Any]) -> None:
        with self.engine.begin() as connection:
            if table in schema.BY_DAY and connection.dialect.name == "postgresql":
                days = (row.get("at", row.get("minute")) for row in rows)
                partitions.make(connection, map(partitions.day_of, days))
            connection.execute(insert(table), list(rows))

    def process(self, process: Process, started_at: float, seen_at: float) -> int:
        """A process that was last seen at ``seen_at``; returns its id."""
        key = schema.identifier(process.host, process.pid, started_at)
        row = {
            "id": key,
            "host": process.host,
            "pid": process.pid,
            "started_at": started_at,
            "program": process.program,
            "name": process.name,
            "python": process.python,
            "poolwatch": process.poolwatch,
            "last_seen_at": seen_at,
        }
        self.add(schema.processes, row)
        return key

    def snapshot(
        self, key: int, at: float, process: Process, incident: str | None = None
    ) -> None:
        text = document.to_json(Snapshot((process,)), viewers=True)
        row = {
            "at": at,
            "process_id": key,
            "newest": incident is None,
            "incident_id": incident,
            "document": zlib.compress(text.encode()),
        }
        self.add(schema.snapshots, row)

    def incident(self, key: int, started_at: float, **changes: Any) -> str:
        row: dict[str, Any] = {
            "id": f"i{started_at}-{key}",
            "process_id": key,
            "pool": "orders",
            "kind": "exhausted",
            "severity": "critical",
            "started_at": started_at,
            "last_seen_at": started_at + 10,
            "ended_at": started_at + 10,
            "process": "orders-api",
            "text": 'pool "orders" is exhausted: 10/10 out, 3 waiting',
            "proof": "nothing is free and requests wait",
            "remedy": "return the connection before the slow call",
            "sites": [{"file": "/srv/repo.py", "line": 55, "function": "load"}],
            "identity": 1,
            **changes,
        }
        self.add(schema.incidents, row)
        return str(row["id"])

    def pool(self, process: int, name: str = "orders") -> int:
        key = schema.identifier(process, name)
        row = {"id": key, "process_id": process, "pool": name, "name": name}
        self.add(schema.pools, {**row, "kind": "QueuePool", "size": 5})
        return key


@pytest.fixture
def sqlite_store(tmp_path: Path) -> Iterator[Filled]:
    store = Filled(f"sqlite:///{tmp_path}/history.db")
    yield store
    store.engine.dispose()


@pytest.fixture
def postgres_store(postgres: Any) -> Iterator[Filled]:
    postgres.execute("create database kept")
    url = postgres.url().replace("/postgres?", "/kept?")
    store = Filled(url)
    yield store
    store.engine.dispose()
    postgres.execute("drop database kept with (force)")


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def store(request: pytest.FixtureRequest) -> Filled:
    """Each test runs on both dialects."""
    filled: Filled = request.getfixturevalue(f"{request.param}_store")
    return filled


@pytest.fixture
def poolwatch(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> Callable[..., Any]:
    """``poolwatch("ps", "--json")``: exit code, standard output and error."""
    from poolwatch.commands.main import main

    for name in ("HISTORY", "DSN", "DIR"):
        monkeypatch.delenv(f"POOLWATCH_{name}", raising=False)

    def run(*arguments: str) -> tuple[int, str, str]:
        code = main(arguments)
        return code, *capsys.readouterr()

    return run
