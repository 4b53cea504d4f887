"""View 4: who holds up whom, as a tree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from poolwatch.diagnosis.blocking import Node
from poolwatch.diagnosis.common import doing_now
from poolwatch.diagnosis.sessions import IN_TRANSACTION, Key
from poolwatch.model import Frame, Process
from poolwatch.text.format import duration, fit, one_line, plural
from poolwatch.tui.draw.line import Line, Run, crop, length, right
from poolwatch.tui.draw.table import Column, Table, age_cell, process_cell
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import VERDICTS
from poolwatch.tui.state.session_rows import (
    SessionRow,
    address,
    application,
    session_row,
    stranger,
    whose,
)
from poolwatch.tui.state.trees import QUEUED, Trees
from poolwatch.tui.views.sessions import (
    PID,
    SESSION_FIELDS,
    STATE,
    STATEMENT,
    event,
    none_known,
    on_server,
    session_fields,
    unread,
    where,
)
from poolwatch.tui.views.view import Detail, SessionOnServer, View

NARROW = 100
"""Below this width the names of strangers stand in two columns."""
DEEPEST = 8
"""Most levels that are drawn as lines; deeper ones are counted."""
_ORDINALS = {1: "1st", 2: "2nd", 3: "3rd"}


@dataclass(frozen=True, slots=True, eq=False)
class TreeRow:
    """One session of a tree."""

    key: Key
    session: SessionRow
    node: Node
    trees: Trees
    ends: tuple[bool, ...] | None = None
    """For each level below the root: whether no sibling follows; the last ones of a
    deep tree. None if the rows are in another order."""

    @property
    def waited_s(self) -> float | None:
        """How long it has waited; None for a root."""
        row = self.session.row
        return row.state_age_s if row and row.blocked_by else None


def _branch(line: TreeRow, cells: int) -> str:
    """Draw the lines that lead from the root to a session."""
    if not line.ends:
        return ""
    step = 3 if cells >= 30 else 2
    *above, last = line.ends
    hidden = line.node.depth - len(line.ends)
    deeper = f"+{hidden} " if hidden else ""
    lines = "".join([" " * step if end else "│".ljust(step) for end in above])
    return deeper + lines + ("└─" if last else "├─") + " " * (step - 2)


def _who(line: TreeRow, cells: int) -> Line:
    node = line.node
    shape, ink, _ = VERDICTS["ROOT" if node.is_root else "BLOCKED"]
    mark = f"{shape} ROOT " if node.is_root else f"{'↺' if node.cycle else shape} "
    runs: Line = (
        (_branch(line, cells), "faint"),
        (mark, ink),
        (_name(line, wide=cells >= 30), "strong" if node.is_root else "text"),
        (_also(node), "muted"),
    )
    drawn = crop(tuple(run for run in runs if run[0]), cells)
    return (*drawn, (" " * (cells - length(drawn)), "text"))


def _name(line: TreeRow, *, wide: bool = True) -> str:
    if line.session.kind in ("held", "idle", "unknown", "poolwatch"):
        return whose(line.session)
    if line.session.kind == "nobody's":
        return f"nobody's: given up by {process_cell(line.session.departed.process)[0]}"  # type: ignore[union-attr]
    if wide:
        return f"not ours: {stranger(line.session)}"
    return f'"{application(line.session)}"'


def _also(node: Node) -> str:
    if not node.also:
        return ""
    others = f" and {len(node.also) - 1} more" if len(node.also) > 1 else ""
    first = str(node.also[0] or "a prepared transaction")
    return f" (+ waits for {first}{others})"


def _site(line: TreeRow, cells: int) -> Line:
    if line.session.site is not None:
        return where(line.session, cells)
    return ((fit("-", cells), "faint"),)


def _narrow_site(line: TreeRow, cells: int) -> Line:
    if line.session.kind != "not ours":
        return _site(line, cells)
    return ((fit(f"not ours {address(line.session)}", cells), "muted"),)


def _site_text(line: TreeRow) -> str | None:
    site = line.session.site
    return None if site is None else f"{site.file}:{site.line} {site.function}"


def _process(line: TreeRow) -> Run:
    process = line.session.process
    return ("-", "faint") if process is None else process_cell(process)


def _holds_up(line: TreeRow) -> Run:
    count = line.node.holds_up
    return (str(count), "strong") if count else ("-", "faint")


def _waits_for_text(line: TreeRow) -> str:
    """Say what a session waits for: a lock of another one; a root: what it does."""
    if line.node.is_root:
        return _doing(line.session)
    text = event(line.session) or "-"
    parent = line.trees.parent(line.key)
    if parent is None:
        return "itself, in a cycle" if line.node.cycle else "the chain goes on above"
    if text == QUEUED:
        at = line.trees.queue_place(line.key) or 1
        return f"row, {_ORDINALS.get(at, f'{at}th')} in queue"
    of = f"of {parent.session.pid or 'a prepared transaction'}"
    if text == "Lock:transactionid":
        return f"row {of}"
    kind = text.removeprefix("Lock:")
    return f"{kind} lock {of}" if text.startswith("Lock:") else one_line(text, 40)


def _doing(row: SessionRow) -> str:
    hold, server = row.session.hold, row.row
    if hold is not None and hold.now and not hold.may_have_ended:
        doing = doing_now(hold.site, hold.now)
        if doing:
            return doing
    if server is not None and (server.state or "").startswith(IN_TRANSACTION):
        return f"its client, {duration(server.state_age_s)}"
    return one_line(event(row) or "-", 40)


def _waits_for(line: TreeRow) -> Run:
    text = _waits_for_text(line)
    return text, "faint" if text == "-" else "muted" if line.node.is_root else "text"


def _of_session(column: Column[SessionRow], rank: int) -> Column[TreeRow]:
    """Return a column of the sessions, for the rows of trees."""
    cell, value = column.cell, column.value
    assert cell is not None  # both are columns of texts that sort
    assert value is not None
    return Column(
        column.key,
        column.title,
        column.least,
        column.most,
        rank,
        lambda line: cell(line.session),
        place=column.place,
        value=lambda line: value(line.session),
        field=column.field,
    )


# fmt: off
COLUMNS: tuple[Column[TreeRow], ...] = (
    Column("who", "who", 23, 40, 0, draw=_who, value=_name, field="holder"),
    Column("holds up", "holds up", 8, 8, 1, _holds_up, place=right,
           value=lambda line: line.node.holds_up, field="holds-up"),
    Column("waits", "waits", 6, 6, 2, lambda line: age_cell(line.waited_s),
           place=right, value=lambda line: line.waited_s, field="waits"),
    Column("call site", "call site", 20, 22, 3, draw=_site, value=_site_text,
           field="site"),
    Column("process", "process", 12, 16, 7, _process,
           value=lambda line: _process(line)[0], field="process"),
    _of_session(PID, 4),
    _of_session(STATE, 5),
    Column("waits for", "waits for", 14, 24, 6, _waits_for, value=_waits_for_text),
    _of_session(STATEMENT, 8),
)
# fmt: on
_NARROW_COLUMNS = tuple(
    replace(column, title="up", least=3, most=3)
    if column.key == "holds up"
    else replace(column, least=22)
    if column.key == "who"
    else replace(column, draw=_narrow_site, least=21)
    if column.key == "call site"
    else column
    for column in COLUMNS
)


class BlockingView(View[TreeRow]):
    """The sessions that wait for locks, below those that block them."""

    name = "blocking"
    short = "block"
    columns = COLUMNS
    order = "by held up"
    more_fields = SESSION_FIELDS
    has_labels = True

    def rows(self, board: Board) -> list[TreeRow]:
        trees, sessions = board.trees, board.sessions
        rows = []
        for node in trees.nodes:
            session = sessions.get(node.key) or session_row(
                node.key, node.session, trees, board.rows
            )
            rows.append(TreeRow(node.key, session, node, trees))
        return _as_trees(rows)

    def count(self, board: Board) -> Run:
        count = len(board.trees.nodes)
        return (str(count), "bad") if count else none_known(board)

    def labels(self, row: TreeRow) -> Mapping[str, str]:
        hold = row.session.session.hold
        return hold.labels if hold else {}

    def fields(self, row: TreeRow) -> dict[str, list[Any]]:
        return session_fields(row.session)

    def with_roots(
        self, board: Board, kept: list[TreeRow], rows: Sequence[TreeRow]
    ) -> list[TreeRow]:
        shown = board.trees.with_roots(kept, rows, lambda row: row.key, path=True)
        return _as_trees(shown)

    def title(self, board: Board) -> Line:
        nodes = board.trees.nodes
        if not nodes:
            return ()
        roots = sum(node.is_root for node in nodes)
        held_up = len(nodes) - roots
        ours = sum(not node.is_root and bool(node.session.process) for node in nodes)
        of_them = "all" if ours == held_up else ours or "none"
        verb = "holds" if roots == 1 else "hold"
        text = f"{plural(roots, 'root')} {verb} up {plural(held_up, 'session')}"
        title: list[Run] = [(f"  {text}, {of_them} of them ours", "text")]
        tops = [node for node in nodes if node.depth == 0 and not node.is_root]
        cycles = sum(node.cycle for node in tops)
        if cycles:
            title.append((f"  {plural(cycles, 'cycle')} of waits", "bad"))
        if len(tops) > cycles:
            unknown = plural(len(tops) - cycles, "chain")
            title.append((f"  {unknown} with an unknown root", "warn"))
        return tuple(title)

    def empty(self, board: Board) -> str:
        reason = unread(board)
        return reason or "no session waits for a lock of another one"

    def owner(self, row: TreeRow) -> Process | None:
        return row.session.session.process

    def layout(self, board: Board, cells: int) -> Table[TreeRow]:
        columns = self.columns if cells >= NARROW else _NARROW_COLUMNS
        hidden = set() if board.several_processes else {"process"}
        return Table(columns, cells, hidden)

    def line(
        self,
        board: Board,
        table: Table[TreeRow],
        row: TreeRow,
        *,
        selected: bool,
        dim: bool,
    ) -> Line:
        state = self.state(board)
        if state.sort is not None or state.reverse:
            row = replace(row, ends=None)  # in another order there are no trees
        return super().line(board, table, row, selected=selected, dim=dim)

    def pane(self, board: Board, row: TreeRow, cells: int, height: int) -> list[Line]:
        from poolwatch.tui.panels.session_detail import session_pane

        return session_pane(board, row.session, cells, height)

    def leads_to(self, board: Board, row: TreeRow) -> Detail:
        return Detail(row.session.hold or row.session)

    def session(self, board: Board, row: TreeRow) -> SessionOnServer:
        return on_server(board, row.session)

    def place(self, row: TreeRow) -> Frame | None:
        return row.session.site

    def issue(self, board: Board, row: TreeRow) -> str:
        from poolwatch.tui.panels.session_detail import session_issue

        return session_issue(board, row.session)


def _as_trees(rows: Sequence[TreeRow]) -> list[TreeRow]:
    """Give each row the lines of its tree; some rows of a tree may be missing."""
    found = []
    followed: list[bool] = []
    for row in reversed(rows):
        depth = row.node.depth
        del followed[depth + 1 :]
        followed += [False] * (depth + 1 - len(followed))
        shown = followed[max(1, depth + 1 - DEEPEST) : depth + 1]
        ends = tuple([not each for each in shown])
        followed[depth] = True
        found.append(replace(row, ends=ends))
    return found[::-1]
