"""The pools panel: one line each, how full it is and how it has been."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from poolwatch.diagnosis.holds import leaves_open
from poolwatch.model import FrozenMark, PoolStats, Process, Snapshot
from poolwatch.text.format import duration, fit, one_line, short_time
from poolwatch.text.frozen import happened, moment, pool_name
from poolwatch.text.naming import process_name
from poolwatch.tui.draw.gauge import bar, spark
from poolwatch.tui.draw.line import Line, Run, crop, length, right
from poolwatch.tui.draw.table import GAP, Column, Layout, arrange, heads
from poolwatch.tui.state.board import TICKS, Board

COLUMNS = (
    Column("pool", "POOLS", 10, 16, 0),
    Column("process", "process", 14, 22, 7),
    Column("gauge", "", 8, 30, 2),
    Column("out", "out", 7, 7, 1, right=True),
    Column("waiting", "waiting", 7, 7, 3, right=True),
    Column("waited", "waited", 8, 8, 6, right=True),
    Column("p99wait", "p99 wait", 8, 8, 4, right=True),
    Column("p99hold", "p99 hold", 8, 8, 5, right=True),
    Column("timeouts", "timeouts", 8, 8, 9, right=True),
    Column("gaveup", "gave up", 7, 7, 10, right=True),
    Column("leaked", "leaked", 6, 6, 8, right=True),
    Column("spark", "out, lately", 11, TICKS, 11, right=True),
)


_HARDLY = 0.005
"""Seconds waited per second, up to which it is not worth a word."""


def pool_lines(board: Board, cells: int, limit: int) -> list[Line]:
    """Draw at most ``limit`` lines, titles and notes included."""
    snapshot = board.snapshot
    several = len(snapshot.processes) > 1
    hidden = set() if several else {"process"}
    if board.past is not None:
        hidden.add("spark")
    layout = arrange(COLUMNS, cells - 4, hidden)
    lines = [_heads(layout)]
    pairs = [(p, pool) for p in snapshot.processes for pool in p.pools]
    pairs.sort(key=lambda pair: (pair[1].name, pair[0].pid, pair[1].id))
    notes = _notes(board, cells)
    room = max(limit - 1 - len(notes), 1)
    if len(pairs) > room:
        shown = max(room - 1, 1)
        most = sorted(pairs, key=lambda pair: -_pressure(pair[1]))[:shown]
        notes.insert(0, ((f"  +{len(pairs) - shown} calmer pools", "muted"),))
        pairs = [pair for pair in pairs if pair in most]  # each stays in its place
    lines += [_line(board, layout, process, pool) for process, pool in pairs]
    return [*lines, *notes][: max(limit, 2)]


def _heads(layout: Layout) -> Line:
    """Give the titles, the first of them being the panel's own."""
    (margin, _), (first, _), *others = heads(layout)
    return ((margin, "text"), (first, "title"), *others)


def _pressure(pool: PoolStats) -> float:
    """Order pools by who is in need: waiters first, then fullness."""
    return pool.waiting * 10 + _share(pool)


def _share(pool: PoolStats) -> float:
    """How full the pool is, from 0 to 1; full if it has no slot left."""
    if pool.capacity == 0:
        return 1.0
    top = pool.capacity or pool.checked_out + (pool.idle or 0)
    return pool.checked_out / max(top, 1)


def level(pool: PoolStats) -> str:
    """Ink of a gauge: calm, into the overflow, or full.

    A pool that was made for one connection is calm while that one is out.
    """
    full = pool.capacity is not None and pool.checked_out >= pool.capacity
    if pool.waiting or (full and pool.slots != 1) or pool.capacity == 0:
        return "bad"
    return "warn" if pool.size and pool.checked_out > pool.size else "accent"


def _line(board: Board, layout: Layout, process: Process, pool: PoolStats) -> Line:
    runs: list[Run] = [("  ", "text")]
    for column, cells in layout:
        if column.key == "gauge":
            soft = (pool.size or 0) / pool.capacity if pool.capacity else 1.0
            runs += [*bar(_share(pool), cells, level(pool), soft), (GAP, "text")]
        elif column.key == "spark":
            history = board.history.get((process.pid, pool.id), ())
            line = spark(list(history), pool.capacity or 1, cells)
            runs.append((line + GAP, "accent"))
        else:
            text, ink = _CELLS[column.key](process, pool)
            place = right if column.right else fit
            runs.append((place(text, cells) + GAP, ink))
    return tuple(runs)


def _out(pool: PoolStats) -> Run:
    top = pool.capacity
    of = "∞" if pool.max_overflow == -1 else "-" if top is None else str(top)
    return f"{pool.checked_out}/{of}", level(pool).replace("accent", "text")


