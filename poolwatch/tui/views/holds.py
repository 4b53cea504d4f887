"""View 1: the connections that are checked out; equal holds are one row if merged."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from poolwatch.diagnosis.sessions import Key as SessionKey
from poolwatch.model import Frame, Process
from poolwatch.text.format import duration, lasts, local_time, neutral, one_line, place
from poolwatch.tui.draw.line import Line, Run, right
from poolwatch.tui.draw.table import (
    MARGIN,
    TIMES,
    Column,
    Table,
    age_cell,
    event_cell,
    process_cell,
    site_cell,
    text_cell,
)
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import Row, by_harm, process_key, short_state
from poolwatch.tui.views.view import (
    SELECTED,
    Detail,
    Drill,
    SessionOnServer,
    View,
    same_place,
    site_values,
)

MERGED_FROM = 100
"""From this number of holds on, equal holds are merged unless the user chooses."""
YOUNG_S = 1.0
"""Seconds; shorter holds without a fault come and go faster than one can read."""
YOUNG_FROM = 10
"""Number of such holds above which they are folded into one row."""
YOUNG = "young"
"""Key of that row."""
SITE_LEAST = ((50, 12), (100, 20), (1000, 26))
"""Widths of the terminal, and the narrowest call site below each."""


@dataclass(frozen=True, slots=True, eq=False)
class HoldGroup:
    """One row: a hold, or several with the same verdict, call site and pool."""

    key: Any
    holds: tuple[Row, ...]
    """The most harmful first."""
    board: Board

    @property
    def first(self) -> Row:
        """The most harmful hold, which the row is drawn from."""
        return self.holds[0]

    @property
    def longest_s(self) -> float:
        """How long the longest is held."""
        return max(row.hold.known_s for row in self.holds)

    @property
    def processes(self) -> int:
        """Number of processes that have such a hold."""
        return len({process_key(row.process) for row in self.holds})

    @property
    def silent_s(self) -> float | None:
        """Seconds since the process last answered, if it is silent."""
        return self.board.last_seen(process_key(self.first.process))

    @property
    def ending(self) -> str | None:
        """How the hold ended; None while it is open."""
        known = self.first.key in self.board.rows
        return None if known else self.board.ending(self.first)


def _verdict(line: HoldGroup) -> Run:
    text, ink = line.first.mark
    return (f"○ {line.ending}" if line.ending else text), ink


def _harm(line: HoldGroup) -> float:
    """Return how harmful the verdict is: the most harmful has the largest number."""
    return -float(by_harm(line.first)[0])


def _emphasis(row: Row) -> str:
    """Return the ink for the most important cells of a row."""
    return "text" if row.word == "ok" else "strong"


def _count(line: HoldGroup) -> Run:
    return f"{TIMES}{len(line.holds)}", "strong"


def _held(line: HoldGroup) -> Run:
    longest = max(line.holds, key=lambda row: row.hold.known_s)
    return lasts(longest.hold), _emphasis(line.first)


def _holder(line: HoldGroup) -> Run:
    row = line.first
    labels = " ".join(list(row.hold.labels.values())[:4])
    name = row.holder.replace("ThreadPoolExecutor-", "Executor-")
    more = f" +{len(line.holds) - 1}" if len(line.holds) > 1 else ""
    return one_line(f"{name} {labels}", 60) + more, "text"


def _site(line: HoldGroup, cells: int) -> Line:
    return site_cell(line.first.hold, cells, _emphasis(line.first))


def _site_text(line: HoldGroup) -> str | None:
    hold = line.first.hold
    if hold.site is None:
        return None
    caller = f" from {place(hold.caller, 99)}" if hold.caller else ""
    return f"{place(hold.site, 99)}{caller} {hold.site.function}"


def _process(line: HoldGroup) -> Run:
    cell = process_cell(line.first.process, line.processes)
    return cell if line.processes > 1 else _as_last_seen(line, cell)


def _backend(line: HoldGroup) -> Run:
    pid = line.first.hold.backend_pid
    if pid is None or len(line.holds) > 1:
        return "-", "faint"
    return str(pid), "muted"


def _state(line: HoldGroup) -> Run:
    state = short_state(line.first.hold.server)
    if state is None:
        return "-", "faint"
    harmful = line.first.word in ("IDLE-TX", "ROOT")
    return neutral(state), "warn" if harmful else "text"


def _state_age(line: HoldGroup) -> float | None:
    server = line.first.hold.server
    return server.state_age_s if server else None


def _xact_age(line: HoldGroup) -> float | None:
    server = line.first.hold.server
    return server.xact_age_s if server else None


def _event(line: HoldGroup) -> str | None:
    server = line.first.hold.server
    return server.wait_event if server else None


def _text(line: HoldGroup) -> str | None:
    """Return the statement in pg_stat_activity, or else the last one that was sent."""
    server = line.first.hold.server
    return (server.query if server else None) or line.first.hold.statement


def _statement(line: HoldGroup) -> Run:
    text = _text(line)
    return _as_last_seen(line, (one_line(text), "muted") if text else ("-", "faint"))


def _as_last_seen(line: HoldGroup, cell: Run) -> Run:
    age = line.silent_s
    text, ink = cell
    return (text if age is None else f"{duration(age)} ago: {text}"), ink


def _place_in_tree(line: HoldGroup) -> SessionKey | None:
    node = line.first.node
    return node.key if node else None


# fmt: off
COLUMNS: tuple[Column[HoldGroup], ...] = (
    Column("verdict", "verdict", 10, 11, 0, _verdict,
           value=_harm, field="verdict"),
    Column("count", "holds", 6, 7, 1, _count, place=right,
           value=lambda line: len(line.holds)),
    Column("held", "held", 6, 6, 1, _held, place=right,
           value=lambda line: line.longest_s, field="held"),
    Column("holder", "holder", 13, 20, 3, _holder,
           value=lambda line: line.first.holder, field="holder"),
    Column("call site", "call site", 20, 32, 2, draw=_site,
           value=_site_text, field="site"),
    Column("pool", "pool", 7, 10, 9, lambda line: text_cell(line.first.pool_name),
           value=lambda line: line.first.pool_name, field="pool"),
    Column("process", "process", 8, 16, 10, _process,
           value=lambda line: process_cell(line.first.process)[0], field="process"),
    Column("backend", "backend", 7, 7, 6, _backend, place=right,
           value=lambda line: line.first.hold.backend_pid),
    Column("state", "state", 7, 8, 4, _state,
           value=lambda line: short_state(line.first.hold.server), field="state"),
    Column("for", "for", 6, 6, 7, lambda line: age_cell(_state_age(line)),
           place=right, value=_state_age, field="for"),
    Column("xact", "xact", 6, 6, 11, lambda line: age_cell(_xact_age(line)),
           place=right, value=_xact_age, field="xact"),
    Column("wait event", "wait event", 16, 20, 8,
           lambda line: event_cell(_event(line)), value=_event, field="wait"),
    Column("statement", "statement", 14, 400, 5, _statement,
           value=_text, field="statement"),
)
# fmt: on


class HoldsView(View[HoldGroup]):
    """Who holds the connections."""

    name = "holds"
    short = "holds"
    summaries = frozenset({YOUNG})
    columns = COLUMNS
    more_fields = (
        "site", "caller", "thread", "task", "app", "pid", "host", "finding",
    )  # fmt: skip
    has_labels = True

    def rows(self, board: Board) -> list[HoldGroup]:
        return [HoldGroup(row.key, (row,), board) for row in board.rows.values()]

    def count(self, board: Board) -> Run:
        worst = next(iter(board.rows.values()), None)
        harmful = worst is not None and worst.mark[1] == "bad"
        return str(len(board.rows)), "bad" if harmful else "strong"

    def members(self, row: HoldGroup) -> Sequence[Hashable]:
        return [hold.key for hold in row.holds]

    def owner(self, row: HoldGroup) -> Process:
        return row.first.process

    def merges(self, board: Board) -> bool:
        return len(board.rows) >= MERGED_FROM

    def merge(self, rows: Sequence[HoldGroup]) -> list[HoldGroup]:
        groups: dict[Any, list[Row]] = {}
        for group in rows:
            row = group.first
            site = row.hold.site or row.hold.used_at
            key = row.word, site, row.hold.caller, row.pool_name
            groups.setdefault(key, []).append(row)
        merged = [HoldGroup(key, tuple(g), rows[0].board) for key, g in groups.items()]
        return sorted(
            merged, key=lambda group: (by_harm(group.first)[0], -len(group.holds))
        )

    def fold(self, board: Board, rows: list[HoldGroup]) -> list[HoldGroup]:
        """Fold short holds without a fault; those that a filter asks for stay."""
        selected = self.state(board).selection.key
        young = [
            row
            for row in rows
            if row.first.word == "ok"
            and row.longest_s < YOUNG_S
            and row.key != selected
            and row.silent_s is None
        ]
        if len(young) <= YOUNG_FROM or board.filter.tests:
            return rows
        folded = {row.key for row in young}
        holds = tuple(row.first for row in young)
        return [
            *(row for row in rows if row.key not in folded),
            HoldGroup(YOUNG, holds, board),
        ]

    def line(
        self,
        board: Board,
        table: Table[HoldGroup],
        row: HoldGroup,
        *,
        selected: bool,
        dim: bool,
    ) -> Line:
        if row.key != YOUNG:
            return super().line(board, table, row, selected=selected, dim=dim)
        text = f"· {len(row.holds)} holds younger than {YOUNG_S:g} s"
        margin = SELECTED if selected else MARGIN
        key: Line = (("  (", "muted"), ("a", "accent"), (" shows them)", "muted"))
        return (margin, (text, "muted"), *key)

    def labels(self, row: HoldGroup) -> Mapping[str, str]:
        return row.first.hold.labels

    def fields(self, row: HoldGroup) -> dict[str, Sequence[Any]]:
        hold, process = row.first.hold, row.first.process
        return {
            "site": site_values(hold.site or hold.used_at),
            "caller": site_values(hold.caller),
            "thread": [hold.thread],
            "task": [hold.task],
            "app": [process.name, process.program],
            "pid": [process.pid, hold.backend_pid],
            "state": [
                short_state(hold.server),
                hold.server.state if hold.server else None,
            ],
            "verdict": [
                row.first.verdict,
                row.first.word,
                # of a root, too; but a hold that waits for a lock is not "ok"
                hold.verdict if hold.verdict == "leaked" else None,
            ],
            "host": [process.host],
            "finding": row.board.findings_of(row.first.key),
        }

    def with_roots(
        self, board: Board, kept: list[HoldGroup], rows: Sequence[HoldGroup]
    ) -> list[HoldGroup]:
        return board.trees.with_roots(kept, rows, _place_in_tree)

    def hidden_columns(self, board: Board) -> set[str]:
        """Hide pool and process if there is only one.

        An incident snapshot has no server columns: it contains no server view.
        """
        hidden = set()
        if board.incident is not None:
            hidden |= {"backend", "state", "for", "xact", "wait event"}
        if not board.several_processes:
            hidden.add("process")
        if not board.several_pools:
            hidden.add("pool")
        if not self.is_merged(board):
            hidden.add("count")
        return hidden

    def layout(self, board: Board, cells: int) -> Table[HoldGroup]:
        least = next((least for width, least in SITE_LEAST if cells < width), 32)
        columns = [
            replace(column, least=least) if column.key == "call site" else column
            for column in self.columns
        ]
        return Table(columns, cells, self.hidden_columns(board))

    def title(self, board: Board) -> Line:
        title: list[Run] = []
        if board.moment is not None:
            title += [(f" at {local_time(board.moment)}", "warn")]
        limits = {
            pool.long_after_s
            for process in board.snapshot.processes
            for pool in process.pools
            if pool.long_after_s is not None
        }
        if limits:
            texts = [duration(limit) for limit in sorted(limits)]
            few = " or ".join(dict.fromkeys([texts[0], texts[-1]]))
            title.append((f"  long = over {few} here", "muted"))
        return tuple(title)

    def empty(self, board: Board) -> str:
        return "no connection is held at this moment"

    def is_dim(self, board: Board, row: HoldGroup) -> bool:
        if row.key == YOUNG:
            return True
        return row.first.key not in board.rows

    def pane(self, board: Board, row: HoldGroup, cells: int, height: int) -> list[Line]:
        if row.key == YOUNG:
            return []
        from poolwatch.tui.panels.detail import pane_lines

        return pane_lines(board, row.first, cells, height)

    def leads_to(self, board: Board, row: HoldGroup) -> Drill | Detail | None:
        if row.key == YOUNG:
            return Drill("holds", f"verdict:ok held:<{YOUNG_S:g}s", each=True)
        if len(row.holds) == 1:
            return Detail(row.first)
        hold, name = row.first.hold, row.first.pool_name
        words = same_place(board, hold.site or hold.used_at, hold.caller, name)
        return Drill("holds", f"{words} verdict:{row.first.word}", each=True)

    def session(self, board: Board, row: HoldGroup) -> SessionOnServer | None:
        return SessionOnServer.of_hold(row.first) if len(row.holds) == 1 else None

    def issue(self, board: Board, row: HoldGroup) -> str | None:
        if row.key == YOUNG:
            return None
        from poolwatch.tui.panels.issue import hold_issue

        return hold_issue(board, row.first, len(row.holds))

    def place(self, row: HoldGroup) -> Frame | None:
        return None if row.key == YOUNG else row.first.hold.site
