"""Helpers that all findings share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from poolwatch.model import Finding, Frame, Hold, Wait, severity_rank
from poolwatch.stacks.classify import activity_of
from poolwatch.text.format import activity_from


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


def doing_now(site: Frame | None, now: Sequence[Frame]) -> str:
    """What the code at a call site does now: ``asleep at :14``.

    A viewer may have no source code: then only the line is certain.
    """
    found = activity_of(now)
    if found is None:
        return ""
    certain = found.kind != "code" and not found.is_ambiguous()
    return activity_from(site, found.frame, found.kind if certain else None)
