"""The table of holds: holder, time held, call site, and state of the backend."""

from __future__ import annotations

from typing import NamedTuple

from poolwatch.text.format import (
    duration,
    neutral,
    one_line,
    plural,
)
from poolwatch.text.incident_snapshots import date_and_time
from poolwatch.tui.draw.line import Line, Run, crop, right, rule
from poolwatch.tui.draw.table import (
    MARGIN,
    Column,
    Table,
    process_cell,
    site_cell,
    text_cell,
)
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.filtering import short_state
from poolwatch.tui.state.rows import Row


class _HoldLine(NamedTuple):
    """One line of the table."""

    row: Row
    ending: str | None
    """How the hold ended; None while it is open."""
    age: float | None
    """Seconds since its process last answered, if the process is silent."""


def layout(board: Board, cells: int) -> Table[_HoldLine]:
    """Return the table; pool and process columns only if there are several.

    An incident snapshot has no server columns: it contains no server view.
    """
    processes = board.snapshot.processes
    hidden = set()
    if board.incident is not None:
        hidden |= {"backend", "state", "for", "xact", "wait event"}
    if len(processes) < 2:
        hidden.add("process")
    if len({pool.name for process in processes for pool in process.pools}) < 2:
        hidden.add("pool")
    return Table(COLUMNS, cells, hidden)


def title_lines(board: Board, table: Table[_HoldLine], cells: int) -> list[Line]:
    """Return the panel's title with count, sort order and filter; column titles."""
    shown = board.selection.shown
    title: list[Run] = [("HOLDERS", "title"), (f" {len(board.rows)}", "strong")]
    if board.moment is not None:
        title += [(f" at {date_and_time(board.moment)[1]}", "warn")]
    ages = [age for row in shown if (age := board.last_seen(row.process.pid))]
    if ages:
        title += [(f"  {len(ages)} as last seen {duration(min(ages))} ago", "warn")]
    if board.filter.text:
        hidden = f"{plural(board.hidden, 'row')} hidden"
        title += [("  filter ", "muted"), (one_line(board.filter.text, 60), "accent")]
        title += [(f"  {hidden}", "warn" if board.hidden else "muted")]
    if board.filter.error:
        title += [(f"  {one_line(board.filter.error, 80)}", "warn")]
    where = f"{board.selection.at + 1} of {len(shown)}" if shown else ""
    note: Line = (("by ", "muted"), (board.sort, "accent"), (f"  {where}", "muted"))
    return [rule(tuple(title), note, cells), table.titles()]


def row_lines(
    board: Board, table: Table[_HoldLine], cells: int, *, dim: bool
) -> list[Line]:
    """Draw every row; selection and tombstone are recognizable without colour."""
    selection = board.selection
    lines = []
    for at, row in enumerate(selection.shown):
        selected = at == selection.at
        gone = selected and selection.gone_at is not None
        age = board.last_seen(row.process.pid)
        line = _HoldLine(row, board.ending(row) if gone else None, age)
        margin = ("▌ ", "accent") if selected else MARGIN
        faded = dim or gone or age is not None
        lines.append(table.line(line, margin=margin, dim=faded))
    return lines or [crop(_empty(board), cells)]


def _empty(board: Board) -> Line:
    if board.hidden:
        return (("  no row matches the filter; esc clears it", "muted"),)
    if board.last_good is None:
        return ()
    return (("  no connection is held at this moment", "muted"),)


def _verdict(line: _HoldLine) -> Run:
    text, ink = line.row.mark
    return (f"○ {line.ending}" if line.ending else text), ink


def _emphasis(row: Row) -> str:
    """Return the ink for the most important cells of a row."""
    return "text" if row.word == "ok" else "strong"


def _held(line: _HoldLine) -> Run:
    return duration(line.row.hold.held_s), _emphasis(line.row)


def _holder(line: _HoldLine) -> Run:
    row = line.row
    labels = " ".join(list(row.hold.labels.values())[:4])
    name = row.holder.replace("ThreadPoolExecutor-", "Executor-")
    return one_line(f"{name} {labels}", 60), "text"


def _site(line: _HoldLine, cells: int) -> Line:
    return site_cell(line.row.hold, cells, _emphasis(line.row))


def _process(line: _HoldLine) -> Run:
    return _as_last_seen(line, process_cell(line.row.process))


def _backend(line: _HoldLine) -> Run:
    pid = line.row.hold.backend_pid
    return ("-", "faint") if pid is None else (str(pid), "muted")


def _state(line: _HoldLine) -> Run:
    state = short_state(line.row.hold)
    if state is None:
        return "-", "faint"
    harmful = line.row.word in ("IDLE-TX", "BLOCKS")
    return neutral(state), "warn" if harmful else "text"


def _state_age(line: _HoldLine) -> Run:
    server = line.row.hold.server
    return _age(server.state_age_s if server else None)


def _xact_age(line: _HoldLine) -> Run:
    server = line.row.hold.server
    return _age(server.xact_age_s if server else None)


def _age(seconds: float | None) -> Run:
    return duration(seconds), "faint" if seconds is None else "text"


def _wait_event(line: _HoldLine) -> Run:
    server = line.row.hold.server
    if server is None or not server.wait_event:
        return "-", "faint"
    short = one_line(server.wait_event.removeprefix("Client:"), 40)
    return short, "warn" if server.wait_event.startswith("Lock:") else "muted"


def _statement(line: _HoldLine) -> Run:
    """Return the statement in pg_stat_activity, or else the last one that was sent."""
    server = line.row.hold.server
    text = (server.query if server else None) or line.row.hold.statement
    cell = (one_line(text), "muted") if text else ("-", "faint")
    return _as_last_seen(line, cell)


def _as_last_seen(line: _HoldLine, cell: Run) -> Run:
    text, ink = cell
    return (text if line.age is None else f"{duration(line.age)} ago: {text}"), ink


COLUMNS: tuple[Column[_HoldLine], ...] = (
    Column("verdict", "verdict", 10, 11, 0, _verdict),
    Column("held", "held", 6, 6, 1, _held, place=right),
    Column("holder", "holder", 13, 20, 3, _holder),
    Column("call site", "call site", 20, 32, 2, draw=_site),
    Column("pool", "pool", 7, 10, 9, lambda line: text_cell(line.row.pool_name)),
    Column("process", "process", 8, 16, 10, _process),
    Column("backend", "backend", 7, 7, 6, _backend, place=right),
    Column("state", "state", 7, 8, 4, _state),
    Column("for", "for", 5, 6, 7, _state_age, place=right),
    Column("xact", "xact", 5, 6, 11, _xact_age, place=right),
    Column("wait event", "wait event", 16, 20, 8, _wait_event),
    Column("statement", "statement", 14, 400, 5, _statement),
)
