"""A process or a server in the pane: the facts, and what its silence means."""

from __future__ import annotations

from poolwatch.text.format import clock, duration, one_line, plural
from poolwatch.tui.draw.line import BLANK, Line, labelled, rule, wrap
from poolwatch.tui.panels.header import SEVERITIES
from poolwatch.tui.panels.spots import PANE_TALL
from poolwatch.tui.state.process_rows import ProcessRow, ServerLine

_LABEL = 9
"""Width of the labels on the left."""


def process_pane(row: ProcessRow, cells: int, height: int) -> list[Line]:
    """Draw what is known of a process."""
    name = f"{row.count} of {row.name}" if row.count > 1 else f"{row.pid} {row.name}"
    title: Line = ((one_line(f"{name}@{row.host}", 80), "title"),)
    note: Line = (("enter ", "accent"), ("only this process", "muted"))
    lines = _state(row, cells)
    for process in row.processes[:1]:
        version = f"python {process.python}, poolwatch {process.poolwatch}"
        started = f"started {_local(process.started_at)}, {version}"
        lines += _fact("program", f"{process.program}, {started}", cells)
    for finding in [each for p in row.processes for each in p.findings][:3]:
        shape, ink = SEVERITIES[finding.severity]
        lines.append(((f"  {shape} ", ink), (one_line(finding.text), "text")))
    for pool in row.pools:
        most = "no limit" if pool.capacity is None else str(pool.capacity)
        text = f"{pool.name}  {pool.kind}, {pool.out} of {most}  {pool.url or ''}"
        lines += _fact("pool", text, cells)
    return _pane(title, note, lines, cells, height)


def _state(row: ProcessRow, cells: int) -> list[Line]:
    """Say why it does not answer, and what its last answer was."""
    lost = row.lost
    if lost is None:
        return []
    if row.is_ended:
        text = f"it ended at {clock(lost.since or '')}; the others are not affected"
    else:
        age = "" if row.silent_s is None else f" for {duration(row.silent_s)}"
        why = lost.why.replace("does not answer", f"has not answered{age}")
        text = why if lost.since is None else f"{why}; last answer {clock(lost.since)}"
    if row.processes:
        leaked = sum(hold.verdict == "leaked" for hold in row.holds)
        holds, waits = plural(len(row.holds), "hold"), plural(len(row.waits), "wait")
        text += f". As last seen: {holds}, {leaked} leaked, {waits}"
    ink = "muted" if row.is_ended else "strong"
    return [((f"  {part}", ink),) for part in wrap(text, cells - 4, 2)]


def server_pane(row: ServerLine, cells: int, height: int) -> list[Line]:
    """Draw what is known of a server."""
    status = row.status
    title: Line = ((one_line(f"PostgreSQL at {status.address or '?'}", 80), "title"),)
    note: Line = (("enter ", "accent"), ("its sessions", "muted"))
    lines: list[Line] = []
    for text in (status.down, status.error):
        if text:
            lines += [((f"  {part}", "bad"),) for part in wrap(text, cells - 4, 2)]
    version = status.version or "version unknown"
    up = "" if status.up_s is None else f", up {duration(status.up_s)}"
    lines += _fact(
        "server", f"PostgreSQL {version}{up}, read by {status.source}", cells
    )
    if status.sessions is not None and status.max_connections is not None:
        reserved = f", {status.reserved} of them reserved" if status.reserved else ""
        most = f"max_connections {status.max_connections}{reserved}"
        lines += _fact("sessions", f"{status.sessions} now, {most}", cells)
    most = "any number of" if row.capacity is None else str(row.capacity)
    count = f"{plural(len(row.pools), 'pool')} of {row.processes} "
    count += "process" if row.processes == 1 else "processes"
    lines += _fact("pools", f"{count} may open {most} connections", cells)
    return _pane(title, note, lines, cells, height)


def _fact(name: str, text: str, cells: int) -> list[Line]:
    return labelled(f"  {name:<{_LABEL}}", text, cells - 2, 2)


def _pane(
    title: Line, note: Line, lines: list[Line], cells: int, height: int
) -> list[Line]:
    gap = [BLANK] if height >= PANE_TALL else []
    return [*gap, rule(title, note, cells), *lines][:height]


def _local(at: str) -> str:
    from datetime import datetime

    try:
        return f"{datetime.fromisoformat(at).astimezone():%Y-%m-%d %H:%M:%S}"
    except (ValueError, OverflowError):
        return one_line(at, 40)
