"""View 6: what is wrong, with proof and remedy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from poolwatch.model import Finding, FleetFinding, Frame, Process
from poolwatch.text.format import one_line, place
from poolwatch.tui.draw.line import BLANK, Line, Run, rule
from poolwatch.tui.draw.table import Column, process_cell, text_cell
from poolwatch.tui.panels.detail import finding_lines
from poolwatch.tui.panels.header import SEVERITIES
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import process_key
from poolwatch.tui.views.view import Drill, Sought, View


@dataclass(frozen=True, slots=True, eq=False)
class FindingRow:
    """One finding."""

    key: Any
    process: Process | None
    """None for the processes of all hosts."""
    finding: Finding | FleetFinding


def _severity(row: FindingRow) -> Run:
    return SEVERITIES[row.finding.severity]


def _process(row: FindingRow) -> Run:
    if row.process is None:
        return "all hosts", "muted"
    return process_cell(row.process)


# fmt: off
COLUMNS: tuple[Column[FindingRow], ...] = (
    Column("severity", "", 1, 1, 0, _severity, value=lambda row: row.finding.severity,
           field="severity"),
    Column("kind", "kind", 16, 19, 2, lambda row: text_cell(row.finding.kind, "text"),
           value=lambda row: row.finding.kind, field="finding"),
    Column("what", "what", 20, 400, 1,
           lambda row: (one_line(row.finding.text), "strong"),
           value=lambda row: row.finding.text),
    Column("process", "process", 8, 22, 3, _process, value=lambda row: _process(row)[0],
           field="process"),
)
# fmt: on


class FindingsView(View[FindingRow]):
    """What is wrong."""

    name = "findings"
    short = "find"
    columns = COLUMNS
    order = "cause first"

    def rows(self, board: Board) -> list[FindingRow]:
        rows = []
        for process, finding in board.findings():
            owner = process and process_key(process)
            key = owner, finding.kind, finding.pool, finding.sites, finding.holds
            rows.append(FindingRow(key, process, finding))
        return rows

    def count(self, board: Board) -> Run:
        count = len(board.findings())
        return str(count), "bad" if count else "muted"

    def empty(self, board: Board) -> str:
        return "no finding"

    def pane(
        self, board: Board, row: FindingRow, cells: int, height: int
    ) -> list[Line]:
        note: Line = (("enter ", "accent"), ("its holds", "muted"))
        title: Line = ((row.finding.kind, "title"),)
        body = finding_lines(row.finding, min(cells - 4, 140))[: height - 2]
        return [BLANK, rule(title, note, cells), *body]

    def leads_to(self, board: Board, row: FindingRow) -> Drill | None:
        if not row.finding.holds:
            return None
        sites = "|".join(f'site="{place(site, 99)}"' for site in row.finding.sites)
        return Drill("holds", f"finding:{row.finding.kind} {sites}".strip())

    def sought(self, row: FindingRow) -> Sought:
        pools = row.process.pools if row.process else ()
        names = {pool.id: pool.name for pool in pools}
        pool = names.get(row.finding.pool or "")
        return Sought(row.finding.kind, pool, row.finding.sites)

    def place(self, row: FindingRow) -> Frame | None:
        return row.finding.sites[0] if row.finding.sites else None
