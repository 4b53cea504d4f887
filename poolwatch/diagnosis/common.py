"""What all findings have in common."""

from __future__ import annotations

from collections.abc import Iterable

from poolwatch.model import Finding, Frame, Hold, Wait, severity_rank


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The most severe first; findings of one severity keep their order."""
    return tuple(sorted(findings, key=lambda each: severity_rank(each.severity)))


def ids(things: Iterable[Hold | Wait]) -> tuple[str, ...]:
    """How a finding names holds or waits."""
    return tuple(thing.id for thing in things)


def places(*sites: Frame | None) -> tuple[Frame, ...]:
    """The places that are known, each once."""
    return tuple(dict.fromkeys(site for site in sites if site is not None))
