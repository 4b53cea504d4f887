"""The report of the headless demo: what poolwatch found of each planted fault."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from poolwatch.commands.demo.faults import Fault
from poolwatch.model import Finding, Frame, Hold, Process, Snapshot
from poolwatch.text.format import duration, one_line, plural

_ROW = "{:<20} {:<20} {:<18} {}"


@dataclass(frozen=True, slots=True)
class Sighting:
    """What a snapshot contains about one planted fault."""

    fault: Fault
    holds: tuple[Hold, ...]
    lost: int
    """Connections that leaked at the fault's line and were collected."""
    findings: tuple[str, ...]
    """Kinds of the findings about the fault's line or its holds."""

    @property
    def seen(self) -> bool:
        """Whether the snapshot contains the fault's line."""
        return bool(self.holds or self.lost)


def sightings(snapshot: Snapshot, faults: Mapping[str, Fault]) -> list[Sighting]:
    """Look up each planted fault in a snapshot."""
    return [_sighting(snapshot.processes, fault) for fault in faults.values()]


def table(rows: Iterable[Sighting]) -> str:
    """Return the table: fault, planted line, holds, and kinds of findings."""
    lines = [_ROW.format("FAULT", "PLANTED AT", "SEEN", "FINDINGS")]
    for row in rows:
        planted = one_line(f"{Path(row.fault.file).name}:{row.fault.line}")
        found = ", ".join(row.findings) or "-"
        line = _ROW.format(row.fault.name, planted, _seen(row), found)
        lines.append(line.rstrip())
    return "\n".join(lines)


def _sighting(processes: Iterable[Process], fault: Fault) -> Sighting:
    holds: list[Hold] = []
    lost, kinds = 0, []
    for process in processes:
        found = [hold for hold in process.holds if _is_at(hold.site, fault)]
        holds += found
        lost += sum(each.leaked for each in process.sites if _is_at(each.site, fault))
        kinds += list(_kinds(process.findings, found, fault))
    return Sighting(fault, tuple(holds), lost, tuple(dict.fromkeys(kinds)))


def _kinds(
    findings: Iterable[Finding], holds: Iterable[Hold], fault: Fault
) -> Iterator[str]:
    ids = {hold.id for hold in holds}
    for finding in findings:
        if ids.intersection(finding.holds) or any(
            _is_at(site, fault) for site in finding.sites
        ):
            yield finding.kind


def _is_at(site: Frame | None, fault: Fault) -> bool:
    return site is not None and (site.file, site.line) == (fault.file, fault.line)


def _seen(row: Sighting) -> str:
    if row.holds:
        oldest = max(hold.known_s for hold in row.holds)
        return f"{plural(len(row.holds), 'hold')}, {duration(oldest)}"
    return f"{row.lost} collected" if row.lost else "not seen"
