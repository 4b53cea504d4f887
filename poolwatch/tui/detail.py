"""One hold in full: both truths side by side, and the stack that took it."""

from __future__ import annotations

from poolwatch.model import Finding, Hold
from poolwatch.text import duration, neutral, one_line, place
from poolwatch.tui.board import Board
from poolwatch.tui.filtering import process_name
from poolwatch.tui.header import SEVERITY_INK, SEVERITY_SHAPE
from poolwatch.tui.ink import BLANK, Line, beside, length, wrap
from poolwatch.tui.rows import INK, SHAPES, Row
from poolwatch.tui.sql import statement_lines
from poolwatch.tui.stack import stack_lines

WIDE = 110
"""From this width on, application and server stand side by side."""


def headline(row: Row, *, gone: bool, paused: bool = False) -> Line:
    """Say in one line which hold this is and how it is doing."""
    hold = row.hold
    where = (place(hold.site), "strong")
    if gone:
        text = "no longer seen" if paused else "returned"
        state: Line = (
            (f"  ○ {text} after {duration(hold.held_s)}", "good"),
            ("  as last seen", "muted"),
        )
        return (*state, ("   ", "text"), where)
    return (
        (f"  {SHAPES[row.word]} {row.verdict}", INK[row.word]),
        ("   held ", "muted"),
        (duration(hold.held_s), "strong"),
        ("   ", "text"),
        where,
        (f"   {neutral(row.holder[:60])}", "text"),
    )


def detail_lines(board: Board, row: Row, cells: int) -> list[Line]:
    """Draw a hold for a page or a pane that is ``cells`` wide."""
    if cells < WIDE:
        inner = cells - 4
        told = [*_findings(row, inner), *_stacks(board, row)]
        return [*_facts_of(row, inner), *told, BLANK, *_server(row, inner)]
    half = cells // 2
    left = [*_facts_of(row, half - 4), *_stacks(board, row)]
    right = [*_server(row, cells - half - 4), *_findings(row, cells - half - 4)]
    return beside(left, right, half)


def _heading(text: str) -> Line:
    return ((f"  {text}", "title"),)


def _pairs(pairs: list[tuple[str, str, str]], cells: int) -> list[Line]:
    """Lay out names and values; a value that is too long goes on below itself."""
    lines: list[Line] = []
    for name, value, ink in pairs:
        for at, part in enumerate(wrap(value, cells - 12, 3) or ["-"]):
            lines.append(((f"  {name if not at else '':<10}", "muted"), (part, ink)))
    return lines


def _facts_of(row: Row, cells: int) -> list[Line]:
    return [_heading("APPLICATION"), *_pairs(_facts(row), cells)]


def _stacks(board: Board, row: Row) -> list[Line]:
    """Draw where it was taken, and where the holder is now."""
    hold = row.hold
    stack = hold.stack or ((hold.site,) if hold.site else ())
    taken = stack_lines(stack, hold.site, unfold=board.unfold)
    lines = [BLANK, _heading("TAKEN HERE"), *(taken or [_unknown("no stack")])]
    now = stack_lines(hold.now, None, unfold=board.unfold)
    why = "the holder has ended, or cannot be read"
    return [*lines, BLANK, _heading("NOW"), *(now or [_unknown(why)])]


def _unknown(text: str) -> Line:
    return ((f"  {text}", "muted"),)


def _facts(row: Row) -> list[tuple[str, str, str]]:
    hold, process, pool = row.hold, row.process, row.pool
    kind = f"  {pool.kind}, {pool.checked_out} out" if pool else ""
    labels = "  ".join(f"{key}={value}" for key, value in hold.labels.items())
    both = hold.task and hold.thread
    holder = f"task {hold.task} on thread {hold.thread}" if both else row.holder
    facts = [
        ("pool", f"{row.pool_name}{kind}", "text"),
        (
            "process",
            f"{process_name(process)} pid {process.pid} on {process.host}",
            "text",
        ),
        ("holder", holder, "text"),
        ("labels", labels, "text"),
        ("held", _times(hold), "text"),
        *(
            ("evidence" if not at else "", e, "text")
            for at, e in enumerate(hold.evidence)
        ),
    ]
    return [(name, value, ink) for name, value, ink in facts if value]


def _times(hold: Hold) -> str:
    parts = [duration(hold.held_s), f"after waiting {duration(hold.waited_s)}"]
    if hold.in_sql_s is not None:
        parts.append(f"in SQL {duration(hold.in_sql_s)}")
    if hold.in_transaction_idle_s is not None:
        parts.append(f"idle in transaction {duration(hold.in_transaction_idle_s)}")
    return ", ".join(parts)


def _findings(row: Row, cells: int) -> list[Line]:
    """Draw the findings that name this hold, the most particular first."""
    found = [f for f in row.process.findings if row.hold.id in f.holds]
    lines: list[Line] = [BLANK, _heading("WHY")] if found else []
    for finding in sorted(found, key=lambda f: len(f.holds)):
        lines += finding_lines(finding, cells)
    return lines


def finding_lines(finding: Finding, cells: int) -> list[Line]:
    """Draw a finding: what, why it is believed, what to do."""
    ink = SEVERITY_INK[finding.severity]
    lines: list[Line] = []
    for at, part in enumerate(wrap(finding.text, cells - 4, 3)):
        mark = SEVERITY_SHAPE[finding.severity] if not at else " "
        lines.append(((f"  {mark} ", ink), (part, "strong")))
    for sign, text in (("proof  ", finding.proof), ("remedy ", finding.remedy)):
        for at, part in enumerate(wrap(text, cells - 12, 4)):
            lines.append(
                ((f"    {sign if not at else '       '} ", "muted"), (part, "text"))
            )
    return lines


def _server(row: Row, cells: int) -> list[Line]:
    hold, server = row.hold, row.hold.server
    lines = [_heading("SERVER")]
    if server is None:
        lines += _pairs([("backend", str(hold.backend_pid or "-"), "text")], cells)
        lines += [((f"  {part}", "muted"),) for part in wrap(_no_server(row), cells, 3)]
    else:
        facts = [
            ("backend", f"{hold.backend_pid}{_address(row)}", "text"),
            (
                "state",
                f"{server.state or '-'} for {duration(server.state_age_s)}",
                "text",
            ),
            ("xact", duration(server.xact_age_s), "text"),
            ("wait", server.wait_event or "-", "text"),
        ]
        lines += [*_pairs(facts, cells), *_locks(row)]
    text = (server.query if server else None) or hold.statement
    lines += [BLANK, _heading("STATEMENT")]
    if not text:
        return [*lines, _unknown("none seen yet")]
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


def _no_server(row: Row) -> str:
    for status in row.process.servers:
        if row.hold.pool in status.pools and status.error:
            return status.error
    if not any(row.hold.pool in status.pools for status in row.process.servers):
        return "there is no server view of this pool"
    return "the server shows no row that is surely this connection's"


def _locks(row: Row) -> list[Line]:
    """Name both ends of each lock by call site where the other end is ours."""
    blockers = [
        (
            ("  blocked by  ", "warn"),
            (f"{pid}  ", "strong"),
            (place(hold.site), "strong") if hold else ("not ours", "muted"),
        )
        for pid, hold in row.blockers
    ]
    victims = [
        (
            ("  blocks      ", "bad"),
            (f"{hold.backend_pid}  ", "strong"),
            (place(hold.site), "strong"),
            (f"  held {duration(hold.held_s)}", "muted"),
        )
        for hold in row.victims
    ]
    return [*blockers, *victims]
