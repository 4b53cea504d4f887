"""View 3: every session of the databases in question, and whose it is."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from poolwatch.diagnosis.sessions import server_of
from poolwatch.model import Frame, Process, ServerStatus
from poolwatch.text.format import duration, neutral, one_line, place
from poolwatch.text.naming import process_name
from poolwatch.tui.draw.gauge import bar
from poolwatch.tui.draw.line import Line, Run, right, tail
from poolwatch.tui.draw.table import (
    Column,
    age_cell,
    event_cell,
    process_cell,
    site_cell,
    text_cell,
)
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import short_state
from poolwatch.tui.state.session_rows import (
    Kind,
    SessionRow,
    address,
    stranger,
    whose,
)
from poolwatch.tui.views.view import Detail, SessionOnServer, View, site_values

GAUGE = 16
"""Width of the gauge of sessions, in cells."""

_TITLES: dict[Kind, str] = {
    "held": "held",
    "idle": "idle in pools",
    "not ours": "not ours",
    "nobody's": "nobody's",
    "poolwatch": "poolwatch's own",
}


def _whose(row: SessionRow) -> Run:
    shape, ink = row.mark
    return f"{shape} {whose(row)}", ink if ink in ("bad", "warn") else "text"


def where(row: SessionRow, cells: int) -> Line:
    """Draw the call site, or who else has the session."""
    if row.kept is not None:
        words = "lock requested" if row.lock else "keeps a lock, last used"
        text = f"{words} at {place(row.site)}"
        return (
            (tail(text if len(text) <= cells else place(row.site), cells), "strong"),
        )
    if row.hold is not None:
        return site_cell(row.hold.hold, cells, "strong")
    if row.departed is not None:
        text = f"given up by {process_cell(row.departed.process)[0]}"
        ago = f" {duration(row.departed.connection.closed_s)} ago"
        return (
            (tail(text + ago if len(text + ago) <= cells else text, cells), "text"),
        )
    if row.kind == "idle":
        text = f"last used by {place(row.site)}"
        return ((tail(text if len(text) <= cells else place(row.site), cells), "text"),)
    if row.kind == "poolwatch":
        return (
            (
                one_line(f"reads the server, {address(row)}", cells).ljust(cells),
                "faint",
            ),
        )
    text = stranger(row, with_port=len(stranger(row, with_port=True)) <= cells)
    return ((one_line(text, cells).ljust(cells), "muted"),)


def _where_text(row: SessionRow) -> str | None:
    if row.site is not None:
        return f"{place(row.site, 99)} {row.site.function}"
    return None if row.backend is None else stranger(row, with_port=True)


def _state(row: SessionRow) -> Run:
    state = short_state(row.row)
    if state is None:
        return "-", "faint"
    harmful = row.node is not None and row.node.is_root
    return neutral(state), "warn" if harmful else "text"


def _state_age(row: SessionRow) -> float | None:
    return row.row.state_age_s if row.row else None


def _xact_age(row: SessionRow) -> float | None:
    return row.row.xact_age_s if row.row else None


def _xmin(row: SessionRow) -> int | None:
    return row.row.xmin_age if row.row else None


def _xmin_cell(row: SessionRow) -> Run:
    age = _xmin(row)
    return ("-", "faint") if age is None else (f"{age:,}", "text")


def event(row: SessionRow) -> str | None:
    """Return the wait event."""
    return row.row.wait_event if row.row else None


def _database(row: SessionRow) -> str | None:
    if row.backend is not None:
        return row.backend.database
    return None if row.url is None else unquote(row.url.path.removeprefix("/")) or None


def _user(row: SessionRow) -> str | None:
    if row.backend is not None:
        return row.backend.user
    return unquote(row.url.username or "") or None if row.url else None


# fmt: off
PID: Column[SessionRow] = Column(
    "pid", "pid", 7, 7, 0, lambda row: (str(row.session.pid or "-"), "muted"),
    place=right, value=lambda row: row.session.pid, field="pid")
STATE: Column[SessionRow] = Column(
    "state", "state", 7, 8, 3, _state, value=lambda row: short_state(row.row),
    field="state")
STATEMENT: Column[SessionRow] = Column(
    "statement", "statement", 14, 400, 5,
    lambda row: (one_line(row.statement or "-"), "muted"),
    value=lambda row: row.statement, field="statement")
COLUMNS: tuple[Column[SessionRow], ...] = (
    PID,
    Column("whose", "whose", 15, 26, 1, _whose, value=whose, field="holder"),
    Column("where", "call site, or who else", 20, 36, 2, draw=where,
           value=_where_text, field="site"),
    STATE,
    Column("for", "for", 6, 6, 4, lambda row: age_cell(_state_age(row)), place=right,
           value=_state_age, field="for"),
    Column("xact", "xact", 6, 6, 6, lambda row: age_cell(_xact_age(row)), place=right,
           value=_xact_age, field="xact"),
    Column("xmin", "xmin", 6, 9, 8, _xmin_cell, place=right, value=_xmin,
           field="xmin"),
    Column("wait event", "wait event", 14, 20, 7,
           lambda row: event_cell(event(row)), value=event,
           field="wait"),
    Column("database", "database", 8, 12, 9,
           lambda row: text_cell(_database(row) or "-"), value=_database,
           field="database"),
    Column("user", "user", 8, 12, 10, lambda row: text_cell(_user(row) or "-"),
           value=_user, field="user"),
    STATEMENT,
)
# fmt: on


def session_fields(row: SessionRow) -> dict[str, list[Any]]:
    """Return the fields that no column has, or has in one form only."""
    process = row.process
    hold = row.session.hold
    return {
        "site": site_values(row.site),
        "caller": site_values(hold.caller if hold else None),
        "whose": [row.kind, whose(row)],
        "app": [
            *((process.name, process.program) if process else ()),
            *((row.backend.application,) if row.backend else ()),
        ],
        "address": [address(row, with_port=True)],
        "pool": [row.pool],
        "process": [process_cell(process)[0] if process else None],
        "pid": [row.session.pid, process.pid if process else None],
        "state": [short_state(row.row), row.row.state if row.row else None],
        "verdict": [row.hold.verdict, row.hold.word] if row.hold else [],
    }


SESSION_FIELDS = (
    "site", "caller", "whose", "app", "address", "pool", "process", "pid", "state",
    "verdict",
)  # fmt: skip


class SessionsView(View[SessionRow]):
    """The sessions of the servers."""

    name = "sessions"
    short = "sess"
    columns = COLUMNS
    more_fields = SESSION_FIELDS
    has_labels = True

    def rows(self, board: Board) -> list[SessionRow]:
        return list(board.sessions.values())

    def count(self, board: Board) -> Run:
        count = len(board.trees.sessions)
        return (str(count), "strong") if count else none_known(board)

    def labels(self, row: SessionRow) -> Mapping[str, str]:
        return row.session.hold.labels if row.session.hold else {}

    def fields(self, row: SessionRow) -> dict[str, list[Any]]:
        return session_fields(row)

    def with_roots(
        self, board: Board, kept: list[SessionRow], rows: Sequence[SessionRow]
    ) -> list[SessionRow]:
        return board.trees.with_roots(kept, rows, lambda row: row.key)

    def title(self, board: Board) -> Line:
        title: list[Run] = []
        servers = _read_servers(board)
        left_out = sum(status.left_out for status in servers)
        reason = unread(board) if board.sessions else None
        if left_out:
            title.append((f"  {left_out} more left out", "warn"))
        if reason:
            title.append((f"  {one_line(reason, 120)}", "warn"))
        if board.filter.text:  # which needs the room
            return tuple(title)
        counts = Counter(row.kind for row in board.sessions.values())
        kinds: list[Run] = []
        for kind, text in _TITLES.items():
            if counts[kind]:
                ink = "warn" if kind == "nobody's" else "text"
                kinds += [(f"  {counts[kind]}", ink), (f" {text}", "muted")]
        return (*kinds, *title, *_gauge(servers))

    def empty(self, board: Board) -> str:
        return unread(board) or "no session is known"

    def owner(self, row: SessionRow) -> Process | None:
        return row.session.process

    def pane(
        self, board: Board, row: SessionRow, cells: int, height: int
    ) -> list[Line]:
        from poolwatch.tui.panels.session_detail import session_pane

        return session_pane(board, row, cells, height)

    def leads_to(self, board: Board, row: SessionRow) -> Detail:
        return Detail(row.hold or row)

    def session(self, board: Board, row: SessionRow) -> SessionOnServer:
        return on_server(board, row)

    def place(self, row: SessionRow) -> Frame | None:
        return row.site

    def issue(self, board: Board, row: SessionRow) -> str:
        from poolwatch.tui.panels.session_detail import session_issue

        return session_issue(board, row)


def _read_servers(board: Board) -> list[ServerStatus]:
    """Return a status of each server that was read; that with its sessions first."""
    found: dict[str, ServerStatus] = {}
    for process in board.snapshot.processes:
        for status in process.servers:
            if status.error is None:
                known = found.setdefault(server_of(process, status), status)
                if len(status.others) + status.left_out > len(known.others):
                    found[server_of(process, status)] = status
    return list(found.values())


def on_server(board: Board, row: SessionRow) -> SessionOnServer:
    """Return the session of a row with its server, for an action."""
    if row.hold is not None:
        return SessionOnServer.of_hold(row.hold)
    statuses = (
        status
        for process in board.snapshot.processes
        for status in process.servers
        if server_of(process, status) == row.key[0]
    )
    return SessionOnServer(row.session, next(statuses, None))


def none_known(board: Board) -> Run:
    """Return the count of no session: a question mark if no server was read."""
    return ("0" if unread(board) is None else "?"), "muted"


def unread(board: Board) -> str | None:
    """Return why sessions are missing, one sentence; None if none is known to be."""
    if board.incident is not None:
        return "an incident snapshot has no server view"
    if board.moment is not None:
        foreign = any(row.backend is not None for row in board.sessions.values())
        return None if foreign else "the history keeps no sessions of other programs"
    if board.snapshot.dsn_error is not None:
        return board.snapshot.dsn_error
    errors = [
        (process, status.error)
        for process in board.snapshot.processes
        for status in process.servers
        if status.error is not None
    ]
    if errors:
        process, error = errors[0]
        return (
            f"the server of {process.pid} {process_name(process)} is not read: {error}"
        )
    if board.snapshot.processes and not _read_servers(board):
        return "no server is read: no pool has a server view"
    return None


def _gauge(servers: Sequence[ServerStatus]) -> Line:
    """Draw the sessions of a server, of those that it accepts."""
    if len(servers) != 1:
        return ()
    sessions, most = servers[0].sessions, servers[0].max_connections
    if sessions is None or not most:
        return ()
    share = sessions / most
    ink = "warn" if share >= 0.9 else "accent"
    figures: Run = (f" {sessions} of {most} on the server", "text")
    return (("  ", "text"), *bar(share, GAUGE, ink), figures)
