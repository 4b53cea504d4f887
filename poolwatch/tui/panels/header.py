"""The header lines: processes, age of the data, and the worst finding."""

from __future__ import annotations

from collections.abc import Sequence

from poolwatch.diagnosis.merging import Merged
from poolwatch.model import ServerStatus, Snapshot, Unreachable
from poolwatch.text.format import (
    clock,
    duration,
    local_time,
    neutral,
    one_line,
    plural,
    short_time,
)
from poolwatch.text.naming import process_name
from poolwatch.tui.draw.line import Line, Run, crop, labelled, length, spread, wrap
from poolwatch.tui.polling import Mode
from poolwatch.tui.state.board import Board
from poolwatch.tui.state.rows import process_key

_BADGES: dict[Mode, Run] = {
    "starting": ("…", "muted"),
    "live": ("LIVE", "good"),
    "paused": ("PAUSED", "mark"),
    "stale": ("STALE", "mark"),
    "failed": ("NO ANSWER", "mark"),
    "silent": ("SILENT", "mark"),
    "lost": ("LOST", "mark"),
    "none": ("NO PROCESS", "mark"),
    "saved": ("SAVED", "mark"),
    "history": ("HISTORY", "mark"),
    "past": ("", "mark"),
}

SEVERITIES: dict[str, Run] = {
    "critical": ("■", "bad"),
    "warning": ("◆", "warn"),
    "info": ("●", "accent"),
}
"""Shape and ink."""

WIDE = 120
"""Minimum width at which most sentences about a finding fit into one line."""
_WHY: Run = ("  WHY  ", "title")


def header(board: Board, now: float, clock: str, cells: int) -> Line:
    """Return the header line; if it is too long, its right end is cut."""
    mode = board.mode(now)
    badge, ink = _BADGES[mode]
    if board.moment is not None:
        badge = f"{badge} {local_time(board.moment)}".lstrip()
    start: Line = (("  poolwatch ", "title"),)
    # the badge says it if there is no process
    name = "" if mode in ("starting", "none") else f" {_processes(board.snapshot)}  "
    names: Line = ((name, "text"),)
    state: Line = ((f" {badge} ", ink), *_age(board, mode, now))
    end: list[Line]
    if mode == "past":
        end = [(("  esc now  ", "muted"), (f"{clock}  ", "muted"))]
    elif board.moment is not None:
        end = [(("  not now  ", "muted"),)]
    else:
        end = [
            ((f"  {clock}  ", "muted"),),
            ((f"  every {board.refresh:g}s", "muted"),),
            _server(board, outdated=mode in ("silent", "lost")),
        ]
    room = cells - 44 if mode != "past" else cells - length(state) - 34
    left: Line = (*start, *crop(names, max(room, 8)), *state)
    right: Line = ()
    for part in end:
        if length(left) + length(right) + length(part) < cells:
            right = (*part, *right)
    return spread(left, right, cells)


def _processes(snapshot: Snapshot) -> str:
    if len(snapshot.processes) > 1:
        return f"{len(snapshot.processes)} processes"
    if not snapshot.processes:
        return "no process"
    process = snapshot.processes[0]
    return neutral(f"{process_name(process)}@{process.host} pid {process.pid}")


def _age(board: Board, mode: Mode, now: float) -> Line:
    if mode in ("starting", "none", "saved", "history"):
        return ()
    if mode == "past":
        return ((f"  {duration(board.behind_s)} ago, not now ", "warn"),)
    late = mode in ("stale", "failed", "silent", "lost")
    count = len(board.snapshot.processes)
    answering = 0 if mode == "lost" else count - len(board.silent)
    app: Line = (("  app ", "muted"),)
    if board.silent:  # the age of the processes that answer
        app = (("  apps ", "muted"), (f"{answering}/{count} ", "warn"))
    return (*app, (duration(board.age(now)), "warn" if late else "text"))


def _server(board: Board, *, outdated: bool) -> Line:
    reports = [
        status
        for process in board.snapshot.processes
        if outdated or process_key(process) not in board.silent
        for status in process.servers
    ]
    down = [status for status in reports if status.down]
    read = [status for status in reports if status.version]
    if down:
        since = [s.silent_s for s in down if s.silent_s is not None]
        age = f" {duration(min(since))}" if since else ""
        return (("  db ", "muted"), (f"DOWN{age}", "bad"), *_versions(read, dim=True))
    if outdated or not read:
        return _versions(read, dim=True)
    read_s = max((status.read_s or 0.0) for status in read)
    time: Line = (("  db ", "muted"), (short_time(read_s or None), "text"))
    return (*time, *_versions(read, dim=False))


def _versions(servers: Sequence[ServerStatus], *, dim: bool) -> Line:
    """Return version and sessions of the server, or the number of servers."""
    if not servers:
        return ()
    different = {status.identity or status.address for status in servers}
    if len(different) > 1:
        return ((f"  {len(different)} servers", "muted"),)
    status = servers[0]
    runs: list[Run] = [(f"  PostgreSQL {one_line(status.version or '', 12)}", "muted")]
    if status.sessions is not None and status.max_connections is not None:
        near_limit = status.sessions >= 0.9 * status.max_connections
        runs.append(("  sessions ", "muted"))
        count = f"{status.sessions}/{status.max_connections}"
        runs.append((count, "faint" if dim else "warn" if near_limit else "text"))
    return tuple(runs)


