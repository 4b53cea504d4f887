"""View 6: what is wrong and since when; equal findings of all processes are one row."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from poolwatch.diagnosis.finding_history import CELL_S, KEPT_S, Entry
from poolwatch.diagnosis.merging import Merged, unmerged
from poolwatch.model import Finding, FleetFinding, Frame, severity_rank
from poolwatch.text.format import clock, duration, one_line, utc_time
from poolwatch.tui.draw.line import Line, Run, right
from poolwatch.tui.draw.table import Column, Table, text_cell
from poolwatch.tui.panels.header import SEVERITIES
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.filtering import quoted
from poolwatch.tui.state.rows import process_key
from poolwatch.tui.views.view import Drill, Sought, View, of_process, site_values

_OVER: Run = ("○", "muted")
_STRIP = 20
"""Cells of the last ten minutes."""


@dataclass(frozen=True, slots=True, eq=False)
class FindingRow:
    """A finding now, or one that is over."""

    key: Any
    finding: Merged
    entry: Entry | None
    """None if it is not known over time: in the past, or if it is not merged."""
    board: Board

    @property
    def over(self) -> float | None:
        """When it was last seen, if it is over."""
        return self.entry.over if self.entry else None

    @property
    def lasts(self) -> float | None:
        """For how long it has lasted, in seconds."""
        last = self.board.last
        return self.entry.lasts(last.at) if self.entry and last else None

    @property
    def is_older(self) -> bool:
        """Whether it was there when the dashboard first looked."""
        began_at = self.board.found.began_at if self.board.moment is None else None
        return self.entry is not None and self.entry.since == began_at

    @property
    def leads_to(self) -> str:
        """What it leads to, in words."""
        return ", ".join(dict.fromkeys(key.kind for key in self.finding.leads_to))


def _severity(row: FindingRow) -> Run:
    return _OVER if row.over is not None else SEVERITIES[row.finding.severity]


def _since(row: FindingRow) -> Run:
    if row.entry is None:
        return "-", "faint"
    return f"{'≤' if row.is_older else ''}{clock(utc_time(row.entry.since))}", "text"


def _for(row: FindingRow) -> Run:
    text = duration(row.lasts)
    return (f"≥{text}" if row.is_older else text), "text" if row.entry else "faint"


def _strip(row: FindingRow) -> Run:
    board, last = row.board, row.board.last
    if row.entry is None or last is None:
        return "-", "faint"
    strip = "".join("■" if seen else "·" for seen in row.entry.strip(last.at))
    began_at = board.found.began_at if board.moment is None else None
    looked_s = last.at - began_at if began_at is not None else KEPT_S
    known = min(int(looked_s // CELL_S) + 1, _STRIP)
    return strip[-known:].rjust(_STRIP), _severity(row)[1]


def _what(row: FindingRow) -> Run:
    text = one_line(row.finding.text)
    if row.over is None:
        return text, "strong"
    return f"over {clock(utc_time(row.over))}: {text}", "muted"


def _processes(row: FindingRow) -> Run:
    count = len(row.finding.processes)
    if not count:
        return "-", "faint"
    return f"{count} of {len(row.board.snapshot.processes)}", "muted"


def _holds(row: FindingRow) -> Run:
    count = len(row.finding.holds)
    return (str(count), "text") if count else ("-", "faint")


# fmt: off
COLUMNS: tuple[Column[FindingRow], ...] = (
    Column("severity", "", 1, 1, 0, _severity,
           value=lambda row: -severity_rank(row.finding.severity)),
    Column("since", "since", 9, 9, 2, _since, place=right,
           value=lambda row: row.entry and row.entry.since),
    Column("for", "for", 6, 7, 3, _for, place=right, value=lambda row: row.lasts,
           field="for"),
    Column("strip", "last 10 min", _STRIP, _STRIP, 7, _strip),
    Column("kind", "kind", 19, 19, 4, lambda row: text_cell(row.finding.kind, "text"),
           value=lambda row: row.finding.kind),
    Column("what", "what", 40, 100, 1, _what, value=lambda row: row.finding.text),
    Column("processes", "processes", 9, 9, 5, _processes,
           value=lambda row: len(row.finding.processes)),
    Column("holds", "holds", 5, 5, 6, _holds, place=right,
           value=lambda row: len(row.finding.holds)),
    Column("leads to", "leads to", 10, 40, 8,
           lambda row: text_cell(row.leads_to or "-"),
           value=lambda row: row.leads_to or None),
)
# fmt: on


class FindingsView(View[FindingRow]):
    """What is wrong, the cause first; then what is over."""

    name = "findings"
    short = "find"
    columns = COLUMNS
    more_fields = "finding", "severity", "site", "pool", "process", "host", "pid"
    order = "cause first"
    all_at_first = True

    def rows(self, board: Board) -> list[FindingRow]:
        if not self.is_merged(board):
            return [_row(board, finding) for finding in unmerged(board.snapshot)]
        found = board.findings
        if self._shows_over(board):
            keys = {finding.key for finding in found}
            entries = [*board.found.open, *board.found.over]
            found = found + [e.merged for e in entries if e.key not in keys]
        return [_row(board, finding) for finding in found]

    def merges(self, board: Board) -> bool:
        return True

    def members(self, row: FindingRow) -> Sequence[Hashable]:
        """Identify findings by what they are about; one that is over has none."""
        members = [
            (process and process_key(process), _without_words(each))
            for process, each in row.finding.members
        ]
        return members or [row.key]

    def count(self, board: Board) -> Run:
        return str(len(board.findings)), "bad" if board.findings else "muted"

    def fields(self, row: FindingRow) -> dict[str, list[Any]]:
        finding = row.finding
        return {
            "finding": [finding.kind, str(finding.key)],
            "severity": [finding.severity],
            "site": [text for site in finding.sites for text in site_values(site)],
            "pool": [finding.pool],
            "process": [
                f"{each.pid}{host} {each.name}"
                for each in finding.processes
                for host in ("", f"@{each.host}")
            ],
            "host": [each.host for each in finding.processes],
            "pid": [each.pid for each in finding.processes],
        }

    def size(self, board: Board) -> str:
        size = super().size(board)
        over = len(board.found.over) if self._shows_over(board) else 0
        return f"{size} open, {over} over" if over else size

    def _shows_over(self, board: Board) -> bool:
        is_live = board.moment is None
        return is_live and self.is_merged(board) and self.shows_all(board)

    def empty(self, board: Board) -> str:
        if board.last is not None and not board.last.alive:
            return "nothing is known: no process answers"
        return "no finding"

    def is_dim(self, board: Board, row: FindingRow) -> bool:
        return row.over is not None

    def layout(self, board: Board, cells: int) -> Table[FindingRow]:
        """Give the sentence the room of the kind in a narrow terminal."""
        kind = 19 if cells >= 120 else 12
        what = max(min(cells - 40, 40), 16)
        least = {"kind": kind, "what": what}
        columns = [replace(c, least=least.get(c.key, c.least)) for c in self.columns]
        return Table(columns, cells, self.hidden_columns(board))

    def hidden_columns(self, board: Board) -> set[str]:
        hidden = set() if board.several_processes else {"processes"}
        untold = board.fixed == "saved" and not board.entries_then
        if untold or not self.is_merged(board):
            hidden |= {"since", "for", "strip"}
        return hidden

    def pane(
        self, board: Board, row: FindingRow, cells: int, height: int
    ) -> list[Line]:
        from poolwatch.tui.panels.finding_detail import finding_pane

        return finding_pane(board, row.finding, cells, height)

    def leads_to(self, board: Board, row: FindingRow) -> Drill | None:
        """Lead to its holds, else to its waits, else to the process that is silent."""
        finding = row.finding
        if finding.holds and self.is_merged(board):
            return Drill("holds", f"finding={quoted(str(finding.key))}")
        if finding.holds:
            process = finding.holds[0][0]
            return Drill("holds", f"finding={finding.kind} {of_process(process)}")
        if finding.waits and finding.pool:
            return Drill("waits", f"pool={quoted(finding.pool)}")
        pid = finding.key.about.rpartition(" ")[2]
        if finding.kind == "unreachable" and pid.isdigit():
            return Drill("processes", f"pid={pid}")
        return None

    def sought(self, row: FindingRow) -> Sought:
        return Sought(row.finding.kind, row.finding.pool, row.finding.sites)

    def place(self, row: FindingRow) -> Frame | None:
        return row.finding.sites[0] if row.finding.sites else None

    def issue(self, board: Board, row: FindingRow) -> str:
        from poolwatch.tui.panels.issue import finding_issue

        return finding_issue(board, row.finding)


def _without_words(finding: Finding | FleetFinding) -> tuple[Any, ...]:
    """What tells a finding from the others of its process."""
    return finding.kind, finding.pool, tuple(finding.sites), tuple(finding.holds)


def _row(board: Board, finding: Merged) -> FindingRow:
    return FindingRow(finding.key, finding, board.entry(finding), board)
