"""``poolwatch ps`` for people: who holds what, in plain text."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Literal

from poolwatch.diagnosis.holds import leaves_open
from poolwatch.model import (
    Frame,
    Frozen,
    FrozenMark,
    Hold,
    PoolStats,
    Process,
    SiteStats,
    Snapshot,
    Unreachable,
)
from poolwatch.stacks.compare import taking_frames
from poolwatch.text.format import (
    duration,
    fit,
    one_line,
    place,
    plural,
    short_time,
    taken_at,
    taken_in,
    width,
)
from poolwatch.text.frozen import happened, moment, of_pool
from poolwatch.text.naming import holder_name, process_name, with_names

_HEAD = ("VERDICT", "HELD", "HOLDER", "CALL SITE", "PID", "SERVER", "STATEMENT")
_NARROWEST = (7, 6, 8, 20, 6, 8, 8)
"""Cells that each column keeps at least: together they fit into 80."""
_SITE = _HEAD.index("CALL SITE")

_SITES_HEAD = (
    ("", "", "AVG", "", "", "", "WAIT", "", "IDLE", ""),
    (
        *("CALL SITE", "COUNT", "HELD", "P50", "P95", "MAX", "CAUSED"),
        *("SQL %", "IN TX %", "LEAKED"),
    ),
)
_MOST_SITES = 20
_SITE_CELLS = (16, 24)
"""A call site keeps so many cells, and so many before the columns move together."""
_WIDEST = 1000

_MOST_FRAMES = 5
_MOST_MARKS = 3

_DEAF = (
    "NOTHING IS RECORDED here since a hook of poolwatch failed: "
    "see the application's log"
)


@dataclass(frozen=True, slots=True)
class Style:
    """What is shown beyond the holds of now, and in how many columns."""

    columns: int = 80
    verbose: bool = False
    """Also the proof of each finding, and the stacks of each suspect hold."""
    sites: bool = False
    """Also what each call site has cost so far."""
    by: Literal["site", "caller"] = "site"
    """Callers of a shared call site stand below it, or in lines of their own."""


def render(snapshot: Snapshot, style: Style) -> str:
    """Return the table, as wide as the terminal."""
    lines: list[str] = []
    for process in map(with_names, snapshot.processes):
        title = (
            f"{one_line(process_name(process))}  pid {process.pid} on {process.host}"
        )
        suspects = [hold for hold in process.holds if hold.verdict != "ok"]
        lines += _wrapped(title, style, 0)
        lines += [*_process(process, style, suspects), ""]
    return "\n".join([*lines, *_lost(snapshot.unreachable, style)]).rstrip()


def render_frozen(
    pictures: Sequence[Frozen], unreachable: Sequence[Unreachable], style: Style
) -> str:
    """Return the pictures kept of earlier trouble, each of the pool it is about."""
    lines: list[str] = []
    for picture in pictures:
        lines += _wrapped(_heading(picture), style, 0)
        process = of_pool(with_names(picture.process), picture.pool)
        lines += [*_process(process, style, process.holds), ""]
    if not pictures:
        lines += [*_wrapped(_nothing_kept(unreachable), style, 0), ""]
    return "\n".join([*lines, *_lost(unreachable, style)]).rstrip()


def _nothing_kept(unreachable: Sequence[Unreachable]) -> str:
    if unreachable:
        return "no picture was found"
    return (
        "no picture was kept: no pool has been exhausted, timed out or deadlocked "
        "since it was instrumented"
    )


def _heading(picture: Frozen) -> str:
    process = with_names(picture.process)
    name = next((p.name for p in process.pools if p.id == picture.pool), picture.pool)
    _, trouble = happened(picture.kind)
    when = _moment(picture.at, date=True)
    who = f"{one_line(process_name(process))} (pid {process.pid})"
    return f"kept {when}: pool {name!r} of {who} {trouble}"


def _lost(unreachable: Sequence[Unreachable], style: Style) -> Iterable[str]:
    for lost in unreachable:
        why = f"pid {lost.pid or '?'} could not be read: {one_line(lost.why)}"
        yield from [*_wrapped(why, style, 0), ""]


# -- one process -------------------------------------------------------------------


def _process(process: Process, style: Style, suspects: Sequence[Hold]) -> Iterable[str]:
    yield from _pools(process, style)
    if process.frozen:
        yield from _wrapped(_hint(process), style, 2)
    yield from _findings(process, style)
    if process.holds:
        yield from _table(process.holds, style.columns)
    else:
        yield "  no connection is held"
    for wait in process.waits:
        who = one_line(holder_name(wait))
        what = f"waiting {duration(wait.waited_s)}: {who} at {taken_at(wait)}"
        yield from _wrapped(what, style, 2)
    if leaves_open(process):
        left_out = one_line("; ".join(process.left_out))
        yield from _wrapped(f"not looked at: {left_out}", style, 2)
    if style.verbose:
        for hold in suspects:
            yield from _stacks(hold, style)
    if style.sites:
        yield from _sites(process, style)


def _pools(process: Process, style: Style) -> Iterable[str]:
    errors = {pool: s.error for s in process.servers if s.error for pool in s.pools}
    for pool in process.pools:
        yield from _wrapped(_pool(pool), style, 2)
        if pool.switched_off:
            yield from _wrapped(_DEAF, style, 4)
        if pool.id in errors:
            error = one_line(errors[pool.id] or "")
            yield from _wrapped(f"server view: {error}", style, 4)


def _pool(pool: PoolStats) -> str:
    most = "" if pool.size is None else f" of {pool.size}"
    if pool.max_overflow:
        most += "+∞" if pool.max_overflow < 0 else f"+{pool.max_overflow}"
    figures = [
        f"{pool.checked_out}{most} out",
        f"{pool.waiting} waiting",
        f"{pool.counters.checkouts} checkouts",
        f"p95 hold {duration(pool.hold_s.p95)}",
    ]
    if pool.counters.timeouts:
        figures.append(plural(pool.counters.timeouts, "timeout"))
    if pool.gave_up:
        figures.append(f"{pool.gave_up} gave up")
    if pool.waiting_s_per_s > 0.005:
        digits = 1 if pool.waiting_s_per_s >= 0.1 else 2
        figures.append(f"{pool.waiting_s_per_s:.{digits}f} s/s waited")
    if pool.counters.leaked:
        figures.append(f"{pool.counters.leaked} leaked")
    return f"{one_line(pool.name)} ({one_line(pool.kind)}): " + ", ".join(figures)


def _hint(process: Process) -> str:
    """That there are pictures of earlier trouble, and how to see them."""
    names = {pool.id: pool.name for pool in process.pools}
    marks = process.frozen[-_MOST_MARKS:]
    kept = [_mark(mark, names.get(mark.pool, mark.pool)) for mark in marks]
    more = len(process.frozen) - len(marks)
    if more:
        kept.append(f"and {more} more")
    return f"kept: {', '.join(kept)} (poolwatch ps --frozen)"


def _mark(mark: FrozenMark, name: str) -> str:
    trouble, _ = happened(mark.kind)
    today = mark.at.startswith(datetime.now(UTC).date().isoformat())
    return f"{one_line(name)} {trouble} at {_moment(mark.at, date=not today)}"


def _moment(at: str, *, date: bool) -> str:
    day, time = moment(at)
    return f"{day} {time}".strip() if date else time


def _findings(process: Process, style: Style) -> Iterable[str]:
    explained: set[str] = set()
    for finding in process.findings:
        kind = one_line(finding.kind)
        what = f"{finding.severity.upper()} {kind}: {one_line(finding.text)}"
        yield from _wrapped(what, style, 2)
        if style.verbose and finding.proof:
            yield from _wrapped(f"proof: {one_line(finding.proof)}", style, 4)
        if finding.remedy not in explained:
            yield from _wrapped(one_line(finding.remedy), style, 4)
        explained.add(finding.remedy)


def _row(hold: Hold) -> tuple[str, ...]:
    row = hold.server
    statement = (row and row.query) or hold.statement or ""
    state = "" if row is None else (row.state or "?")
    if row is not None and row.blocked_by:
        state += f", blocked by {', '.join(map(str, row.blocked_by))}"
    return (
        hold.verdict,
        duration(hold.held_s),
        _holder(hold),
        taken_at(hold),
        str(hold.backend_pid or "-"),
        one_line(state, 60) or "-",
        one_line(statement, 200),
    )


def _holder(hold: Hold) -> str:
    return one_line(holder_name(hold), 24)


# -- where a hold was taken, last used, and is now ---------------------------------


def _stacks(hold: Hold, style: Style) -> Iterable[str]:
    backend = f", backend {hold.backend_pid}" if hold.backend_pid else ""
    title = f"{hold.verdict} {duration(hold.held_s)}: {_holder(hold)}{backend}"
    yield from _wrapped(title, style, 2)
    if hold.evidence:
        evidence = one_line("; ".join(hold.evidence))
        yield from _wrapped(f"evidence: {evidence}", style, 4)
    stack = hold.stack or ((hold.site,) if hold.site else ())
    for title, frames, otherwise in (
        ("taken here", _from_site(stack, hold.site), "not known"),
        ("last used here", hold.used, "no statement was seen"),
        ("now here", hold.now, "the holder has ended, or cannot be read"),
    ):
        texts = [_frame(frame) for frame in _users(frames, hold.site)] or [otherwise]
        for at, text in enumerate(texts):
            line = f"    {'' if at else title:<14}  "
            yield (line + fit(text, max(20, style.columns - len(line)))).rstrip()


def _from_site(stack: Sequence[Frame], site: Frame | None) -> Sequence[Frame]:
    """The call site and its callers."""
    return stack[stack.index(site) :] if site in stack else stack


def _users(frames: Sequence[Frame], site: Frame | None) -> Sequence[Frame]:
    """The application's own frames, or else the innermost one."""
    mine = taking_frames(frames, site)
    own = [frame for frame in frames if frame == site or frame in mine]
    return (own or frames[:1])[:_MOST_FRAMES]


