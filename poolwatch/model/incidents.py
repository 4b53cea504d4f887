"""Records of incidents: findings with a beginning and an end."""

from __future__ import annotations

from dataclasses import dataclass

from poolwatch.model.terms import FindingKind, Frame, Severity


@dataclass(frozen=True, slots=True)
class Incident:
    """A finding from its first look to its last, as the history keeps it.

    Its identity: host, pid with its start time, pool, kind and call sites. All times
    are ISO 8601, UTC.
    """

    id: str
    host: str
    pid: int
    process: str
    """Name of the process."""
    pool: str | None
    """Name of the pool."""
    kind: FindingKind
    severity: Severity
    started_at: str
    last_seen_at: str
    ended_at: str | None
    """Equal to ``last_seen_at``; None while it lasts."""
    text: str
    proof: str
    remedy: str
    sites: tuple[Frame, ...]
    snapshot: bool
    """Whether the snapshot of its first moment is kept."""
