"""Terms that all records share: verdicts, kinds of findings, frames, distributions."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

OWN_NAME = "poolwatch"
"""The application_name of the connections that poolwatch opens."""
SCHEMA = 1
"""Version of the snapshot document."""
VIEWERS_ONLY = {"viewers_only": True}
"""Field metadata: passed between poolwatch's own programs, not in the document."""
IN_HISTORY = {**VIEWERS_ONLY, "in_history": True}
"""Likewise, but in the document of a history (``ps --history``)."""
Verdict = Literal["ok", "long", "leaked"]
FindingKind = Literal[
    "leaked.collected", "leaked.orphaned", "leaked.abandoned", "long_hold",
    "held_across_io", "idle_in_transaction", "lock_wait", "slow_query", "exhausted",
    "nested", "pool_deadlock", "undersized", "ghost", "dirty_return", "lost_slot",
    "concurrent_use", "stray_session", "server_down", "fork_shared", "pool_churn",
    "unpooled", "over_capacity", "duplicate_pool", "unreachable",
]  # fmt: skip
"""All kinds of findings; documents of newer versions may have further ones."""
Severity = Literal["info", "warning", "critical"]
SEVERITIES: tuple[Severity, ...] = get_args(Severity)
"""The mildest first."""


def severity_rank(severity: Severity) -> int:
    """Sorts by severity: 0 for the most severe, 1 for the next."""
    return len(SEVERITIES) - 1 - SEVERITIES.index(severity)


class Frame(NamedTuple):
    """One line of a stack: where a function was, not the interpreter's frame object."""

    file: str
    """Path as the interpreter knows it (``co_filename``)."""
    line: int
    function: str


OTHER_SITES = Frame("(other call sites)", 0, "")
"""Stands for all call sites beyond the limit of a pool."""
OTHER_VALUES = "(other values)"
"""Stands for all values of a label beyond the limit of a pool."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """The summary of a histogram. All but ``count`` in seconds."""

    count: int
    sum: float
    max: float | None
    p50: float | None
    p95: float | None
    p99: float | None
    up_to: tuple[int, ...] = field(default=(), metadata=VIEWERS_ONLY)
    """How many lasted up to each of ``BUCKETS``; empty without samples, or unknown."""

    @property
    def in_buckets(self) -> tuple[int, ...] | None:
        """How many are in each bucket, the last without an end; None if unknown."""
        if self.count and not self.up_to:
            return None
        up_to = self.up_to or (0,) * len(BUCKETS)
        pairs = zip((*up_to, self.count), (0, *up_to), strict=True)
        return tuple([upper - lower for upper, lower in pairs])


BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)
"""Upper bounds of the buckets of all metrics, in seconds, from OpenTelemetry's
conventions for the duration of database calls."""
NO_SAMPLES = Distribution(0, 0.0, None, None, None, None)
