"""The details of one hold: the source, why it is wrong, then the facts."""

from __future__ import annotations

import re

from poolwatch.diagnosis.blocking import Node
from poolwatch.model import Finding, FleetFinding, Frame, Hold, SiteStats
from poolwatch.stacks.compare import user_frames
from poolwatch.text.format import (
    about,
    call_site,
    duration,
    lasts,
    local_time,
    neutral,
    one_line,
    plural,
)
from poolwatch.text.naming import process_name, task_name
from poolwatch.tui.draw.line import (
    BLANK,
    Line,
    beside,
    crop,
    labelled,
    length,
    rule,
    wrap,
)
from poolwatch.tui.draw.sql import statement_lines
from poolwatch.tui.draw.stack import Stack, shared, stack_lines
from poolwatch.tui.draw.time_bar import spent_line
from poolwatch.tui.panels.header import SEVERITIES
from poolwatch.tui.panels.locks import lock_lines
from poolwatch.tui.panels.spots import (
    NOT_READ,
    PANE_TALL,
    WIDE,
    brief_lines,
    changed,
    current,
    now_title,
    pair_lines,
    taken,
    use_age,
)
from poolwatch.tui.state.board import Board, Ending
from poolwatch.tui.state.rows import Row

_USUAL_FROM = 20
"""Minimum number of holds that tell how long a call site usually holds."""
_PARAMETER = re.compile(r"%\(\w+\)s|%s|\$\d+(?:::\w+)?")
_CUT = range(1020, 1024)
"""Bytes of a statement that PostgreSQL has cut at its default of 1,024."""

_ENDINGS: dict[Ending, str] = {
    "returned": "returned",
    "ended": "its process ended",
    "gone": "no longer seen",
}


def headline(
    row: Row, ending: Ending | None = None, *, usual_s: float | None = None
) -> Line:
    """Return the hold's call site, and its verdict or how it ended."""
    hold = row.hold
    where = (call_site(hold), "strong")
    if ending is not None:
        ink = "good" if ending == "returned" else "muted"
        state: Line = (
            (f"  ○ {_ENDINGS[ending]} after {lasts(hold)}", ink),
            ("  as last seen", "muted"),
        )
        return (*state, ("   ", "text"), where)
    mark, mark_ink = row.mark
    return (
        (f"  {mark}", mark_ink),
        ("   held ", "muted"),
        (lasts(hold), "strong"),
        (f" (usual {about(usual_s)})" if usual_s is not None else "", "muted"),
        ("   ", "text"),
        where,
        (f"   {neutral(row.holder[:60])}", "text"),
    )


def _usual_s(row: Row) -> float | None:
    """Return how long the call site holds a connection at most, 99 times in 100."""
    hold = row.hold
    stats = (each for each in row.process.sites if each.pool == hold.pool)
    found: SiteStats | None = next((s for s in stats if s.site == hold.site), None)
    known = found is not None and found.hold_s.count >= _USUAL_FROM
    return found.hold_s.p99 if found is not None and known else None


def pane_lines(board: Board, row: Row, cells: int, height: int) -> list[Line]:
    """Draw the selected hold below the table: the source, why, and the statement."""
    ending = None if row.key in board.rows else board.ending(row)
    note: Line = (("enter ", "accent"), ("all of it", "muted"))
    usual_s = _usual_s(row) if cells >= WIDE else None
    head = headline(row, ending, usual_s=usual_s)
    lines = [rule((("HOLD", "title"), *head), note, cells)]
    spots = taken(row), current(board, row)
    statement = statement_of(row.hold)
    sql: list[Line] = [_muted(one_line(statement))] if statement else []
    found = found_on(board, row)
    if height < PANE_TALL or cells < WIDE:
        lines += [*brief_lines(*spots), *sql]
        lines += [line for finding in found for line in short_finding(finding)]
        return [*lines, *_time(row.hold, cells)]
    source = pair_lines(*spots, cells)
    rest = [*sql, *_time(row.hold, cells), *lock_lines(board, _node(board, row), cells)]
    room = height - 2 - len(lines) - len(source) - len(rest)
    why = [line for each in found for line in finding_lines(each, cells - 4)]
    if len(why) > room:
        why = [line for finding in found for line in short_finding(finding)]
    return [BLANK, *lines, *source, *why[: max(room, 2)], *rest]


def short_finding(finding: Finding) -> list[Line]:
    """Draw a finding and its remedy in a line each."""
    shape, ink = SEVERITIES[finding.severity]
    return [
        ((f"  {shape} ", ink), (one_line(finding.text), "strong")),
        (("    → ", "muted"), (one_line(finding.remedy), "text")),
    ]


