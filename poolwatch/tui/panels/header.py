"""The first lines: whose data this is, how fresh, and what is wrong, in plain words."""

from __future__ import annotations

from collections.abc import Sequence

from poolwatch.model import ServerStatus, Snapshot
from poolwatch.text.format import duration, neutral, one_line, plural, short_time
from poolwatch.text.frozen import moment
from poolwatch.text.naming import process_name
from poolwatch.tui import silence
from poolwatch.tui.draw.line import Line, Run, crop, length, spread
from poolwatch.tui.reading import Mode
from poolwatch.tui.state.board import Board

_BADGES: dict[Mode, Run] = {
    "starting": ("…", "muted"),
    "live": ("LIVE", "good"),
    "paused": ("PAUSED", "mark"),
    "stale": ("STALE", "mark"),
    "failed": ("NO ANSWER", "mark"),
    "silent": ("SILENT", "mark"),
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
            _server(board, past=mode in ("silent", "lost")),
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
    late = mode in ("stale", "failed", "silent", "lost") or bool(board.silent)
    count = len(board.snapshot.processes)
    app = f"  apps {count - len(board.silent)}/{count} " if board.silent else "  app "
    return ((app, "muted"), (duration(board.age(now)), "warn" if late else "text"))


def _interval(seconds: float) -> str:
    return f"{seconds:g}s"


def statuses(snapshot: Snapshot) -> list[ServerStatus]:
    """Every word on the servers, of all processes."""
    return [status for process in snapshot.processes for status in process.servers]


def _server(board: Board, *, past: bool) -> Line:
    told = [
        s
        for p in board.snapshot.processes
        if past or p.pid not in board.silent
        for s in p.servers
    ]
    down = [status for status in told if status.down]
    known = [status for status in told if status.version]
    if down:
        since = [s.silent_s for s in down if s.silent_s is not None]
        age = f" {duration(min(since))}" if since else ""
        return (("  db ", "muted"), (f"DOWN{age}", "bad"), *_versions(known, dim=True))
    if past or not known:
        return _versions(known, dim=True)
    read = max((status.read_s or 0.0) for status in known)
    time: Line = (("  db ", "muted"), (short_time(read or None), "text"))
    return (*time, *_versions(known, dim=False))


def _versions(known: Sequence[ServerStatus], *, dim: bool) -> Line:
    """Name the server with its sessions, or count the servers; dim if that is past."""
    if not known:
        return ()
    if len({status.address for status in known}) > 1:
        return ((f"  {len(known)} servers", "muted"),)
    status = known[0]
    runs: list[Run] = [(f"  PostgreSQL {one_line(status.version or '', 12)}", "muted")]
    if status.sessions is not None and status.max_connections is not None:
        tight = status.sessions >= 0.9 * status.max_connections
        runs.append(("  sessions ", "muted"))
        count = f"{status.sessions}/{status.max_connections}"
        runs.append((count, "faint" if dim else "warn" if tight else "text"))
    return tuple(runs)


def why(board: Board, now: float, cells: int, lines: int) -> list[Line]:
    """Give the worst that is known: of the view itself, else of the pools."""
    mode = board.mode(now)
    told = _view(board, mode) or _worst(board, now, cells)
    padded = [*told, (), ()][:lines]
    return [crop(line, cells - 2) for line in padded]


def _view(board: Board, mode: Mode) -> list[Line]:
    error = one_line(board.error or "no answer")
    if mode == "starting":
        return [(("  WHY  ", "title"), ("waiting for the first answer", "muted"))]
    if mode == "none":
        return [(("  WHY  ", "title"), ("no instrumented process found", "warn"))]
    if mode == "lost":
        gone = silence.ended(board) or "no process is watched any more"
        text = f"■ {gone}; this is what was last seen"
        return [
            _first(text, "bad"),
            _second("the next process is shown when it starts"),
        ]
    if mode == "failed":
        return [_first(f"■ {error}", "bad")]
    return []


def _first(text: str, ink: str) -> Line:
    return (("  WHY  ", "title"), (text, ink))


def _second(text: str) -> Line:
    return (("       ", "text"), (one_line(text), "muted"))


Trouble = tuple[str, str, str]
"""What is wrong, the ink of its shape, and what helps."""


def troubles(board: Board, now: float) -> list[Trouble]:
    """List what is wrong: silent servers and processes, then what they are hiding."""
    found = [
        (finding.kind, (finding.text, SEVERITY_INK[finding.severity], finding.remedy))
        for _, finding in board.findings()
    ]
    down = [trouble for kind, trouble in found if kind == "server_down"]
    others = [trouble for kind, trouble in found if kind != "server_down"]
    quiet = [(text, "bad", "") for text in silence.silent(board, now)]
    return [*down, *quiet, *others]


def _worst(board: Board, now: float, cells: int) -> list[Line]:
    found = troubles(board, now)
    if not found:
        return _blind(board) or _healthy(board)
    text, ink, remedy = found[0]
    more: Line = ()
    if len(found) > 1:
        more = ((f"  +{len(found) - 1} more ", "muted"), ("w", "accent"))
    shape = next(SEVERITY_SHAPE[s] for s, each in SEVERITY_INK.items() if each == ink)
    head: Line = (
        ("  WHY  ", "title"),
        (f"{shape} ", ink),
        (one_line(text), "strong"),
    )
    first = (*crop(head, cells - length(more) - 2), *more)
    after = f"also: {found[1][0]}" if not remedy and len(found) > 1 else remedy
    return (
        [first, (("       → ", "muted"), (one_line(after), "muted"))]
        if after
        else [first]
    )


def _blind(board: Board) -> list[Line]:
    """Never call healthy what is not recorded, or a server that is not read."""
    off = sum(p.switched_off for each in board.snapshot.processes for p in each.pools)
    if off:
        text = (
            f"■ {plural(off, 'pool')} not recorded any more: a hook of poolwatch failed"
        )
        return [_first(text, "bad"), _second("see the application's log")]
    unread = unread_servers(board.snapshot)
    if not unread:
        return []
    text = "◆ no trouble is seen in the application, but its server is not read"
    return [_first(text, "warn"), _second(unread[0])]


def unread_servers(snapshot: Snapshot) -> list[str]:
    """Say why a server is not read, unless the application does not want it to be."""
    errors = [s.error for s in statuses(snapshot) if s.error and s.enabled]
    return list(dict.fromkeys(one_line(error) for error in errors))


def _healthy(board: Board) -> list[Line]:
    held = [row.hold.held_s for row in board.rows.values()]
    longest = f", the longest for {duration(max(held))}" if held else ""
    waits = sum(len(process.waits) for process in board.snapshot.processes)
    asks = f", {plural(waits, 'request')} waiting" if waits else ", nobody waits"
    text = f"{plural(len(held), 'connection')} out{longest}{asks}"
    first: Line = (("  WHY  ", "title"), ("✓ healthy ", "good"), (f" {text}", "muted"))
    gone = silence.ended(board)
    return [first, _second(gone)] if gone else [first]