def _whose(process: Process) -> Run:
    return one_line(f"{process.pid} {process_name(process)}", 60), "muted"


_CELLS: dict[str, Callable[[Process, PoolStats], Run]] = {
    "pool": lambda _, pool: (one_line(pool.name, 60), "strong"),
    "process": lambda process, _: _whose(process),
    "out": lambda _, pool: _out(pool),
    "waiting": lambda _, pool: _count(pool.waiting, "bad"),
    "waited": lambda _, pool: _waited(pool.waiting_s_per_s),
    "p99wait": lambda _, pool: _time(pool.wait_s.p99),
    "p99hold": lambda _, pool: _time(pool.hold_s.p99),
    "timeouts": lambda _, pool: _count(pool.counters.timeouts, "warn"),
    "gaveup": lambda _, pool: _count(pool.gave_up, "warn"),
    "leaked": lambda _, pool: _count(pool.counters.leaked, "bad"),
}


def _waited(rate: float) -> Run:
    """Give the seconds waited per second, of all requests together."""
    if rate <= _HARDLY:
        return "0", "faint"
    digits = 2 if rate < 0.1 else 1 if rate < 99.5 else 0
    return f"{rate:.{digits}f} s/s", "warn"


def _count(number: int, ink: str) -> Run:
    return str(number), ink if number else "faint"


def _time(seconds: float | None) -> Run:
    if seconds is None:
        return "-", "faint"
    short = short_time(seconds) if seconds < 9.95 else duration(seconds)
    return short, "text"


def _notes(board: Board, cells: int) -> list[Line]:
    """Say what is not recorded, not read and not looked at, and what was kept."""
    processes = board.snapshot.processes
    off = switched_off(board.snapshot)
    notes: list[Line] = [(("  ■ ", "bad"), (text, "bad")) for text in off]
    notes += _unread(board.snapshot)
    kept = _kept([(each, mark) for each in processes for mark in each.frozen])
    undecided = filter(leaves_open, processes)
    left = [one_line(text) for each in undecided for text in each.left_out]
    notes += [_cut(*kept, cells - 2)] if kept else []
    if left:
        notes.append((("  · ", "faint"), (f"left out: {'; '.join(left)}", "muted")))
    return [crop(note, cells - 2) for note in notes]


def switched_off(snapshot: Snapshot) -> list[str]:
    """Name the pools of which nothing is recorded any more."""
    return [
        f"pool {one_line(pool.name, 24)}: nothing is recorded here: a hook of "
        "poolwatch failed, see the application's log"
        for process in snapshot.processes
        for pool in process.pools
        if pool.switched_off
    ]


def _unread(snapshot: Snapshot) -> list[Line]:
    """Say why there is no server view, and who did not answer."""
    notes: list[Line] = []
    told: set[str] = set()
    for process in snapshot.processes:
        names = {pool.id: pool.name for pool in process.pools}
        for status in process.servers:
            if not names.keys() & set(status.pools):
                continue  # they were collected since
            if status.error and status.error not in told:
                told.add(status.error)
                whose = ", ".join(names[pool] for pool in status.pools if pool in names)
                text = f"no server view of {whose}: {status.error}"
                notes.append((("  ◆ ", "warn"), (one_line(text), "muted")))
    for gone in snapshot.unreachable:
        if gone.alive is False:
            continue
        pid = "a process" if gone.pid is None else f"process {gone.pid}"
        text = f"{pid} gives no answer: {gone.why}"
        notes.append((("  ◆ ", "warn"), (one_line(text), "muted")))
    return notes


def _kept(marks: Sequence[tuple[Process, FrozenMark]]) -> tuple[Line, Line] | None:
    """Name the pictures kept of earlier trouble, the newest first, and the key."""
    if not marks:
        return None
    newest = sorted(marks, key=lambda pair: pair[1].at, reverse=True)
    told = [
        f"{pool_name(process, mark.pool)} {happened(mark.kind)[0]} {_when(mark.at)}"
        for process, mark in newest
    ]
    first: Line = (("  ● ", "accent"), ("kept: ", "muted"), (", ".join(told), "text"))
    return first, (("  z", "accent"), (" shows them", "muted"))


def _cut(first: Line, key: Line, cells: int) -> Line:
    """Leave room for the key, however much is to be said before it."""
    return (*crop(first, max(cells - length(key), 12)), *key)


def _when(at: str) -> str:
    """Shorten ``2026-01-01T03:12:44+00:00``: the day only if it is another one."""
    day, time = moment(at)
    today = datetime.now(UTC).date().isoformat()
    return time if day == today else f"{day} {time}".strip()
