"""Pools of psycopg_pool on a real server."""

from __future__ import annotations

import pytest
from fix_core import Look
from psycopg_pool import (
    AsyncConnectionPool,
    AsyncNullConnectionPool,
    ConnectionPool,
    NullConnectionPool,
)

LONG = 60.0
"""Seconds; for what is not meant to time out, however busy the machine is."""


@pytest.fixture
def pools(postgres):
    """Makes open sync pools, closed after the test."""
    made = []

    def make(kind=ConnectionPool, **settings):
        settings = {"timeout": LONG, "open": True} | settings
        if not issubclass(kind, NullConnectionPool):
            settings = {"min_size": 0, "max_size": 2} | settings
        made.append(kind(settings.pop("conninfo", postgres.dsn), **settings))
        return made[-1]

    yield make
    for pool in made:
        pool.close()


@pytest.fixture
def async_pool(postgres):
    """Makes an async pool, to be entered; made inside a running loop."""

    def make(kind=AsyncConnectionPool, **settings):
        settings = {"timeout": LONG, "open": False} | settings
        if not issubclass(kind, AsyncNullConnectionPool):
            settings = {"min_size": 0, "max_size": 2} | settings
        return kind(settings.pop("conninfo", postgres.dsn), **settings)

    return make


def finding(kind):
    (found,) = [each for each in Look().process.findings if each.kind == kind]
    return found
