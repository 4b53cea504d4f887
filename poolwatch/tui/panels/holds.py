"""The holders table: who holds a connection, since when, where, and what it does."""

from __future__ import annotations

from collections.abc import Callable

from poolwatch.text.format import (
    duration,
    fit,
    neutral,
    one_line,
    plural,
    taken_at,
    taken_in,
)
from poolwatch.text.frozen import moment
from poolwatch.text.naming import process_name
from poolwatch.tui.draw.line import Line, Run, crop, right, rule, tail
from poolwatch.tui.draw.table import GAP, Column, Layout, arrange, heads
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.filtering import short_state
from poolwatch.tui.state.rows import INK, SHAPES, Row

COLUMNS = (
    Column("verdict", "verdict", 10, 11, 0),
    Column("held", "held", 6, 6, 1, right=True),
    Column("holder", "holder", 13, 20, 3),
    Column("site", "call site", 20, 32, 2),
    Column("pool", "pool", 7, 10, 9),
    Column("process", "process", 8, 16, 10),
    Column("pid", "backend", 7, 7, 6, right=True),
    Column("state", "state", 7, 8, 4),
    Column("age", "for", 5, 6, 7, right=True),
    Column("xact", "xact", 5, 6, 11, right=True),
    Column("wait", "wait event", 16, 20, 8),
    Column("statement", "statement", 14, 400, 5),
)

_SERVERS = {"pid", "state", "age", "xact", "wait"}
"""What only the server knows: of the past, nobody asked it."""


def layout(board: Board, cells: int) -> Layout:
    """Choose the columns; one pool or one process needs no column to tell it apart."""
    processes = board.snapshot.processes
    hidden = set(_SERVERS) if board.past is not None else set()
    if len(processes) < 2:
        hidden.add("process")
    if len({pool.name for process in processes for pool in process.pools}) < 2:
        hidden.add("pool")
    return arrange(COLUMNS, cells - 4, hidden)


def title_lines(board: Board, columns: Layout, cells: int) -> list[Line]:
    """Give the panel's rule, with count, order and filter, and the column titles."""
    shown = board.selection.shown
    title: list[Run] = [("HOLDERS", "title"), (f" {len(board.rows)}", "strong")]
    if board.past is not None:
        title += [(f" at {moment(board.past.at)[1]}", "warn")]
    old = [age for row in shown if (age := board.last_seen(row.process.pid))]
    if old:
        title += [(f"  {len(old)} as last seen {duration(min(old))} ago", "warn")]
    if board.filter.text:
        hides = f"{plural(board.hidden, 'row')} hidden"
        title += [("  filter ", "muted"), (one_line(board.filter.text, 60), "accent")]
        title += [(f"  {hides}", "warn" if board.hidden else "muted")]
    if board.filter.complaint:
        title += [(f"  {one_line(board.filter.complaint, 80)}", "warn")]
    where = f"{board.selection.at + 1} of {len(shown)}" if shown else ""
    note: Line = (("by ", "muted"), (board.sort, "accent"), (f"  {where}", "muted"))
    return [rule(tuple(title), note, cells), heads(columns)]


def row_lines(board: Board, columns: Layout, cells: int, *, dim: bool) -> list[Line]:
    """Draw every row; the selected one and a tombstone say so without colour."""
    selection = board.selection
    lines = []
    for at, row in enumerate(selection.shown):
        mine = at == selection.at
        gone = mine and selection.gone_at is not None
        verdict = f"○ {board.parting(row)}" if gone else None
        age = board.last_seen(row.process.pid)
        faded = dim or gone or age is not None
        lines.append(
            _line(row, columns, selected=mine, verdict=verdict, age=age, dim=faded)
        )
    return lines or [crop(_nothing(board), cells)]


def _nothing(board: Board) -> Line:
    if board.hidden:
        return (("  no row matches the filter; esc clears it", "muted"),)
    if board.kept is None:
        return ()
    return (("  no connection is held at this moment", "muted"),)


def _line(
    row: Row,
    columns: Layout,
    *,
    selected: bool,
    verdict: str | None,
    age: float | None,
    dim: bool,
) -> Line:
    runs: list[Run] = [("▌ ", "accent") if selected else ("  ", "text")]
    for column, cells in columns:
        text, ink = _CELLS[column.key](row)
        if age is not None and column.key in ("process", "statement"):
            text = f"{duration(age)} ago: {text}"
        if verdict is not None and column.key == "verdict":
            text = verdict
        if column.key == "site":
            text = tail(taken_in(row.hold, cells), cells)
        else:
            text = right(text, cells) if column.right else fit(text, cells)
        runs.append((text + GAP, _faded(ink) if dim else ink))
    return tuple(runs)


def _faded(ink: str) -> str:
    return "faint" if ink == "faint" else "muted"


def _verdict(row: Row) -> Run:
    return f"{SHAPES[row.word]} {row.verdict}", INK[row.word]


def _loud(row: Row) -> str:
    """Ink for what to read first in a row that is in trouble."""
    return "text" if row.word == "ok" else "strong"


def _whose(row: Row) -> Run:
    return one_line(f"{row.process.pid} {process_name(row.process)}", 40), "muted"


def _pid(row: Row) -> Run:
    pid = row.hold.backend_pid
    return ("-", "faint") if pid is None else (str(pid), "muted")


def _state(row: Row) -> Run:
    state = short_state(row.hold)
    if state is None:
        return "-", "faint"
    return neutral(state), "warn" if row.word in ("IDLE-TX", "BLOCKS") else "text"


def _event(row: Row) -> Run:
    event = row.hold.server and row.hold.server.wait_event
    if not event:
        return "-", "faint"
    short = one_line(event.removeprefix("Client:"), 40)
    return short, "warn" if event.startswith("Lock:") else "muted"


_CELLS: dict[str, Callable[[Row], Run]] = {
    "verdict": _verdict,
    "held": lambda row: (duration(row.hold.held_s), _loud(row)),
    "holder": lambda row: (holder(row), "text"),
    "site": lambda row: (taken_at(row.hold), _loud(row)),
    "pool": lambda row: (one_line(row.pool_name, 40), "muted"),
    "process": _whose,
    "pid": _pid,
    "state": _state,
    "age": lambda row: _age(row.hold.server.state_age_s if row.hold.server else None),
    "xact": lambda row: _age(row.hold.server.xact_age_s if row.hold.server else None),
    "wait": _event,
    "statement": lambda row: statement(row, 400),
}


def _age(seconds: float | None) -> Run:
    return duration(seconds), "faint" if seconds is None else "text"


def holder(row: Row, limit: int = 60) -> str:
    """Name the holder, with its labels as far as there is room."""
    labels = " ".join(list(row.hold.labels.values())[:4])
    name = row.holder.replace("ThreadPoolExecutor-", "Executor-")
    return one_line(f"{name} {labels}", limit)


def statement(row: Row, limit: int) -> Run:
    """Give the statement the server names, or else the last one we saw sent."""
    server = row.hold.server
    text = (server.query if server else None) or row.hold.statement
    return (one_line(text, limit), "muted") if text else ("-", "faint")