def _frame(frame: Frame) -> str:
    return f"{place(frame)} in {one_line(frame.function, 60)}"


# -- what each call site has cost --------------------------------------------------


def _sites(process: Process, style: Style) -> Iterable[str]:
    for pool in process.pools:
        callers: dict[Frame, list[SiteStats]] = defaultdict(list)
        for each in process.callers:
            if each.pool == pool.id:
                callers[each.site].append(each)
        sites = [site for site in process.sites if site.pool == pool.id]
        if style.by == "caller":
            sites = [each for site in sites for each in callers[site.site] or [site]]
            callers.clear()
        if not sites:
            continue
        sites.sort(key=_cost)
        what = "callers" if style.by == "caller" else "call sites"
        title = f"{what} of {one_line(pool.name)}, the costliest first:"
        yield from _wrapped(title, style, 2)
        shown: list[tuple[SiteStats, bool]] = []
        for site in sites[:_MOST_SITES]:
            shown.append((site, False))
            shown += [(each, True) for each in sorted(callers[site.site], key=_cost)]
        yield from _sites_table(shown, style.columns)
        if len(sites) > _MOST_SITES:
            yield f"  and {len(sites) - _MOST_SITES} more (poolwatch ps --json)"


def _cost(site: SiteStats) -> tuple[float, float]:
    return -site.wait_caused_s, -site.hold_s.sum


