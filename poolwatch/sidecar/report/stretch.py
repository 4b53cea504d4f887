"""Reads what the report is about: a stretch of history, piece by piece."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from poolwatch.errors import NoProcessError, UsageError
from poolwatch.model import Finding, FleetFinding, Process
from poolwatch.sidecar.report.faults import Fault, faults_of, finding_of
from poolwatch.sidecar.report.totals import MINUTE_S, Totals, time_line
from poolwatch.text.format import utc_time

if TYPE_CHECKING:
    from poolwatch.sidecar.history.reading import History

DAY_S = 86400.0
MAX_FAULTS = 40
"""Faults that are shown in full; the rest is counted."""
_PIECE_S = 15 * MINUTE_S
"""Read at once: 150,000 rows of a thousand processes with ten pools each."""
Progress = Callable[[float], None]
"""Is told the share that is done."""


@dataclass(frozen=True, slots=True)
class Kept:
    """The first moment of a fault, as far as it was kept."""

    process: Process
    finding: Finding


@dataclass(frozen=True, slots=True)
class Stretch:
    """What happened from ``since`` to ``until``."""

    since: float
    until: float
    host: str | None
    """The only host that it is about; None for all."""
    totals: Totals
    faults: tuple[Fault, ...]
    """The worst first; without those that are for information only."""
    notes: tuple[Fault, ...]
    """Those that are for information only."""
    kept: tuple[Kept | None, ...]
    """Of each of the first faults."""
    fleet: tuple[FleetFinding, ...]
    """Over all hosts, at the end; without those that are for information only."""


def read(
    history: History,
    since: float | None,
    until: float | None,
    host: str | None,
    progress: Progress,
) -> Stretch:
    """Read a stretch of history; the last day if nothing is said.

    Raises UsageError if there is nothing in it.
    """
    since, until = within(history.extent(), since, until)
    totals = Totals(time_line(since, until))
    _add_minutes(history, totals, until, host, progress)
    found = faults_of(history.incidents(since, until, (), host), since, until)
    if not totals.processes and not found:
        whose = f" of host {host!r:.60}" if host else ""
        raise UsageError(
            f"the history has no process{whose} from {utc_time(since)} to "
            f"{utc_time(until)}"
        )
    faults = [each for each in found if each.severity != "info"]
    return Stretch(
        since=since,
        until=until,
        host=host,
        totals=totals,
        faults=tuple(faults),
        notes=tuple(each for each in found if each.severity == "info"),
        kept=tuple(_kept(history, each) for each in faults[:MAX_FAULTS]),
        fleet=() if host else _fleet(history, until),
    )


def within(
    extent: tuple[float, float] | None, since: float | None, until: float | None
) -> tuple[float, float]:
    """Return the part of a stretch that the history covers, from a whole minute on.

    The last day if nothing is said. Raises UsageError if there is nothing in it.
    """
    if extent is None:
        raise UsageError("the history is empty: no process was seen yet")
    first, last = extent
    if until is not None and until < first:
        raise UsageError(
            f"{utc_time(until)} lies before the history, which begins at "
            f"{utc_time(first)}"
        )
    if since is not None and since > last:
        raise UsageError(
            f"{utc_time(since)} lies after the history, which ends at {utc_time(last)}"
        )
    if since is not None and until is not None and since >= until:
        raise UsageError("--since must be before --until")
    end = last if until is None else min(_whole(until), last)
    begin = end - DAY_S if since is None else since
    return max(begin - begin % MINUTE_S, first), end


def _whole(until: float) -> float:
    """Return the end of a minute: the history has whole ones."""
    return math.ceil(until / MINUTE_S) * MINUTE_S


def _add_minutes(
    history: History, totals: Totals, until: float, host: str | None, progress: Progress
) -> None:
    def of_host(minutes: list[Any]) -> list[Any]:
        return minutes if host is None else [m for m in minutes if m.host == host]

    for begin, end in pieces(totals.line.since, until, progress):
        totals.add_pools(of_host(history.pool_minutes(begin, end)))
        totals.add_sites(of_host(history.site_minutes(begin, end)))
        totals.add_labels(of_host(history.label_minutes(begin, end)))


def pieces(
    since: float, until: float, progress: Progress
) -> Iterator[tuple[float, float]]:
    """Yield the beginning and the last minute of each piece of a stretch."""
    count = max(1, math.ceil((until - since) / _PIECE_S))
    for piece in range(count):
        begin = since + piece * _PIECE_S
        yield begin, begin + _PIECE_S - MINUTE_S
        progress((piece + 1) / count)


def _fleet(history: History, until: float) -> tuple[FleetFinding, ...]:
    try:
        found = history.snapshot(until).findings
    except NoProcessError:
        return ()
    return tuple(each for each in found if each.severity != "info")


def _kept(history: History, fault: Fault) -> Kept | None:
    """Return the first moment of the worst incident that has one."""
    kept = [each for each in fault.incidents if each.snapshot]
    for incident in kept[:3]:
        process = history.snapshot_of_incident(incident.id)
        finding = finding_of(incident, process) if process else None
        if process is not None and finding is not None:
            return Kept(process, finding)
    return None
