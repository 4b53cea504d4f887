"""Histories in both databases, and looks at made-up processes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from sqlalchemy import Engine

from poolwatch.sidecar.history.store import open_store
from poolwatch.sidecar.history.writing import HistoryWriter

_numbers = itertools.count()


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.postgres)])
def url(request, tmp_path) -> str:
    """The URL of a history that does not exist yet."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path}/history.db"
    server = request.getfixturevalue("postgres")
    name = f"history_{next(_numbers)}"
    server.execute(f"CREATE DATABASE {name}")
    return server.url().replace("/postgres?", f"/{name}?")


@pytest.fixture
def writer(url) -> Iterator[Callable[..., HistoryWriter]]:
    """Makes writers without a thread; the tests call write()."""
    made: list[HistoryWriter] = []

    def make(**changes: Any) -> HistoryWriter:
        options = {"keep_s": 7 * 86400, "keep_bytes": 1 << 30, "hosts": {"web-1"}}
        made.append(HistoryWriter(url, **{**options, "threaded": False, **changes}))
        return made[-1]

    yield make
    for each in made:
        each.close()


@pytest.fixture
def reader(url) -> Iterator[Callable[[], Engine]]:
    """Opens the history for reading."""
    engines: list[Engine] = []

    def make() -> Engine:
        engines.append(open_store(url, write=False))
        return engines[-1]

    yield make
    for engine in engines:
        engine.dispose()
