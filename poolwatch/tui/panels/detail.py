"""The details of one hold: the application's side, the server's side, the stacks."""

from __future__ import annotations

from poolwatch.model import Finding, FleetFinding, Frame, Hold
from poolwatch.stacks.compare import user_frames
from poolwatch.text.format import (
    call_site,
    duration,
    local_time,
    neutral,
    one_line,
    place,
    plural,
)
from poolwatch.text.naming import process_name, task_name
from poolwatch.tui.draw.line import BLANK, Line, beside, crop, length, rule, wrap
from poolwatch.tui.draw.sql import statement_lines
from poolwatch.tui.draw.stack import Stack, shared, stack_lines
from poolwatch.tui.draw.time_bar import spent_line
from poolwatch.tui.panels.header import SEVERITIES
from poolwatch.tui.state.board import Board, Ending
from poolwatch.tui.state.rows import Row

WIDE = 110
"""Minimum width for application and server side by side."""

_ENDINGS: dict[Ending, str] = {
    "returned": "returned",
    "ended": "its process ended",
    "gone": "no longer seen",
}


def headline(row: Row, ending: Ending | None = None) -> Line:
    """Return the hold's call site, and its verdict or how it ended."""
    hold = row.hold
    where = (call_site(hold), "strong")
    if ending is not None:
        ink = "good" if ending == "returned" else "muted"
        state: Line = (
            (f"  ○ {_ENDINGS[ending]} after {duration(hold.held_s)}", ink),
            ("  as last seen", "muted"),
        )
        return (*state, ("   ", "text"), where)
    mark, mark_ink = row.mark
    return (
        (f"  {mark}", mark_ink),
        ("   held ", "muted"),
        (duration(hold.held_s), "strong"),
        ("   ", "text"),
        where,
        (f"   {neutral(row.holder[:60])}", "text"),
    )


def pane_lines(board: Board, row: Row, cells: int, height: int) -> list[Line]:
    """Draw the selected hold below the table, always in ``height`` lines.

    So another selection never shifts the table.
    """
    ending = None if row.key in board.rows else board.ending(row)
    title: Line = (("SELECTED", "title"), *headline(row, ending))
    note: Line = (("enter ", "accent"), ("all details", "muted"))
    body = detail_lines(board, row, cells)[: height - 2]
    filled = [*body, *([BLANK] * (height - 2 - len(body)))]
    return [BLANK, rule(title, note, cells), *filled]


def detail_lines(board: Board, row: Row, cells: int) -> list[Line]:
    """Draw a hold for a page or a pane that is ``cells`` wide."""
    half = cells // 2
    left = right = cells - 4
    if cells >= WIDE:
        left, right = half - 4, cells - half - 4
    application = [*_application(row, left), *_stacks(board, row, left)]
    server, findings = _server(board, row, right), _findings(row, right)
    if cells >= WIDE:
        return beside(application, [*server, *findings], half)
    return [*application, *findings, BLANK, *server]


def _heading(text: str) -> Line:
    return ((f"  {text}", "title"),)


def _pairs(pairs: list[tuple[str, str, str]], cells: int) -> list[Line]:
    """Return a line for each name and value; long values take several lines."""
    lines: list[Line] = []
    for name, value, ink in pairs:
        parts = wrap(value, cells - 12, 3) or ["-"]
        lines += _labelled(f"  {name:<10}", "muted", parts, ink)
    return lines


def _labelled(label: str, ink: str, parts: list[str], text_ink: str) -> list[Line]:
    """Put a label before the first line, and indent the others."""
    blank = " " * len(label)
    return [
        ((blank if at else label, ink), (part, text_ink))
        for at, part in enumerate(parts)
    ]


def _application(row: Row, cells: int) -> list[Line]:
    evidence = [
        ("" if at else "evidence", each, "text")
        for at, each in enumerate(row.hold.evidence)
    ]
    spent = spent_line(row.hold, cells - 12)
    bar: list[Line] = [((f"  {'time':<10}", "muted"), *spent)] if spent else []
    return [
        _heading("APPLICATION"),
        *_pairs(_facts(row), cells),
        *bar,
        *_pairs(evidence, cells),
    ]


def _stacks(board: Board, row: Row, cells: int) -> list[Line]:
    """Draw the stacks of the checkout, of the last use, and of the holder now."""
    hold = row.hold
    checkout = hold.stack or ((hold.site,) if hold.site else ())
    unfold = board.unfold
    body = stack_lines(checkout, hold.site, unfold=unfold)
    lines = [BLANK, _heading("CHECKED OUT HERE"), *(body or [_muted("no stack")])]
    lines += _used(board, hold, checkout, cells)
    missing = "the holder has ended, or cannot be read"
    title = "NOW HERE"
    at = row.process.at or board.moment
    if at is not None:
        title = f"HERE AT {local_time(at)}"
    above = checkout, hold.used
    now = _stack_below(title, missing, hold.now, above, site=hold.site, unfold=unfold)
    return [*lines, *now]


def _used(board: Board, hold: Hold, checkout: Stack, cells: int) -> list[Line]:
    """Draw the stack of the last statement, and how long ago it ran."""
    if hold.unused_s is None and not hold.used:
        return [BLANK, (*_heading("LAST USED HERE"), ("  no statement yet", "muted"))]
    title, site, unfold = "LAST USED HERE", hold.site, board.unfold
    lines = _stack_below(
        title, "no stack", hold.used, (checkout,), site=site, unfold=unfold
    )
    ago, now = ("ago", "now") if board.moment is None else ("before", "then")
    since = f"{duration(hold.unused_s)} {ago}"
    running = hold.unused_s == 0
    when = (f"  running {now}", "good") if running else (f"  {since}", "strong")
    lines[1] = (lines[1][0], when, *lines[1][1:])
    if hold.statement:
        statement: Line = (("    ", "text"), (one_line(hold.statement), "keyword"))
        lines.insert(2, crop(statement, cells))
    return lines