def _site_row(site: SiteStats, below: bool) -> tuple[str, ...]:
    held = site.hold_s
    return (
        _site_name(site, below, _WIDEST),
        _count(site.count),
        f"{site.connections:.{2 if site.connections < 99.995 else 0}f}",
        _time(held.p50),
        _time(held.p95),
        _time(held.max),
        _time(site.wait_caused_s),
        _share(site.in_sql_s, held.sum),
        _share(site.in_transaction_idle_s, held.sum),
        _count(site.leaked),
    )


def _count(count: int) -> str:
    """A number in five cells."""
    if count < 100_000:
        return str(count)
    return f"{count // 1000}k" if count < 10_000_000 else f"{count // 1_000_000}M"


def _time(seconds: float | None) -> str:
    """Milliseconds to days in six cells."""
    if seconds is not None and 0 < seconds < 9.95:
        return short_time(seconds).replace(" ", "")
    return duration(seconds)


def _share(seconds: float | None, whole: float) -> str:
    if seconds is None or whole <= 0:
        return "-"
    return f"{min(100.0, 100 * seconds / whole):.0f}"


def _sites_table(
    sites: Sequence[tuple[SiteStats, bool]], columns: int
) -> Iterable[str]:
    """The table; of each row whether it is a caller of the call site above it."""
    rows = [*_SITES_HEAD, *(_site_row(*each) for each in sites)]
    first, *others = (max(map(width, column)) for column in zip(*rows, strict=True))
    least, wished = _SITE_CELLS
    room = columns - 2 - sum(others)
    gap = 2 if room - 2 * len(others) >= min(first, wished) else 1
    first = min(first, max(least, room - gap * len(others)))
    for at, row in enumerate(rows, -len(_SITES_HEAD)):
        name = row[0] if at < 0 else _site_name(*sites[at], first)
        cells = [_fit_end(name, first)]
        cells += [cell.rjust(n) for cell, n in zip(row[1:], others, strict=True)]
        yield ("  " + (" " * gap).join(cells)).rstrip()


