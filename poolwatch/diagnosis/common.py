"""Helpers that all findings share."""

from __future__ import annotations

from collections.abc import Iterable

from poolwatch.model import Finding, Frame, Hold, Wait, severity_rank


def by_severity(findings: Iterable[Finding]) -> tuple[Finding, ...]:
    """Sort by severity, most severe first; equal ones keep their order."""
    return tuple(sorted(findings, key=lambda each: severity_rank(each.severity)))


def ids(requests: Iterable[Hold | Wait]) -> tuple[str, ...]:
    """The ids of holds or waits, as a finding lists them."""
    return tuple(each.id for each in requests)


def distinct_sites(*sites: Frame | None) -> tuple[Frame, ...]:
    """The known call sites, each once."""
    return tuple(dict.fromkeys(site for site in sites if site is not None))


def still_running(hold: Hold) -> bool:
    """Whether the function at the call site is on the holder's stack now."""
    site = hold.site
    if site is None:
        return False
    file, function = site.file, site.function
    for frame in hold.now:  # noqa: SIM110 - any() takes twice as long, for each of a thousand holds
        if frame.function == function and frame.file == file:
            return True
    return False