def why_lines(cells: int, height: int) -> int:
    """Return how many lines there are for why(): a narrow sentence takes two."""
    if height < 20:
        return 1
    return 2 if cells >= WIDE else 3


def why(board: Board, now: float, cells: int, lines: int) -> list[Line]:
    """Return in ``lines`` lines why the data is not current, or else what is wrong."""
    mode = board.mode(now)
    text = _view_state(board, mode) or _worst(board, mode, now, cells, lines)
    padded = [*text, *[()] * lines][:lines]
    return [crop(line, cells - 2) for line in padded]


def _view_state(board: Board, mode: Mode) -> list[Line]:
    """Return why the data on the screen is not current; no lines if it is."""
    if mode == "starting":
        return [_first("waiting for the first answer", "muted")]
    if mode == "none":
        return [_first("no instrumented process found", "warn")]
    if mode == "lost":
        gone = _ended(board) or "no instrumented process is left"
        text = f"■ {gone}; the last known state is shown"
        next_process = "the next process is shown when it starts"
        return [_first(text, "bad"), _second(next_process)]
    if mode == "failed":
        return [_first(f"■ {one_line(board.error or 'no answer')}", "bad")]
    if board.moment is not None and not board.snapshot.processes:
        return [_first("nothing is known of this moment: no process", "muted")]
    return []


def _first(text: str, ink: str) -> Line:
    return (_WHY, (text, ink))


def _second(text: str) -> Line:
    return (("       ", "text"), (one_line(text), "muted"))


def _worst(board: Board, mode: Mode, now: float, cells: int, lines: int) -> list[Line]:
    """Return the first finding, and in the lines that it leaves how to mend it."""
    found = board.findings
    if all(finding.severity == "info" for finding in found):
        return _unobserved(board) or _healthy(board, mode, now, found)
    worst = found[0]
    remedy = f"→ {worst.remedy}" if worst.remedy else ""
    shape, ink = SEVERITIES[worst.severity]
    more: Line = ()
    if len(found) > 1:
        more = ((f"  +{len(found) - 1} more ", "muted"), ("w", "accent"))
        remedy = remedy or f"also: {found[1].text}"
    start: Line = (_WHY, (f"{shape} ", ink))
    room, limit = cells - 2 - length(start), max(lines - bool(remedy), 1)
    whole = one_line(worst.text)
    first = next(iter(wrap(whole, room - length(more), limit)), "")
    others = wrap(whole[len(first) :], room, limit - 1) if limit > 1 else []
    text: list[Line] = [(*start, (first, "strong"), *more)]
    text += [((" " * length(start), "text"), (other, "strong")) for other in others]
    left = lines - len(text)
    if remedy and left > 0:
        text += labelled(" " * length((_WHY,)), remedy, cells - 2, left, ink="muted")
    return text


def _unobserved(board: Board) -> list[Line]:
    """Warn about pools that are not recorded and servers that are not read."""
    off = sum(p.switched_off for each in board.snapshot.processes for p in each.pools)
    if off:
        text = f"■ {plural(off, 'pool')} no longer recorded: a hook of poolwatch failed"
        return [_first(text, "bad"), _second("see the application's log")]
    reports = (status for each in board.snapshot.processes for status in each.servers)
    # If the application has switched its server view off, no warning is due.
    error = next((s.error for s in reports if s.error and s.enabled), None)
    what = "its server"
    if error is None:
        error, what = board.snapshot.dsn_error, "the server of the DSN"
    if error is None:
        return []
    text = f"◆ nothing wrong in the application, but {what} cannot be read"
    return [_first(text, "warn"), _second(error)]


def _healthy(
    board: Board, mode: Mode, now: float, notes: Sequence[Merged]
) -> list[Line]:
    """Return that nothing is wrong: now, or when it was last read."""
    held = [row.hold.known_s for row in board.rows.values()]
    longest = f", the longest for {duration(max(held))}" if held else ""
    waits = sum(len(process.waits) for process in board.snapshot.processes)
    waiting = f", {plural(waits, 'request')} waiting" if waits else ", none waiting"
    text = f"{plural(len(held), 'connection')} checked out{longest}{waiting}"
    ended = _ended_processes(board)
    if ended:
        processes = "process has" if len(ended) == 1 else "processes have"
        text = f"{len(ended)} {processes} ended; of the others: {text}"
    state = ("✓ healthy ", "good")
    if mode in ("paused", "stale"):
        state = (f"◆ nothing was wrong {duration(board.age(now))} ago ", "warn")
    first: Line = (_WHY, state, (f" {text}", "muted"))
    if notes:
        first = (
            *first,
            (f"  +{plural(len(notes), 'note')} ", "muted"),
            ("w", "accent"),
        )
    second = _ended(board) or (f"● {notes[0].text}" if notes else None)
    return [first, _second(second)] if second else [first]


def _ended_processes(board: Board) -> list[Unreachable]:
    """Return the processes that have ended lately, the last one first."""
    snapshot = board.last.snapshot if board.last else None
    unreachable = snapshot.unreachable if snapshot else ()
    ended = [each for each in unreachable if each.alive is False]
    return sorted(ended, key=lambda each: each.since or "", reverse=True)


def _ended(board: Board) -> str | None:
    """Return which process ended last, and when; None if none has ended lately."""
    ended = _ended_processes(board)
    if not ended:
        return None
    others = f", and {len(ended) - 1} before it" if len(ended) > 1 else ""
    since = clock(ended[0].since or "")
    return one_line(f"{board.name_of(ended[0])} ended at {since}{others}")
