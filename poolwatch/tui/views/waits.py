"""View 2: who waits for a connection, and how long until the timeout."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

from poolwatch.model import Frame, Process
from poolwatch.text.format import duration, lasts, place
from poolwatch.text.naming import holder_name
from poolwatch.tui.draw.gauge import bar
from poolwatch.tui.draw.line import Line, Run, right
from poolwatch.tui.draw.table import TIMES, Column, process_cell, site_cell, text_cell
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import process_key
from poolwatch.tui.state.wait_rows import WaitGroup
from poolwatch.tui.views.view import Detail, Drill, View, same_place, site_values


def _count(line: WaitGroup) -> Run:
    return f"{TIMES}{len(line.waits)}", "strong"


def _bar(line: WaitGroup, cells: int) -> Line:
    return bar(line.share, cells, "bad" if line.share > 0.66 else "warn")


def _timeout(line: WaitGroup) -> Run:
    timeout = line.pool.timeout_s if line.pool else None
    return (f"of {duration(timeout)}" if timeout else ""), "muted"


def _site(line: WaitGroup, cells: int) -> Line:
    return site_cell(line.longest, cells, "strong")


def _site_text(line: WaitGroup) -> str | None:
    site = line.longest.site
    return f"{place(site, 99)} {site.function}" if site else None


def _holder(line: WaitGroup) -> Run:
    more = f" +{len(line.waits) - 1}" if len(line.waits) > 1 else ""
    text, ink = text_cell(holder_name(line.longest), "text")
    return text + more, ink


# fmt: off
COLUMNS: tuple[Column[WaitGroup], ...] = (
    Column("count", "waits", 5, 6, 1, _count, place=right,
           value=lambda line: len(line.waits)),
    Column("waited", "longest", 7, 7, 0,
           lambda line: (lasts(line.longest), "strong"), place=right,
           value=lambda line: line.longest.known_s, field="waited"),
    Column("bar", "", 10, 24, 5, draw=_bar),
    Column("timeout", "timeout", 8, 8, 4, _timeout, value=lambda line: line.share),
    Column("call site", "call site", 20, 32, 2, draw=_site, value=_site_text,
           field="site"),
    Column("holder", "holder", 13, 20, 3, _holder,
           value=lambda line: holder_name(line.longest), field="holder"),
    Column("pool", "pool", 8, 18, 6, lambda line: text_cell(line.pool_name),
           value=lambda line: line.pool_name, field="pool"),
    Column("process", "process", 8, 22, 7,
           lambda line: process_cell(line.process, line.processes),
           value=lambda line: process_cell(line.process)[0], field="process"),
    Column("labels", "labels", 12, 60, 8,
           lambda line: text_cell(" ".join(line.longest.labels.values()))),
)
# fmt: on


class WaitsView(View[WaitGroup]):
    """Who waits for a connection."""

    name = "waits"
    short = "waits"
    columns = COLUMNS
    more_fields = "site", "caller", "thread", "task", "app", "pid", "host"
    has_labels = True
    order = "longest first"

    def rows(self, board: Board) -> list[WaitGroup]:
        rows = []
        for process in board.snapshot.processes:
            pools = {pool.id: pool for pool in process.pools}
            owner = process_key(process)
            rows += [
                WaitGroup(
                    (*owner, wait.id),
                    process,
                    pools.get(wait.pool),
                    (wait,),
                    ((*owner, wait.id),),
                    frozenset({owner}),
                )
                for wait in process.waits
            ]
        return sorted(rows, key=lambda row: (-row.longest.known_s, str(row.key)))

    def count(self, board: Board) -> Run:
        count = sum(len(process.waits) for process in board.snapshot.processes)
        return str(count), "bad" if count else "muted"

    def members(self, row: WaitGroup) -> Sequence[Hashable]:
        return row.members

    def owner(self, row: WaitGroup) -> Process:
        return row.process

    def merges(self, board: Board) -> bool:
        return True

    def merge(self, rows: Sequence[WaitGroup]) -> list[WaitGroup]:
        groups: dict[Any, list[WaitGroup]] = {}
        for row in rows:
            wait = row.longest
            groups.setdefault((wait.site, wait.caller, row.pool_name), []).append(row)
        return [
            WaitGroup(
                key,
                group[0].process,
                group[0].pool,
                tuple([row.longest for row in group]),
                tuple([row.key for row in group]),
                frozenset(process_key(row.process) for row in group),
            )
            for key, group in groups.items()
        ]

    def labels(self, row: WaitGroup) -> Mapping[str, str]:
        return row.longest.labels

    def fields(self, row: WaitGroup) -> dict[str, list[Any]]:
        wait, process = row.longest, row.process
        return {
            "site": site_values(wait.site),
            "caller": site_values(wait.caller),
            "thread": [wait.thread],
            "task": [wait.task],
            "app": [process.name, process.program],
            "pid": [process.pid],
            "host": [process.host],
        }

    def hidden_columns(self, board: Board) -> set[str]:
        hidden = set() if self.is_merged(board) else {"count"}
        if not board.several_processes:
            hidden.add("process")
        return hidden

    def empty(self, board: Board) -> str:
        return "no request waits for a connection"

    def pane(self, board: Board, row: WaitGroup, cells: int, height: int) -> list[Line]:
        from poolwatch.tui.panels.wait_detail import wait_pane

        return wait_pane(board, row, cells, height)

    def leads_to(self, board: Board, row: WaitGroup) -> Drill | Detail:
        if len(row.waits) == 1:
            return Detail(row)
        wait = row.longest
        words = same_place(board, wait.site, wait.caller, row.pool_name)
        return Drill("waits", words, each=True)

    def issue(self, board: Board, row: WaitGroup) -> str:
        from poolwatch.tui.panels.issue import wait_issue

        return wait_issue(board, row)

    def place(self, row: WaitGroup) -> Frame | None:
        return row.longest.site
