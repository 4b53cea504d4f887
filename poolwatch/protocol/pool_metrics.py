"""OpenTelemetry's nine metrics of connection pools, from the figures of a pool.

https://opentelemetry.io/docs/specs/semconv/db/database-metrics/
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Literal, NamedTuple

from poolwatch.model import Distribution, PoolStats

POOL_NAME = "db.client.connection.pool.name"
STATE = "db.client.connection.state"
_PREFIX = "db.client.connection."

Points = Iterator[tuple[dict[str, str], int | Distribution]]
"""Values with the attributes they have besides the name of their pool."""


class Instrument(NamedTuple):
    """One metric."""

    name: str
    kind: Literal["updowncounter", "counter", "histogram"]
    unit: str
    description: str
    points: Callable[[PoolStats], Points]
    """None where the pool has no such number, as the maximum of an unlimited one."""


def _count(pool: PoolStats) -> Points:
    yield {STATE: "used"}, pool.checked_out
    if pool.idle is not None:
        yield {STATE: "idle"}, pool.idle


def _idle_max(pool: PoolStats) -> Points:
    if pool.size is not None:
        yield {}, pool.size


def _idle_min(pool: PoolStats) -> Points:
    if pool.size is not None:
        yield {}, 0


def _max(pool: PoolStats) -> Points:
    if pool.slots is not None:
        yield {}, pool.slots


def _pending(pool: PoolStats) -> Points:
    yield {}, pool.waiting


def _timeouts(pool: PoolStats) -> Points:
    yield {}, pool.counters.timeouts


def _create_time(pool: PoolStats) -> Points:
    yield {}, pool.create_s


def _wait_time(pool: PoolStats) -> Points:
    if pool.served_s is not None:
        yield {}, pool.served_s


def _use_time(pool: PoolStats) -> Points:
    yield {}, pool.hold_s


INSTRUMENTS = (
    Instrument(
        f"{_PREFIX}count",
        "updowncounter",
        "{connection}",
        "Connections that are in the state described by the state attribute.",
        _count,
    ),
    Instrument(
        f"{_PREFIX}idle.max",
        "updowncounter",
        "{connection}",
        "The maximum number of idle open connections allowed.",
        _idle_max,
    ),
    Instrument(
        f"{_PREFIX}idle.min",
        "updowncounter",
        "{connection}",
        "The minimum number of idle open connections allowed.",
        _idle_min,
    ),
    Instrument(
        f"{_PREFIX}max",
        "updowncounter",
        "{connection}",
        "The maximum number of open connections allowed.",
        _max,
    ),
    Instrument(
        f"{_PREFIX}pending_requests",
        "updowncounter",
        "{request}",
        "Current pending requests for an open connection.",
        _pending,
    ),
    Instrument(
        f"{_PREFIX}timeouts",
        "counter",
        "{timeout}",
        "Connection requests that timed out.",
        _timeouts,
    ),
    Instrument(
        f"{_PREFIX}create_time",
        "histogram",
        "s",
        "The time it took to create a new connection.",
        _create_time,
    ),
    Instrument(
        f"{_PREFIX}wait_time",
        "histogram",
        "s",
        "The time it took to obtain an open connection from the pool.",
        _wait_time,
    ),
    Instrument(
        f"{_PREFIX}use_time",
        "histogram",
        "s",
        "The time between borrowing a connection and returning it to the pool.",
        _use_time,
    ),
)