def detail_lines(board: Board, row: Row, cells: int) -> list[Line]:
    """Draw a hold for a page that is ``cells`` wide."""
    half = cells // 2
    why = _why(board, row, cells - 4)
    if cells < WIDE:
        one, *others = _stacks(board, row, cells - 4)
        stacks = [*one, *(line for other in others for line in (BLANK, *other))]
        server = _server(board, row, cells - 4)
        facts = [*_application(row, cells - 4), BLANK, *server]
        return [*stacks, BLANK, *why, *facts]
    one, *others = _stacks(board, row, half - 4)
    now = [line for other in others for line in (*other, BLANK)]
    stacks = beside(one, now, half)
    application = _application(row, half - 4)
    server = _server(board, row, cells - half - 4)
    return [*stacks, BLANK, *why, *beside(application, server, half)]


def heading(text: str) -> Line:
    """Draw the title of a part."""
    return ((f"  {text}", "title"),)


def pairs(pairs: list[tuple[str, str, str]], cells: int) -> list[Line]:
    """Return a line for each name and value; long values take several lines."""
    lines: list[Line] = []
    for name, value, ink in pairs:
        lines += labelled(f"  {name:<10}", value.strip() or "-", cells, 3, ink=ink)
    return lines


def _application(row: Row, cells: int) -> list[Line]:
    return [
        heading("APPLICATION"),
        *pairs(facts_of(row), cells),
        *_time(row.hold, cells),
    ]


def _time(hold: Hold, cells: int) -> list[Line]:
    spent = spent_line(hold, cells - 12)
    return [((f"  {'time':<10}", "muted"), *spent)] if spent else []


def _stacks(board: Board, row: Row, cells: int) -> list[list[Line]]:
    """Draw the stacks of the checkout, of the last use, and of the holder now."""
    hold, unfold = row.hold, board.unfold
    checkout = hold.stack or ((hold.site,) if hold.site else ())
    body = stack_lines(checkout, hold.site, unfold=unfold)
    notes: Line = tuple((f"  {n}", "warn") for n in changed(row.process, hold.site))
    head = (*heading("CHECKED OUT HERE"), *notes)
    first = [head, *(body or [_muted("no stack")])]
    title, above = now_title(board, row)[0], (checkout, hold.used)
    last = _stack_below(title, NOT_READ, hold.now, above, hold.site, unfold=unfold)
    return [first, _used(board, row, checkout, cells), last]


def _used(board: Board, row: Row, checkout: Stack, cells: int) -> list[Line]:
    """Draw the stack of the last statement, and how long ago it ran."""
    hold = row.hold
    title, unfold = "LAST USED HERE", board.unfold
    if hold.unused_s is None and not hold.used:
        return [(*heading(title), ("  no statement yet", "muted"))]
    above = (checkout,)
    lines = _stack_below(title, "no stack", hold.used, above, hold.site, unfold=unfold)
    ink = "good" if hold.unused_s == 0 and row.key in board.rows else "strong"
    when = (f"  {use_age(board, row)}", ink)
    lines[0] = (lines[0][0], when, *lines[0][1:])
    if hold.statement:
        statement: Line = (("    ", "text"), (one_line(hold.statement), "keyword"))
        lines.insert(1, crop(statement, cells))
    return lines


def _stack_below(
    title: str,
    missing: str,
    stack: Stack,
    above: tuple[Stack, ...],
    site: Frame | None,
    *,
    unfold: bool,
) -> list[Line]:
    """Draw a stack without the frames it shares with a stack that is drawn already."""
    head = heading(title)
    if not stack:
        return [(*head, (f"  {missing}", "muted"))]
    if stack in above:
        which = "checked out" if stack == above[0] else "last used"
        return [(*head, (f"  where it was {which}", "muted"))]
    same = max(shared(stack, other) for other in above)
    own = user_frames(stack, site)
    lines = stack_lines(stack[: len(stack) - same], None, unfold=unfold, own=own)
    if same:
        callers = f"    … same callers as above ({plural(same, 'frame')})"
        lines.append(((callers, "faint"),))
    return [head, *lines]


def _muted(text: str) -> Line:
    return ((f"  {text}", "muted"),)