def _site_name(site: SiteStats, below: bool, cells: int) -> str:
    if not below:
        return taken_in(site, cells)
    if site.caller is None:
        return "  from a library"
    name = f"  from {place(site.caller)}"
    return name if width(name) <= cells else f"  from {place(site.caller, 1)}"


# -- fitting -----------------------------------------------------------------------


def _table(holds: Sequence[Hold], columns: int) -> Iterable[str]:
    rows = [_HEAD, *map(_row, holds)]
    sizes = [max(map(width, column)) for column in zip(*rows, strict=True)]
    _shrink(sizes, columns - 2 * len(sizes))
    for at, row in enumerate(rows):
        cells = [fit(cell, size) for cell, size in zip(row, sizes, strict=True)]
        size = sizes[_SITE]
        site = taken_in(holds[at - 1], size) if at else row[_SITE]
        cells[_SITE] = _fit_end(site, size)
        yield ("  " + "  ".join(cells)).rstrip()


def _shrink(sizes: list[int], cells: int) -> None:
    """Take from the columns that have most to give, the last one first."""
    order = [len(sizes) - 1, *range(len(sizes) - 1)]
    while sum(sizes) > cells:
        spare = [sizes[at] - _NARROWEST[at] for at in order]
        if max(spare) <= 0:
            return
        sizes[order[spare.index(max(spare))]] -= 1


def _fit_end(text: str, cells: int) -> str:
    """Like fit, but what is cut is the beginning: a line number stands at the end."""
    if width(text) <= cells:
        return fit(text, cells)
    while width(text) > cells - 1:
        text = text[1:]
    return fit("…" + text, cells)


def _wrapped(text: str, style: Style, indent: int) -> Iterable[str]:
    """A sentence over as many lines as it takes, the further ones deeper."""
    columns = max(40, style.columns)
    line = " " * indent
    for word in text.split(" "):
        if line.strip() and width(line) + 1 + width(word) > columns:
            yield line
            line = " " * (indent + 4)
        line += f" {word}" if line.strip() else word
        while width(line) > columns:  # a word longer than a line: a path
            cut = _fitting(line, columns)
            yield line[:cut]
            line = " " * (indent + 4) + line[cut:]
    yield line


def _fitting(text: str, cells: int) -> int:
    """How many characters fit."""
    for at, character in enumerate(text):
        cells -= width(character)
        if cells < 0:
            return at
    return len(text)
