"""The pane and the page of a session: whose it is, and what the server says of it."""

from __future__ import annotations

from poolwatch.text.format import duration, neutral, one_line, place, plural
from poolwatch.text.naming import process_name
from poolwatch.tui.draw.line import BLANK, Line, plain, rule
from poolwatch.tui.draw.source_lines import around
from poolwatch.tui.draw.sql import statement_lines
from poolwatch.tui.draw.stack import source_lines
from poolwatch.tui.panels.detail import full_place, pairs, pane_lines
from poolwatch.tui.panels.locks import lock_lines
from poolwatch.tui.panels.spots import PANE_TALL
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.session_rows import SessionRow, stranger, whose

_REACH = 2
"""Lines of source above and below that of its last user."""


def session_headline(row: SessionRow, *, gone: bool = False) -> Line:
    """Return pid, whose it is, and what it holds up."""
    shape, ink = row.mark
    state: Line = (("  ○ no longer seen", "muted"),) if gone else ()
    name = whose(row)
    if row.kind == "not ours":
        name = f"{name}: {stranger(row)}"
    root = f"ROOT {row.holds_up}  " if row.node is not None and row.node.is_root else ""
    return (
        *state,
        (f"  {row.session.pid}  ", "strong"),
        (f"{shape} {root}", ink),
        (name, "strong"),
    )


def session_pane(board: Board, row: SessionRow, cells: int, height: int) -> list[Line]:
    """Draw the selected session below the table; if it is a hold, as that."""
    if row.hold is not None:
        return pane_lines(board, row.hold, cells, height)
    note: Line = (("enter ", "accent"), ("all of it", "muted"))
    gone = row.key not in board.sessions
    head = rule((("SESSION", "title"), *session_headline(row, gone=gone)), note, cells)
    tall = height >= PANE_TALL
    statement = row.statement
    sql: list[Line] = (
        [(("  ", "text"), (one_line(statement), "muted"))] if statement else []
    )
    facts = pairs(_facts(row), cells - 4)
    locks = lock_lines(board, row.node, cells - 4, brief=not tall)
    if not tall:  # five lines in all
        return [head, *_why(row, cells), *facts[:1], *locks, *sql]
    return [BLANK, head, *_why(row, cells), *_source(row), *locks, *facts, *sql]


def session_lines(board: Board, row: SessionRow, cells: int) -> list[Line]:
    """Draw a session for a page that is ``cells`` wide."""
    lines = [*_why(row, cells), *_source(row)]
    lines += [BLANK] if lines else []
    lines += lock_lines(board, row.node, cells - 4)
    lines += pairs(_facts(row), cells - 4)
    if row.statement:
        lines += [BLANK, (("  STATEMENT", "title"),)]
        lines += [
            (("  ", "text"), *line)
            for line in statement_lines(row.statement, cells - 4)
        ]
    return lines


def session_issue(board: Board, row: SessionRow) -> str:
    """Describe a session in Markdown."""
    if row.hold is not None:
        from poolwatch.tui.panels.issue import hold_issue

        return hold_issue(board, row.hold)
    title = plain(session_headline(row)).strip()
    body = "\n".join(plain(line).rstrip() for line in session_lines(board, row, 100))
    return f"### Session {title}\n\n```\n{body.replace('```', '')}\n```\n"


def _why(row: SessionRow, cells: int) -> list[Line]:
    """Say why there is a session without a hold."""
    return [((f"  {text}", "text"),) for text in _reasons(row, cells)]


def _reasons(row: SessionRow, cells: int) -> list[str]:
    if row.departed is not None:
        process, gone = row.departed
        owner = f"{process_name(process)} {process.pid}"
        ago = f"{duration(gone.closed_s)} ago"
        if gone.error is None:
            text = f"{owner} closed this connection {ago}; the server still keeps it."
        else:
            text = (
                f"A checkout of {owner} at {place(gone.site)} opened it, and ended "
                f"with {gone.error} {ago}: no pool has it."
            )
        return [one_line(text, max(cells - 4, 20))]
    idle = row.session.idle
    if idle is not None:
        text = (
            f"returned to its pool {duration(idle.returned_s)} ago, after a hold of "
            f"{duration(idle.held_s)} at {place(idle.site)}"
        )
        return [one_line(text, max(cells - 4, 20))]
    if row.kind == "poolwatch":
        return ["poolwatch reads the server over it: one statement per reading."]
    return []


def _source(row: SessionRow) -> list[Line]:
    """Draw the source of its last user, if the file is on this machine."""
    idle = row.session.idle
    frame = row.site if row.lock else (idle.used if idle else None) or row.site
    if frame is None:
        return []
    title = "LOCK REQUESTED HERE" if row.lock else "LAST USED HERE"
    head: Line = ((f"  {title}", "title"), (f"  {place(frame)}", "strong"))
    source = around(frame.file, frame.line, _REACH, _REACH)
    return [head, *source_lines(source, frame.line)]


def _facts(row: SessionRow) -> list[tuple[str, str, str]]:
    server, backend = row.row, row.backend
    who = state = vacuum = ""
    if server is not None:
        state = f"{server.state or 'hidden from this role'}"
        if server.state_age_s is not None:
            state += f" for {duration(server.state_age_s)}"
        if server.xact_age_s is not None:
            state += f", transaction open for {duration(server.xact_age_s)}"
        if server.wait_event:
            state += f", waits: {server.wait_event}"
        if server.xmin_age:
            vacuum = f"holds back by {plural(server.xmin_age, 'transaction')}"
    if backend is not None:
        client = stranger(row, with_port=True)
        user, database = backend.user or "?", backend.database or "?"
        who = f"{client}, user {user}, database {database}"
        if backend.age_s is not None:
            who += f", connected {duration(backend.age_s)} ago"
    process = row.process
    owner = (
        f"{process_name(process)} {process.pid} on {process.host}" if process else ""
    )
    facts = [
        ("state", state, "text"),
        ("client", who, "text"),
        ("process", owner, "text"),
        ("call site", full_place(row.site) if row.site else "", "text"),
        ("vacuum", vacuum, "warn"),
    ]
    return [(name, neutral(value), ink) for name, value, ink in facts if value]