def facts_of(row: Row) -> list[tuple[str, str, str]]:
    """Return names and values, each with its ink."""
    hold, process, pool = row.hold, row.process, row.pool
    kind = f"  {pool.kind}, {pool.checked_out} checked out" if pool else ""
    labels = "  ".join(f"{key}={value}" for key, value in hold.labels.items())
    has_both = hold.task and hold.thread
    task = task_name(hold.task) if hold.task else ""
    holder = f"task {task} on thread {hold.thread}" if has_both else row.holder
    caller = full_place(hold.caller) if hold.caller else ""
    before = f"after waiting {duration(hold.waited_s)}"
    if hold.adopted_s is not None:
        before = "it was out when poolwatch attached"
    held = f"{lasts(hold)}, {before}"
    usual = _usual_s(row)
    if usual is not None:
        held += f"; 99 of 100 holds of this line are shorter than {about(usual)}"
    where = f"{process_name(process)} pid {process.pid} on {process.host}"
    if process.at is not None:
        where += f", as it was at {local_time(process.at)}"
    facts = [
        ("call site", full_place(hold.site), "text"),
        ("from", neutral(caller), "text"),
        ("pool", f"{row.pool_name}{kind}", "text"),
        ("process", where, "text"),
        ("holder", holder, "text"),
        ("labels", labels, "text"),
        ("held", held, "text"),
    ]
    return [(name, value, ink) for name, value, ink in facts if value]


def _node(board: Board, row: Row) -> Node | None:
    """Return the place of a hold among the lock waits; None if the hold is over."""
    return row.node if row.key in board.rows else None


def found_on(board: Board, row: Row) -> list[Finding]:
    """Return the findings on this hold, the most specific ones first.

    A hold that is over has none: its backend may serve another request now, and a
    remedy would hit that.
    """
    if row.key not in board.rows:
        return []
    found = [f for f in row.process.findings if row.hold.id in f.holds]
    return sorted(found, key=lambda finding: len(finding.holds))


def _why(board: Board, row: Row, cells: int) -> list[Line]:
    """Draw findings and evidence; what a proof says is not said again."""
    found = found_on(board, row)
    lines = [line for finding in found for line in finding_lines(finding, cells)]
    proofs = " ".join(finding.proof for finding in found)
    evidence = [each for each in row.hold.evidence if each not in proofs]
    lines += pairs(
        [("" if at else "evidence", each, "text") for at, each in enumerate(evidence)],
        cells,
    )
    return [heading("WHY"), *lines, BLANK] if lines else []


def finding_lines(finding: Finding | FleetFinding, cells: int) -> list[Line]:
    """Draw a finding with its proof and its remedy."""
    shape, ink = SEVERITIES[finding.severity]
    sign = f"  {shape} "
    lines = labelled(sign, finding.text, cells, 3, label_ink=ink, ink="strong")
    for name, text in (("proof", finding.proof), ("remedy", finding.remedy)):
        lines += labelled(f"    {name:<8}", text, cells, 4)
    return lines


def _server(board: Board, row: Row, cells: int) -> list[Line]:
    hold, server = row.hold, row.hold.server
    lines = [heading("SERVER")]
    if server is None:
        lines += pairs([("backend", str(hold.backend_pid or "-"), "text")], cells)
        lines += map(_muted, wrap(_no_server(board, row), cells, 3))
    else:
        state = f"{server.state or '-'} for {duration(server.state_age_s)}"
        facts = [
            ("backend", f"{hold.backend_pid}{_address(row)}", "text"),
            ("state", state, "text"),
            ("xact", duration(server.xact_age_s), "text"),
            ("wait", server.wait_event or "-", "text"),
        ]
        lines += [*pairs(facts, cells), *lock_lines(board, _node(board, row), cells)]
    text = statement_of(hold)
    lines += [BLANK, heading("STATEMENT")]
    if not text:
        return [*lines, _muted("none seen yet")]
    body = statement_lines(text, max(cells - 2, 20))
    lines += [(("  ", "text"), *line) if length(line) else BLANK for line in body]
    if text != hold.statement and len(text.encode("utf-8", "replace")) in _CUT:
        lines.append(_muted("… cut by the server at 1,024 bytes"))
    return lines


def full_place(frame: Frame | None) -> str:
    """Return a frame with its whole path."""
    if frame is None:
        return "not known"
    return neutral(f"{frame.file}:{frame.line} in {frame.function}")


def statement_of(hold: Hold) -> str | None:
    """Return the server's statement, or the application's if that is the whole of it.

    The server keeps the first bytes of a statement only.
    """
    query, own = hold.server.query if hold.server else None, hold.statement
    if not query or not own:
        return query or own
    whole, cut = (" ".join(_PARAMETER.sub("?", each).split()) for each in (own, query))
    return own if len(whole) > len(cut) and whole.startswith(cut) else query


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
    if row.pool is not None and row.pool.behind_pooler:
        return "behind a pooler: no session is proven to serve this connection now"
    return "no row of pg_stat_activity matches this connection for certain"
