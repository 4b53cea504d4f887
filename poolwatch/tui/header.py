"""The first lines: whose data this is, how fresh, and what is wrong, in plain words."""

from __future__ import annotations

from poolwatch.kept import moment
from poolwatch.model import ServerStatus, Snapshot
from poolwatch.naming import process_name
from poolwatch.text import duration, neutral, one_line, plural, short_time
from poolwatch.tui.board import Board
from poolwatch.tui.ink import Line, Run, crop, length, spread
from poolwatch.tui.reading import Mode

_BADGES: dict[Mode, Run] = {
    "starting": ("…", "muted"),
    "live": ("LIVE", "good"),
    "paused": ("PAUSED", "mark"),
    "stale": ("STALE", "mark"),
    "failed": ("NO ANSWER", "mark"),
    "lost": ("LOST", "mark"),
    "none": ("NO PROCESS", "mark"),
    "frozen": ("FROZEN", "mark"),
}

SEVERITY_INK = {"critical": "bad", "warning": "warn", "info": "accent"}
SEVERITY_SHAPE = {"critical": "■", "warning": "◆", "info": "●"}


def header(board: Board, now: float, clock: str, cells: int) -> Line:
    """Say whose data this is and how old; what matters less leaves first."""
    mode = board.mode(now)
    badge, ink = _BADGES[mode]
    if board.past is not None:
        day, time = moment(board.past.at)
        badge = f"{badge} {time}"
    start: Line = (("  poolwatch ", "title"),)
    who: Line = ((f" {_who(board.snapshot)}  ", "text"),)
    state: Line = ((f" {badge} ", ink), *_age(board, mode, now))
    end: list[Line]
    if board.past is not None:
        end = [((f"  {day}, not now  ", "muted"),)]
    else:
        end = [
            ((f"  {clock}  ", "muted"),),
            ((f"  every {_interval(board.refresh)}", "muted"),),
            _server(board.snapshot),
        ]
    left: Line = (*start, *crop(who, max(cells - 44, 8)), *state)
    right: Line = ()
    for part in end:
        if length(left) + length(right) + length(part) < cells:
            right = (*part, *right)
    return spread(left, right, cells)


def _who(snapshot: Snapshot) -> str:
    if len(snapshot.processes) > 1:
        return f"{len(snapshot.processes)} processes"
    if not snapshot.processes:
        return "no process"
    process = snapshot.processes[0]
    return neutral(f"{process_name(process)}@{process.host} pid {process.pid}")


def _age(board: Board, mode: Mode, now: float) -> Line:
    if mode in ("starting", "none", "frozen"):
        return ()
    late = mode in ("stale", "failed", "lost")
    return (("  app ", "muted"), (duration(board.age(now)), "warn" if late else "text"))


def _interval(seconds: float) -> str:
    return f"{seconds:g}s"


def statuses(snapshot: Snapshot) -> list[ServerStatus]:
    """Every word on the servers, of all processes."""
    return [status for process in snapshot.processes for status in process.servers]


def _server(snapshot: Snapshot) -> Line:
    known = [status for status in statuses(snapshot) if status.version]
    if not known:
        return ()
    read = max((status.read_s or 0.0) for status in known)
    runs: list[Run] = [("  db ", "muted"), (short_time(read or None), "text")]
    if len({status.address for status in known}) > 1:
        return (*runs, (f"  {len(known)} servers", "muted"))
    status = known[0]
    runs.append((f"  PostgreSQL {one_line(status.version or '', 12)}", "muted"))
    if status.sessions is not None and status.max_connections is not None:
        tight = status.sessions >= 0.9 * status.max_connections
        runs.append(("  sessions ", "muted"))
        count = f"{status.sessions}/{status.max_connections}"
        runs.append((count, "warn" if tight else "text"))
    return tuple(runs)


def why(board: Board, now: float, cells: int, lines: int) -> list[Line]:
    """Give the worst that is known: of the view itself, else of the pools."""
    mode = board.mode(now)
    told = _view(board, mode) or _worst(board, cells)
    padded = [*told, (), ()][:lines]
    return [crop(line, cells - 2) for line in padded]


def _view(board: Board, mode: Mode) -> list[Line]:
    error = one_line(board.error or "no answer")
    if mode == "starting":
        return [(("  WHY  ", "title"), ("waiting for the first answer", "muted"))]
    if mode == "none":
        return [(("  WHY  ", "title"), ("no instrumented process found", "warn"))]
    if mode == "lost":
        text = "■ the process is gone; this is what was last seen"
        return [(("  WHY  ", "title"), (text, "bad")), _second(error)]
    if mode == "failed":
        return [(("  WHY  ", "title"), (f"■ {error}", "bad"))]
    return []


def _second(text: str) -> Line:
    return (("       ", "text"), (one_line(text), "muted"))


def _worst(board: Board, cells: int) -> list[Line]:
    found = board.findings()
    if not found:
        return _blind(board) or _healthy(board)
    _, finding = found[0]
    ink = SEVERITY_INK[finding.severity]
    more: Line = ()
    if len(found) > 1:
        more = ((f"  +{len(found) - 1} more ", "muted"), ("w", "accent"))
    head: Line = (
        ("  WHY  ", "title"),
        (SEVERITY_SHAPE[finding.severity] + " ", ink),
        (one_line(finding.text), "strong"),
    )
    first = (*crop(head, cells - length(more) - 2), *more)
    remedy = (("       → ", "muted"), (one_line(finding.remedy), "muted"))
    return [first, remedy]


def _blind(board: Board) -> list[Line]:
    """Never call healthy what is not recorded."""
    off = sum(p.switched_off for each in board.snapshot.processes for p in each.pools)
    if not off:
        return []
    text = f"■ {plural(off, 'pool')} not recorded any more: a hook of poolwatch failed"
    return [(("  WHY  ", "title"), (text, "bad")), _second("see the application's log")]


def _healthy(board: Board) -> list[Line]:
    held = [row.hold.held_s for row in board.rows.values()]
    longest = f", the longest for {duration(max(held))}" if held else ""
    waits = sum(len(process.waits) for process in board.snapshot.processes)
    asks = f", {plural(waits, 'request')} waiting" if waits else ", nobody waits"
    text = f"{plural(len(held), 'connection')} out{longest}{asks}"
    return [(("  WHY  ", "title"), ("✓ healthy ", "good"), (f" {text}", "muted"))]
