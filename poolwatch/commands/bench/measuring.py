"""Runs each workload in each way, in alternating slices, so noise affects all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import URL, create_engine, text

from poolwatch.commands.bench.cases import CREATE, DROP, POOLED, Way, Workload

SLICES = 20
SLICES_WITH_DELAY = 3
"""With a network's delay, creating a pool takes longer and noise matters less."""
WARM_UP = 2
"""Operations before the measurement, which open a pool's first connection."""


@dataclass(frozen=True, slots=True)
class Row:
    """The result of one workload in one way."""

    workload: str
    way: str
    operations: int
    seconds: float
    per_operation_ms: float
    ratio: float
    """The row's seconds over those of SQLAlchemy's pool in the same workload."""


def measure(
    url: URL,
    workloads: Sequence[Workload],
    ways: Sequence[Way],
    advance: Callable[[str], None],
    slices: int = SLICES,
) -> list[Row]:
    """Measure all cases; ``advance`` is called with the name of each slice's case.

    Raises SQLAlchemyError or the driver's error if the database cannot be used.
    """
    engine = create_engine(url)
    try:
        with engine.begin() as connection:
            connection.execute(text(CREATE))
        rows = []
        for workload in workloads:
            rows += _measure_workload(url, workload, ways, advance, slices)
        return rows
    finally:
        with engine.begin() as connection:
            connection.execute(text(DROP))
        engine.dispose()


def _measure_workload(
    url: URL,
    workload: Workload,
    ways: Sequence[Way],
    advance: Callable[[str], None],
    slices: int,
) -> list[Row]:
    seconds = dict.fromkeys(ways, 0.0)
    share = max(1, workload.operations // slices)
    for _ in range(slices):
        for way in ways:
            advance(f"{workload.name}: {way.name}")
            # a new pool per slice: its backend's core can make a factor of 3
            with way.open(url) as connect:
                workload.run(connect, WARM_UP)
                began = time.perf_counter()
                workload.run(connect, share)
                seconds[way] += time.perf_counter() - began
    done = share * slices
    return [
        Row(
            workload=workload.name,
            way=way.name,
            operations=done,
            seconds=round(spent, 6),
            per_operation_ms=round(spent / done * 1e3, 4),
            ratio=round(spent / seconds[POOLED], 3),
        )
        for way, spent in seconds.items()
    ]
