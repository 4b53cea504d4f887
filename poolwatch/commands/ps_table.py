"""The text of ``poolwatch ps``: pools, findings, and the tables of holds and sites."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from poolwatch.commands.ps_usage import usage_tables
from poolwatch.diagnosis.holds import leaves_open
from poolwatch.diagnosis.merging import Merged, merged
from poolwatch.model import (
    Frame,
    Hold,
    IncidentMark,
    IncidentSnapshot,
    PoolStats,
    Process,
    Snapshot,
    Unreachable,
)
from poolwatch.stacks.compare import user_frames
from poolwatch.text.format import (
    call_site,
    call_site_short,
    duration,
    fit,
    fit_end,
    lasts,
    one_line,
    place,
    plural,
    width,
)
from poolwatch.text.incident_snapshots import (
    date_and_time,
    incident_words,
    limited_to_pool,
)
from poolwatch.text.naming import (
    holder_name,
    process_name,
    unreachable_name,
    with_names,
)

_MAX_FRAMES = 5
_MAX_MARKS = 3

_SWITCHED_OFF = (
    "NOTHING IS RECORDED: a hook of poolwatch failed, see the application's log"
)


@dataclass(frozen=True, slots=True)
class Style:
    """Options of the output."""

    columns: int = 80
    """Width of the terminal, in cells."""
    verbose: bool = False
    """Show the proof of each finding, and the stacks of long and leaked holds."""
    sites: bool = False
    """Show the statistics of each call site."""
    by: str = "site"
    """Show the callers of a shared call site below it (``site``) or instead of it
    (``caller``), or show the values of a label: any other name."""


def render(snapshot: Snapshot, style: Style) -> str:
    """Return the text of a snapshot."""
    processes = tuple(map(with_names, snapshot.processes))
    ended = [lost for lost in snapshot.unreachable if lost.alive is False]
    silent = len(ended) < len(snapshot.unreachable)
    several = len(processes) != 1 or silent or bool(snapshot.findings)
    lines = _findings(merged(snapshot), style, 0, named=True) if several else []
    for process in processes:
        suspects = [hold for hold in process.holds if hold.verdict != "ok"]
        lines += ["", *wrapped(_title(process), style, 0)]
        own = [] if several else merged(snapshot)
        lines += _process(process, style, suspects, own)
    lines += ["", *_unreachable(ended, style)]
    return "\n".join(lines).strip("\n")


def _title(process: Process) -> str:
    name = one_line(process_name(process))
    title = f"{name}  pid {process.pid} on {one_line(process.host)}"
    if process.test is not None:
        title += f", running {one_line(process.test)}"
    if process.at is not None:
        title += f", as it was at {_moment(process.at, date=True)}"
    return title


def render_incident_snapshots(
    incidents: Sequence[IncidentSnapshot],
    unreachable: Sequence[Unreachable],
    style: Style,
) -> str:
    """Return the text of incident snapshots, each limited to the pool it concerns."""
    lines: list[str] = []
    for incident in incidents:
        lines += wrapped(_heading(incident), style, 0)
        process = limited_to_pool(with_names(incident.process), incident.pool)
        own = merged(Snapshot((process,)))
        lines += [*_process(process, style, process.holds, own), ""]
    if not incidents:
        lines += [*wrapped(_no_incidents(unreachable), style, 0), ""]
    return "\n".join([*lines, *_unreachable(unreachable, style)]).rstrip()


def _no_incidents(unreachable: Sequence[Unreachable]) -> str:
    if unreachable:
        return "no incident snapshot was found"
    return (
        "no incident snapshot: no pool has been exhausted, timed out or deadlocked "
        "since it was instrumented"
    )


def _heading(incident: IncidentSnapshot) -> str:
    process = with_names(incident.process)
    names = {pool.id: pool.name for pool in process.pools}
    name = names.get(incident.pool, incident.pool)
    _, trouble = incident_words(incident.kind)
    when = _moment(incident.at, date=True)
    who = f"{one_line(process_name(process))} (pid {process.pid})"
    return f"incident {when}: pool {name!r} of {who} {trouble}"


def _unreachable(unreachable: Sequence[Unreachable], style: Style) -> Iterable[str]:
    for lost in unreachable:
        why = f"{unreachable_name(lost)} could not be read: {lost.why}"
        yield from [*wrapped(one_line(why), style, 0), ""]


# -- one process -------------------------------------------------------------------


def _process(
    process: Process,
    style: Style,
    suspects: Sequence[Hold],
    findings: Sequence[Merged],
) -> Iterable[str]:
    yield from _pools(process, style)
    if process.frozen:
        yield from wrapped(_hint(process), style, 2)
    yield from _findings(findings, style)
    if process.holds:
        yield from _table(process.holds, style.columns)
    else:
        yield "  no connection is held"
    for wait in process.waits:
        who = one_line(holder_name(wait))
        what = f"waiting {lasts(wait)}: {who} at {call_site(wait)}"
        yield from wrapped(what, style, 2)
    if leaves_open(process):
        left_out = one_line("; ".join(process.left_out))
        yield from wrapped(f"leak search incomplete: {left_out}", style, 2)
    if style.verbose:
        for hold in suspects:
            yield from _stacks(hold, style)
    if style.sites:
        yield from _usage(process, style)


def _usage(process: Process, style: Style) -> Iterable[str]:
    for title, rows in usage_tables(process, style.by, style.columns):
        yield from wrapped(title, style, 2)
        yield from rows


def _pools(process: Process, style: Style) -> Iterable[str]:
    errors = {pool: s.error for s in process.servers if s.error for pool in s.pools}
    for pool in process.pools:
        yield from wrapped(_pool(pool), style, 2)
        if pool.switched_off:
            yield from wrapped(_SWITCHED_OFF, style, 4)
        if pool.id in errors:
            error = one_line(errors[pool.id] or "")
            yield from wrapped(f"server view: {error}", style, 4)


def _pool(pool: PoolStats) -> str:
    limit = "" if pool.size is None else f" of {pool.size}"
    if pool.max_overflow:
        limit += "+∞" if pool.max_overflow < 0 else f"+{pool.max_overflow}"
    figures = [
        f"{pool.out}{limit} out",
        f"{pool.waiting} waiting",
        f"{pool.counters.checkouts} checkouts",
        f"p95 hold {duration(pool.hold_s.p95)}",
    ]
    if pool.counters.timeouts:
        figures.append(plural(pool.counters.timeouts, "timeout"))
    if pool.gave_up:
        figures.append(plural(pool.gave_up, "cancelled wait"))
    if pool.waiting_s_per_s > 0.005:
        digits = 1 if pool.waiting_s_per_s >= 0.1 else 2
        figures.append(f"{pool.waiting_s_per_s:.{digits}f} waiting on average")
    if pool.counters.leaked:
        figures.append(f"{pool.counters.leaked} leaked")
    kind = one_line(pool.kind) + (", behind a pooler" if pool.behind_pooler else "")
    return f"{one_line(pool.name)} ({kind}): " + ", ".join(figures)


def _hint(process: Process) -> str:
    """Name the latest incident snapshots, and the command that shows them."""
    names = {pool.id: pool.name for pool in process.pools}
    marks = process.frozen[-_MAX_MARKS:]
    incidents = [_mark(mark, names.get(mark.pool, mark.pool)) for mark in marks]
    more = len(process.frozen) - len(marks)
    if more:
        incidents.append(f"and {more} more")
    command = "poolwatch ps --frozen" if process.at is None else "poolwatch history"
    return f"incidents: {', '.join(incidents)} ({command})"


def _mark(mark: IncidentMark, name: str) -> str:
    trouble, _ = incident_words(mark.kind)
    today = mark.at.startswith(datetime.now(UTC).date().isoformat())
    return f"{one_line(name)} {trouble} at {_moment(mark.at, date=not today)}"


def _moment(at: str, *, date: bool) -> str:
    day, time = date_and_time(at)
    return f"{day} {time}".strip() if date else time


def _findings(
    findings: Iterable[Merged], style: Style, indent: int = 2, *, named: bool = False
) -> list[str]:
    """``named``: with the processes that have them."""
    lines: list[str] = []
    explained: set[str] = set()
    for finding in findings:
        kind = one_line(finding.kind)
        what = f"{finding.severity.upper()} {kind}: {one_line(finding.text)}"
        if named and finding.who:
            what += f" [{one_line(finding.who)}]"
        lines += wrapped(what, style, indent)
        if style.verbose and finding.proof:
            lines += wrapped(f"proof: {one_line(finding.proof)}", style, indent + 2)
        if finding.remedy and finding.remedy not in explained:
            lines += wrapped(one_line(finding.remedy), style, indent + 2)
        explained.add(finding.remedy)
    return lines


# -- the stacks of a hold ---------------------------------------------------------


def _stacks(hold: Hold, style: Style) -> Iterable[str]:
    backend = f", backend {hold.backend_pid}" if hold.backend_pid else ""
    title = f"{hold.verdict} {lasts(hold)}: {_holder(hold)}{backend}"
    yield from wrapped(title, style, 2)
    if hold.evidence:
        evidence = one_line("; ".join(hold.evidence))
        yield from wrapped(f"evidence: {evidence}", style, 4)
    stack = hold.stack or ((hold.site,) if hold.site else ())
    for title, frames, missing in (
        ("checked out here", _from_site(stack, hold.site), "unknown"),
        ("last used here", hold.used, "no statement was seen"),
        (
            "now here",
            hold.now,
            "the holder has ended, or cannot be read"
            if hold.adopted_s is None
            else "no running code has it",
        ),
    ):
        texts = [_frame(frame) for frame in _own_frames(frames, hold.site)] or [missing]
        for at, text in enumerate(texts):
            line = f"    {'' if at else title:<16}  "
            yield (line + fit(text, max(20, style.columns - len(line)))).rstrip()


def _from_site(stack: Sequence[Frame], site: Frame | None) -> Sequence[Frame]:
    """Return the frames of the call site and its callers."""
    return stack[stack.index(site) :] if site in stack else stack


def _own_frames(frames: Sequence[Frame], site: Frame | None) -> Sequence[Frame]:
    """Return the application's own frames, or else the innermost frame."""
    taking = user_frames(frames, site)
    own = [frame for frame in frames if frame == site or frame in taking]
    return (own or frames[:1])[:_MAX_FRAMES]


