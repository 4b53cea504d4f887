"""View 7: the processes, whether each answers, and below them their servers."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from poolwatch.text.format import duration, one_line, plural, short_time
from poolwatch.tui.draw.gauge import bar
from poolwatch.tui.draw.line import Line, Run, crop, length, right
from poolwatch.tui.draw.table import (
    GAP,
    MARGIN,
    TIMES,
    Column,
    Table,
    age_cell,
    count_cell,
    process_cell,
    text_cell,
)
from poolwatch.tui.panels.header import SEVERITIES
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.filtering import quoted
from poolwatch.tui.state.process_rows import (
    ProcessRow,
    ServerLine,
    by_name,
    figure,
    process_rows,
    server_lines,
)
from poolwatch.tui.state.rows import process_key
from poolwatch.tui.views.view import SELECTED, Drill, View, of_process

Row = ProcessRow | ServerLine


def _mark(row: ProcessRow) -> Run:
    if row.lost is not None:
        return ("○", "muted") if row.is_ended else ("◌", "bad")
    severities = list(SEVERITIES.values())
    return severities[row.worst] if row.worst < len(severities) else ("·", "good")


def _name(row: ProcessRow) -> Run:
    many = f"{row.count} {TIMES}"
    return text_cell(f"{many if row.count > 1 else row.pid} {row.name}", "strong")


def _level(row: ProcessRow) -> str:
    if row.waits:
        return "bad"
    return "warn" if row.capacity is not None and row.out >= row.capacity else "accent"


def _gauge(row: ProcessRow, cells: int) -> Line:
    top = row.capacity or row.out + sum(pool.idle or 0 for pool in row.pools)
    return bar(row.out / top if top else 0.0, cells, _level(row))


def _out(row: ProcessRow) -> Run:
    if not row.processes:
        return "-", "faint"
    top = "∞" if row.capacity is None else row.capacity
    return f"{row.out}/{top}", _level(row).replace("accent", "text")


def _waited(row: ProcessRow) -> float:
    return sum(pool.waiting_s_per_s for pool in row.pools)


def _waited_cell(row: ProcessRow) -> Run:
    average = _waited(row)
    if average < 0.005:
        return "0", "faint"
    return f"{average:.{0 if average >= 9.95 else 1}f} s/s", "warn"


def _leaked(row: ProcessRow) -> int:
    return sum(pool.counters.leaked for pool in row.pools)


def _db(row: ProcessRow) -> Run:
    statuses = [status for each in row.processes for status in each.servers]
    for status in statuses:
        if status.down is not None:
            return f"DOWN {duration(status.silent_s)}".removesuffix(" -"), "bad"
    if any(status.error and status.enabled for status in statuses):
        return "not read", "warn"
    read = max((status.read_s or 0.0 for status in statuses), default=0.0)
    return (short_time(read), "text") if read else ("-", "faint")


# fmt: off
COLUMNS: tuple[Column[Any], ...] = (
    Column("mark", "", 1, 1, 0, _mark),
    Column("process", "process", 16, 30, 1, _name,
           value=figure(lambda row: row.name)),
    Column("host", "host", 6, 16, 4, lambda row: text_cell(row.host),
           value=figure(lambda row: row.host), field="host"),
    Column("answers", "answers", 17, 17, 2, lambda row: row.answers,
           value=figure(lambda row: row.silent_s)),
    Column("up", "up", 6, 6, 11, lambda row: age_cell(row.up_s), place=right,
           value=figure(lambda row: row.up_s), field="up"),
    Column("gauge", "pools out", 9, 14, 8, draw=_gauge),
    Column("out", "out", 7, 9, 3, _out, place=right,
           value=figure(lambda row: row.out), field="out"),
    Column("waiting", "waiting", 7, 7, 5,
           lambda row: count_cell(len(row.waits), "bad"), place=right,
           value=figure(lambda row: len(row.waits)), field="waiting"),
    Column("oldest", "oldest", 6, 7, 6, lambda row: age_cell(row.oldest_s), place=right,
           value=figure(lambda row: row.oldest_s), field="oldest"),
    Column("leaked", "leaked", 6, 6, 7, lambda row: count_cell(_leaked(row), "bad"),
           place=right, value=figure(_leaked), field="leaked"),
    Column("waited", "waited", 8, 8, 10, _waited_cell, place=right,
           value=figure(_waited)),
    Column("db", "db", 9, 9, 9, _db, place=right),
    Column("findings", "findings", 8, 8, 9,
           lambda row: count_cell(len(row.findings), "warn"), place=right,
           value=figure(lambda row: len(row.findings))),
    Column("python", "python", 7, 8, 12,
           lambda row: text_cell(row.processes[0].python if row.processes else "-"),
           value=figure(lambda r: r.processes[0].python if r.processes else None),
           field="python"),
    Column("poolwatch", "poolwatch", 9, 12, 13,
           lambda row: text_cell(row.processes[0].poolwatch if row.processes else "-"),
           value=figure(lambda r: r.processes[0].poolwatch if r.processes else None)),
)
# fmt: on


class ProcessesView(View[Row]):
    """The processes and hosts, and the servers."""

    name = "processes"
    short = "proc"
    columns = COLUMNS
    more_fields = "process", "pid", "app"

    def rows(self, board: Board) -> list[Row]:
        return [*process_rows(board), *server_lines(board)]

    def members(self, row: Row) -> Sequence[Hashable]:
        each = [] if isinstance(row, ServerLine) else map(process_key, row.processes)
        return [*each] or [row.key]

    def merge(self, rows: Sequence[Row]) -> list[Row]:
        processes = [row for row in rows if isinstance(row, ProcessRow)]
        servers = [row for row in rows if isinstance(row, ServerLine)]
        return [*by_name(processes), *servers]

    def count(self, board: Board) -> Run:
        rows = process_rows(board)
        silent = any(row.is_silent for row in rows)
        count = sum(not row.is_ended for row in rows)
        return str(count), "bad" if silent else "strong"

    def size(self, board: Board) -> str:
        rows = process_rows(board)
        ended = sum(row.is_ended for row in rows)
        hosts = len({row.host for row in rows})
        text = super().size(board)
        text += f" on {plural(hosts, 'host')}" if hosts > 1 else ""
        text += f", {ended} ended" if ended else ""
        servers = len(server_lines(board))
        return f"{text}  SERVERS {servers}" if servers else text

    def fields(self, row: Row) -> Mapping[str, Sequence[Any]]:
        if isinstance(row, ServerLine):
            return {"process": [], "pid": [], "app": []}
        given = [name for p in row.processes for name in (p.name, p.program)]
        return {
            "process": [
                f"{row.pid} {row.name}",
                *(process_cell(p)[0] for p in row.processes),
            ],
            "pid": [row.pid],
            "app": given or [row.name],
        }

    def empty(self, board: Board) -> str:
        return "no process"

    def is_dim(self, board: Board, row: Row) -> bool:
        return isinstance(row, ProcessRow) and row.is_ended

    def line(
        self, board: Board, table: Table[Row], row: Row, *, selected: bool, dim: bool
    ) -> Line:
        if isinstance(row, ProcessRow):
            return super().line(board, table, row, selected=selected, dim=dim)
        cells = sum(width + len(GAP) for _, width in table.columns)
        drawn = crop(_server_line(row), cells)
        pad = " " * (cells - length(drawn))
        return (SELECTED if selected else MARGIN, *drawn, (pad, "text"))

    def pane(self, board: Board, row: Row, cells: int, height: int) -> list[Line]:
        from poolwatch.tui.panels.process_detail import process_pane, server_pane

        if isinstance(row, ServerLine):
            return server_pane(row, cells, height)
        return process_pane(row, cells, height)

    def leads_to(self, board: Board, row: Row) -> Drill:
        if isinstance(row, ServerLine):
            return Drill("sessions", "")
        which = f"app={quoted(row.name)}"
        if row.count == 1:
            which = of_process(row.processes[0]) if row.processes else f"pid={row.pid}"
        host = "" if row.host == "?" else f" host={quoted(row.host)}"
        return Drill("holds", which + host)


def _server_line(row: ServerLine) -> Line:
    """Draw a server: whether it answers, its sessions, and what its pools may open."""
    status = row.status
    shape, ink = ("·", "good")
    state = (short_time(status.read_s), "text")
    if status.down is not None:
        (shape, ink), state = SEVERITIES["critical"], _down(row)
    elif status.error is not None:
        (shape, ink), state = SEVERITIES["warning"], ("not read", "warn")
    elif row.is_short:
        shape, ink = SEVERITIES["warning"]
    version = f" {one_line(status.version, 12)}" if status.version else ""
    address = one_line(status.address or "?", 50)
    runs: list[Run] = [
        (f"{shape}  ", ink),
        (f"PostgreSQL{version} at {address}  ", "strong"),
        (f"{state[0]}  ", state[1]),
    ]
    if status.sessions is not None and status.max_connections is not None:
        reserved = f" ({status.reserved} reserved)" if status.reserved else ""
        runs += [("  sessions ", "muted")]
        runs += [(f"{status.sessions}/{status.max_connections}{reserved}  ", "text")]
    if row.limit is not None:
        most = "any number" if row.capacity is None else str(row.capacity)
        text = f"pools may open {most} of {row.limit}"
        runs += [(f"  {text}", "warn" if row.is_short else "muted")]
    return tuple(runs)


def _down(row: ServerLine) -> Run:
    return f"DOWN {duration(row.status.silent_s)}".removesuffix(" -"), "bad"
