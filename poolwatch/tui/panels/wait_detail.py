"""The details of one wait, or of several of one call site: where, and who holds."""

from __future__ import annotations

from collections.abc import Sequence

from poolwatch.model import Finding, PoolStats
from poolwatch.text.format import (
    call_site,
    duration,
    lasts,
    neutral,
    one_line,
    place,
    plural,
)
from poolwatch.text.naming import holder_name, process_name
from poolwatch.tui.draw.line import BLANK, Line, Run, beside, right, rule
from poolwatch.tui.draw.source_lines import around
from poolwatch.tui.draw.stack import stack_lines
from poolwatch.tui.panels.detail import (
    finding_lines,
    full_place,
    heading,
    pairs,
    short_finding,
)
from poolwatch.tui.panels.spots import (
    PANE_TALL,
    WIDE,
    Spot,
    brief_line,
    own_frame,
    spot_lines,
)
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import Row, process_key
from poolwatch.tui.state.wait_rows import WaitGroup


def wait_headline(row: WaitGroup, *, gone: bool = False) -> Line:
    """Return how long the longest of the waits lasts, its call site and who waits."""
    wait = row.longest
    waited = lasts(wait)
    timeout = row.pool.timeout_s if row.pool else None
    state: Line = (("   waits for ", "muted"), (waited, "strong"))
    if gone:
        state = ((f"  ○ no longer waits; it had waited {waited}", "muted"),)
    elif timeout:
        state = (*state, (f" of {duration(timeout)}", "muted"))
    several = f"   {plural(len(row.waits), 'request')}" if len(row.waits) > 1 else ""
    return (
        *state,
        (f"   {call_site(wait)}", "strong"),
        (several or f"   {neutral(holder_name(wait)[:60])}", "text"),
    )


def wait_pane(board: Board, row: WaitGroup, cells: int, height: int) -> list[Line]:
    """Draw the longest of the waits below the table, and who holds the pool."""
    note: Line = (("enter ", "accent"), ("all of it", "muted"))
    lines = [rule((("WAIT", "title"), *wait_headline(row)), note, cells)]
    spot = _spot(row)
    why = [line for each in waiting_findings(row) for line in short_finding(each)]
    if height < PANE_TALL or cells < WIDE:
        room = height - 2
        return [*lines, brief_line(spot), *holder_lines(board, row, room)]
    room = height - 2
    here = [*spot_lines(spot), *why]
    return [BLANK, *lines, *beside(here, holder_lines(board, row, room), cells // 2)]


def wait_lines(board: Board, row: WaitGroup, cells: int) -> list[Line]:
    """Draw a wait for a page that is ``cells`` wide."""
    wait = row.longest
    stack = wait.stack or ((wait.site,) if wait.site else ())
    here = [
        heading("WAITS HERE"),
        *stack_lines(stack, wait.site, unfold=board.unfold),
    ]
    holders = holder_lines(board, row, 30)
    found = [
        line
        for each in waiting_findings(row)
        for line in finding_lines(each, cells - 4)
    ]
    why = [heading("WHY"), *found, BLANK] if found else []
    facts = [heading("REQUEST"), *pairs(wait_facts(row), cells - 4)]
    half = cells // 2
    top = beside(here, holders, half) if cells >= WIDE else [*here, BLANK, *holders]
    return [*top, BLANK, *why, *facts]


def _spot(row: WaitGroup) -> Spot:
    return Spot("WAITS HERE", "→", row.longest.site)


def waiting_findings(row: WaitGroup) -> list[Finding]:
    """Return the findings on these waits."""
    waits = {wait.id for wait in row.waits}
    return [each for each in row.process.findings if waits & {*each.waits}]


def _holders_of(board: Board, row: WaitGroup) -> list[list[Row]]:
    """Return the holds of the pool by call site: the most first, the longest first."""
    groups: dict[object, list[Row]] = {}
    for each in board.rows.values():
        same_process = process_key(each.process) in row.owners
        if same_process and each.pool_name == row.pool_name:
            hold = each.hold
            groups.setdefault((hold.site, hold.caller), []).append(each)
    for rows in groups.values():
        rows.sort(key=lambda each: -each.hold.known_s)
    return sorted(
        groups.values(), key=lambda rows: (-len(rows), call_site(rows[0].hold))
    )


def holder_lines(board: Board, row: WaitGroup, limit: int) -> list[Line]:
    """Draw who holds the pool, in at most ``limit`` lines: call sites with counts."""
    pool, groups = row.pool, _holders_of(board, row)
    out = sum(map(len, groups))
    head: Line = (
        ("  WHO HOLDS ", "title"),
        (f"pool {one_line(row.pool_name, 40)}", "strong"),
        (f"  {out}{_limit(pool, row)} out", "muted"),
    )
    lines = [_holder(rows) for rows in groups]
    if len(lines) > limit - 1:
        rest = sum(map(len, groups[max(limit - 2, 0) :]))
        more: Line = ((f"  … {rest} more", "muted"),)
        lines = [*lines[: max(limit - 2, 0)], more]
    return [head, *lines]


def _limit(pool: PoolStats | None, row: WaitGroup) -> str:
    capacity = pool.capacity if pool else None
    return f" of {capacity * row.processes}" if capacity is not None else ""


def _holder(rows: Sequence[Row]) -> Line:
    longest = rows[0]
    mark: Run = min(rows, key=lambda row: row.word == "ok").mark
    doing: Line = ()
    if longest.hold.now:
        frame = own_frame(longest.hold.now, longest.hold.site)
        source = around(frame.file, frame.line, 0, 0)
        code = source[0][1].strip() if source else f"in {neutral(frame.function)}"
        doing = ((f"  now {place(frame, 1)}  {code}", "muted"),)
    return (
        (right(str(len(rows)), 5), "strong"),
        (f"  {call_site(longest.hold)}", "strong"),
        (f"  longest {lasts(longest.hold)}", "muted"),
        (f"  {mark[0]}", mark[1]),
        *doing,
    )


def wait_facts(row: WaitGroup) -> list[tuple[str, str, str]]:
    """Return names and values, each with its ink."""
    wait, process, pool = row.longest, row.process, row.pool
    labels = "  ".join(f"{key}={value}" for key, value in wait.labels.items())
    timeout = f" of {duration(pool.timeout_s)}" if pool and pool.timeout_s else ""
    facts = [
        ("call site", full_place(wait.site)),
        ("from", full_place(wait.caller) if wait.caller else ""),
        ("pool", f"{row.pool_name}{f'  {pool.kind}' if pool else ''}"),
        ("process", f"{process_name(process)} pid {process.pid} on {process.host}"),
        ("holder", holder_name(wait)),
        ("labels", labels),
        ("waited", f"{lasts(wait)}{timeout}"),
    ]
    return [(name, value, "text") for name, value in facts if value]