def _frame(frame: Frame) -> str:
    return f"{place(frame)} in {one_line(frame.function, 60)}"


# -- the table of holds ------------------------------------------------------------


def _holder(hold: Hold) -> str:
    return one_line(holder_name(hold), 24)


def _server(hold: Hold) -> str:
    row = hold.server
    state = "" if row is None else (row.state or "?")
    if row is not None and row.blocked_by:
        state += f", blocked by {', '.join(map(str, row.blocked_by))}"
    return one_line(state, 60) or "-"


def _statement(hold: Hold) -> str:
    statement = (hold.server and hold.server.query) or hold.statement or ""
    return one_line(statement, 200)


_HOLD_COLUMNS: tuple[tuple[str, int, Callable[[Hold], str]], ...] = (
    ("VERDICT", 7, lambda hold: hold.verdict),
    ("HELD", 6, lasts),
    ("HOLDER", 8, _holder),
    ("CALL SITE", 20, call_site),
    ("PID", 6, lambda hold: str(hold.backend_pid or "-")),
    ("SERVER", 8, _server),
    ("STATEMENT", 8, _statement),
)
"""Title, minimum width (the minima fit into 80 cells), and cell function."""
_CALL_SITE = 3


def _table(holds: Sequence[Hold], columns: int) -> Iterable[str]:
    titles = [title for title, _, _ in _HOLD_COLUMNS]
    rows = [titles, *([cell(hold) for _, _, cell in _HOLD_COLUMNS] for hold in holds)]
    sizes = [max(map(width, column)) for column in zip(*rows, strict=True)]
    _shrink(sizes, columns - 2 * len(sizes))
    size = sizes[_CALL_SITE]
    for row, hold in zip(rows, (None, *holds), strict=True):
        cells = [fit(cell, size) for cell, size in zip(row, sizes, strict=True)]
        site = call_site_short(hold, size) if hold else row[_CALL_SITE]
        cells[_CALL_SITE] = fit_end(site, size)
        yield ("  " + "  ".join(cells)).rstrip()


def _shrink(sizes: list[int], cells: int) -> None:
    """Narrow the columns that have the most width to spare, the last one first."""
    order = [len(sizes) - 1, *range(len(sizes) - 1)]
    while sum(sizes) > cells:
        spare = [sizes[at] - _HOLD_COLUMNS[at][1] for at in order]
        if max(spare) <= 0:
            return
        sizes[order[spare.index(max(spare))]] -= 1


# -- wrapping ----------------------------------------------------------------------


def wrapped(text: str, style: Style, indent: int) -> Iterable[str]:
    """Wrap a sentence; lines after the first are indented by four more."""
    columns = max(40, style.columns)
    line = " " * indent
    for word in text.split(" "):
        if line.strip() and width(line) + 1 + width(word) > columns:
            yield line
            line = " " * (indent + 4)
        line += f" {word}" if line.strip() else word
        while width(line) > columns:  # a word longer than a line: a path
            cut = _count_fitting(line, columns)
            yield line[:cut]
            line = " " * (indent + 4) + line[cut:]
    yield line


def _count_fitting(text: str, cells: int) -> int:
    """Return the number of characters that fit into ``cells``."""
    for at, character in enumerate(text):
        cells -= width(character)
        if cells < 0:
            return at
    return len(text)