def _stack_below(
    title: str,
    missing: str,
    stack: Stack,
    above: tuple[Stack, ...],
    *,
    site: Frame | None,
    unfold: bool,
) -> list[Line]:
    """Draw a stack without the frames it shares with a stack drawn above."""
    head = _heading(title)
    if not stack:
        return [BLANK, (*head, (f"  {missing}", "muted"))]
    if stack in above:
        which = "checked out" if stack == above[0] else "last used"
        name = f" (where it was {which})" if len(above) > 1 else ""
        return [BLANK, (*head, (f"  as above{name}", "muted"))]
    same = max(shared(stack, other) for other in above)
    own = user_frames(stack, site)
    lines = stack_lines(stack[: len(stack) - same], None, unfold=unfold, own=own)
    if same:
        lines.append(((f"    … called as above ({plural(same, 'frame')})", "faint"),))
    return [BLANK, head, *lines]


def _muted(text: str) -> Line:
    return ((f"  {text}", "muted"),)


def _facts(row: Row) -> list[tuple[str, str, str]]:
    hold, process, pool = row.hold, row.process, row.pool
    kind = f"  {pool.kind}, {pool.checked_out} checked out" if pool else ""
    labels = "  ".join(f"{key}={value}" for key, value in hold.labels.items())
    has_both = hold.task and hold.thread
    task = task_name(hold.task) if hold.task else ""
    holder = f"task {task} on thread {hold.thread}" if has_both else row.holder
    caller = f"{place(hold.caller, 3)} in {hold.caller.function}" if hold.caller else ""
    held = f"{duration(hold.held_s)}, after waiting {duration(hold.waited_s)}"
    where = f"{process_name(process)} pid {process.pid} on {process.host}"
    if process.at is not None:
        where += f", as it was at {local_time(process.at)}"
    facts = [
        ("from", neutral(caller), "text"),
        ("pool", f"{row.pool_name}{kind}", "text"),
        ("process", where, "text"),
        ("holder", holder, "text"),
        ("labels", labels, "text"),
        ("held", held, "text"),
    ]
    return [(name, value, ink) for name, value, ink in facts if value]


def _findings(row: Row, cells: int) -> list[Line]:
    """Draw the findings on this hold, the most specific ones first."""
    found = [f for f in row.process.findings if row.hold.id in f.holds]
    lines: list[Line] = [BLANK, _heading("WHY")] if found else []
    for finding in sorted(found, key=lambda f: len(f.holds)):
        lines += finding_lines(finding, cells)
    return lines


def finding_lines(finding: Finding | FleetFinding, cells: int) -> list[Line]:
    """Draw a finding with its proof and its remedy."""
    shape, ink = SEVERITIES[finding.severity]
    lines = _labelled(f"  {shape} ", ink, wrap(finding.text, cells - 4, 3), "strong")
    for name, text in (("proof", finding.proof), ("remedy", finding.remedy)):
        lines += _labelled(f"    {name:<8}", "muted", wrap(text, cells - 12, 4), "text")
    return lines


def _server(board: Board, row: Row, cells: int) -> list[Line]:
    hold, server = row.hold, row.hold.server
    lines = [_heading("SERVER")]
    if server is None:
        lines += _pairs([("backend", str(hold.backend_pid or "-"), "text")], cells)
        lines += map(_muted, wrap(_no_server(board, row), cells, 3))
    else:
        state = f"{server.state or '-'} for {duration(server.state_age_s)}"
        facts = [
            ("backend", f"{hold.backend_pid}{_address(row)}", "text"),
            ("state", state, "text"),
            ("xact", duration(server.xact_age_s), "text"),
            ("wait", server.wait_event or "-", "text"),
        ]
        lines += [*_pairs(facts, cells), *_locks(row)]
    text = (server.query if server else None) or hold.statement
    lines += [BLANK, _heading("STATEMENT")]
    if not text:
        return [*lines, _muted("none seen yet")]
    body = statement_lines(text, max(cells - 2, 20))
    return [
        *lines,
        *((("  ", "text"), *line) if length(line) else BLANK for line in body),
    ]


def _address(row: Row) -> str:
    for status in row.process.servers:
        if row.hold.pool in status.pools and status.address:
            return f" at {one_line(status.address, 60)}"
    return ""


def _no_server(board: Board, row: Row) -> str:
    if board.incident is not None:
        return "an incident snapshot has no server view"
    for status in row.process.servers:
        if row.hold.pool in status.pools and status.error:
            return status.error
    if not any(row.hold.pool in status.pools for status in row.process.servers):
        return "there is no server view of this pool"
    return "no row of pg_stat_activity matches this connection for certain"


def _locks(row: Row) -> list[Line]:
    """Draw the backends that block this hold and those that it blocks."""
    blockers = [
        (
            ("  blocked by  ", "warn"),
            (f"{pid}  ", "strong"),
            (call_site(hold), "strong") if hold else ("not a known hold", "muted"),
        )
        for pid, hold in row.blockers
    ]
    victims = [
        (
            ("  blocks      ", "bad"),
            (f"{hold.backend_pid}  ", "strong"),
            (call_site(hold), "strong"),
            (f"  held {duration(hold.held_s)}", "muted"),
        )
        for hold in row.victims
    ]
    return [*blockers, *victims]
