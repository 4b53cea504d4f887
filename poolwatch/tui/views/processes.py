"""View 7: the processes, and when each has answered."""

from __future__ import annotations

from dataclasses import dataclass

from poolwatch.model import Process
from poolwatch.text.format import duration
from poolwatch.text.naming import process_name
from poolwatch.tui.draw.line import Run, right
from poolwatch.tui.draw.table import Column, age_cell, count_cell, text_cell
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import ProcessKey, process_key
from poolwatch.tui.views.view import Drill, View


@dataclass(frozen=True, slots=True, eq=False)
class ProcessRow:
    """One process."""

    key: ProcessKey
    process: Process
    silent_s: float | None
    """Seconds since it last answered, if it is silent."""

    @property
    def oldest_s(self) -> float | None:
        return max((hold.held_s for hold in self.process.holds), default=None)


def _answers(row: ProcessRow) -> Run:
    if row.silent_s is None:
        return "yes", "good"
    return f"{duration(row.silent_s)} silent", "bad"


# fmt: off
COLUMNS: tuple[Column[ProcessRow], ...] = (
    Column("process", "process", 16, 30, 0,
           lambda row: text_cell(f"{row.process.pid} {process_name(row.process)}",
                                 "strong"),
           value=lambda row: process_name(row.process), field="process"),
    Column("host", "host", 6, 16, 3, lambda row: text_cell(row.process.host),
           value=lambda row: row.process.host, field="host"),
    Column("answers", "answers", 10, 12, 1, _answers, value=lambda row: row.silent_s),
    Column("out", "out", 5, 7, 2, lambda row: (str(len(row.process.holds)), "text"),
           place=right, value=lambda row: len(row.process.holds)),
    Column("waiting", "waiting", 7, 7, 4,
           lambda row: count_cell(len(row.process.waits), "bad"), place=right,
           value=lambda row: len(row.process.waits)),
    Column("oldest", "oldest", 6, 7, 5, lambda row: age_cell(row.oldest_s), place=right,
           value=lambda row: row.oldest_s),
    Column("findings", "findings", 8, 8, 6,
           lambda row: count_cell(len(row.process.findings), "warn"), place=right,
           value=lambda row: len(row.process.findings)),
    Column("python", "python", 7, 8, 8, lambda row: text_cell(row.process.python),
           value=lambda row: row.process.python, field="python"),
    Column("poolwatch", "poolwatch", 9, 12, 9,
           lambda row: text_cell(row.process.poolwatch),
           value=lambda row: row.process.poolwatch),
)
# fmt: on


class ProcessesView(View[ProcessRow]):
    """The processes and hosts."""

    name = "processes"
    short = "proc"
    columns = COLUMNS

    def rows(self, board: Board) -> list[ProcessRow]:
        rows = [
            ProcessRow(key, process, board.last_seen(key))
            for process in board.snapshot.processes
            for key in (process_key(process),)
        ]
        return sorted(rows, key=lambda row: (row.silent_s is None, row.key))

    def count(self, board: Board) -> Run:
        count = str(len(board.snapshot.processes))
        return count, "bad" if board.silent else "strong"

    def empty(self, board: Board) -> str:
        return "no process"

    def leads_to(self, board: Board, row: ProcessRow) -> Drill:
        return Drill("holds", f"pid={row.process.pid}")
