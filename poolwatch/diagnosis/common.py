"""What all findings have in common."""

from __future__ import annotations

from collections.abc import Iterable

from poolwatch.model import Finding, Frame, Hold, Severity, Wait

_GRAVITY: dict[Severity, int] = {"critical": 0, "warning": 1, "info": 2}


def by_gravity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """The worst first; otherwise in the order given."""
    return tuple(sorted(findings, key=lambda finding: _GRAVITY[finding.severity]))


def ids(things: Iterable[Hold | Wait]) -> tuple[str, ...]:
    """How a finding names holds or waits."""
    return tuple(thing.id for thing in things)


def places(*sites: Frame | None) -> tuple[Frame, ...]:
    """The places that are known, each once."""
    return tuple(dict.fromkeys(site for site in sites if site is not None))
