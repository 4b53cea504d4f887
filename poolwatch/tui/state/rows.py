"""From a snapshot to the rows of the holders table: one word of verdict, and an order.

Pure functions. Who blocks whom is read across all processes, but only between
connections to the same server address: the same pid may exist on two servers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from poolwatch.model import FindingKind, Hold, PoolStats, Process, Snapshot
from poolwatch.text.format import place
from poolwatch.text.naming import holder_name

Key = tuple[int, str]
"""What a selection follows: pid of the process and id of the hold."""

Word = Literal["LEAKED", "BLOCKS", "BLOCKED", "IDLE-TX", "LONG", "ok"]

ORDER: tuple[Word, ...] = ("LEAKED", "BLOCKS", "BLOCKED", "IDLE-TX", "LONG", "ok")
"""By harm, the worst first."""

SHAPES: dict[Word, str] = {
    "LEAKED": "■",
    "BLOCKS": "▲",
    "BLOCKED": "▽",
    "IDLE-TX": "◆",
    "LONG": "●",
    "ok": "·",
}
"""A shape for each verdict, so that no one needs the colour."""

INK: dict[Word, str] = {
    "LEAKED": "bad",
    "BLOCKS": "bad",
    "BLOCKED": "warn",
    "IDLE-TX": "warn",
    "LONG": "warn",
    "ok": "good",
}

_Backend = tuple[str | None, int]


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One hold with all that the table and the detail say of it."""

    key: Key
    process: Process
    pool: PoolStats | None
    hold: Hold
    word: Word
    victims: tuple[Hold, ...]
    """Holds that wait for a lock of this one."""
    blockers: tuple[tuple[int, Hold | None], ...]
    """Backends it waits for, with our hold where the backend is ours."""

    @property
    def verdict(self) -> str:
        """The word, with the number of those it blocks."""
        return f"BLOCKS {len(self.victims)}" if self.word == "BLOCKS" else self.word

    @property
    def pool_name(self) -> str:
        """Name of the pool, or its id when the pool is gone."""
        return self.pool.name if self.pool else self.hold.pool

    @property
    def holder(self) -> str:
        """The task if there is one, else the thread."""
        return holder_name(self.hold)


def build(snapshot: Snapshot) -> list[Row]:
    """Join the holds of all processes into rows, in no particular order."""
    found = [(p, h, _backend(p, h)) for p in snapshot.processes for h in p.holds]
    ours = {backend: hold for _, hold, backend in found if backend}
    victims: dict[_Backend, list[Hold]] = {}
    for _, hold, backend in found:
        if hold.server and backend:
            for pid in hold.server.blocked_by:
                victims.setdefault((backend[0], pid), []).append(hold)
    idle_in_transaction = _named(snapshot, "idle_in_transaction")
    pools = {(p.pid, pool.id): pool for p in snapshot.processes for pool in p.pools}
    rows = []
    for process, hold, backend in found:
        key = (process.pid, hold.id)
        waiting = tuple(victims.get(backend, ())) if backend else ()
        blocked_by = hold.server.blocked_by if hold.server else ()
        address = backend[0] if backend else None
        rows.append(
            Row(
                key,
                process,
                pools.get((process.pid, hold.pool)),
                hold,
                _word(hold, waiting, key in idle_in_transaction),
                waiting,
                tuple((pid, ours.get((address, pid))) for pid in blocked_by),
            )
        )
    return rows


def _backend(process: Process, hold: Hold) -> _Backend | None:
    """Tell one backend from every other; None when the server does not know it."""
    if hold.server is None or hold.backend_pid is None:
        return None
    for status in process.servers:
        if hold.pool in status.pools:
            return status.address, hold.backend_pid
    return None, hold.backend_pid


def _named(snapshot: Snapshot, kind: FindingKind) -> set[Key]:
    return {
        (process.pid, hold)
        for process in snapshot.processes
        for finding in process.findings
        if finding.kind == kind
        for hold in finding.holds
    }


def _word(hold: Hold, victims: Sequence[Hold], idle_in_transaction: bool) -> Word:
    if hold.verdict == "leaked":
        return "LEAKED"
    if victims:
        return "BLOCKS"
    if hold.server and hold.server.blocked_by:
        return "BLOCKED"
    idle = bool(hold.server and (hold.server.state or "").startswith("idle in trans"))
    if idle_in_transaction or (hold.verdict == "long" and idle):
        return "IDLE-TX"
    return "LONG" if hold.verdict == "long" else "ok"


Sort = Literal["harm", "held", "call site", "pool"]
SORTS: tuple[Sort, ...] = ("harm", "held", "call site", "pool")


def _last(row: Row) -> tuple[Any, ...]:
    """Break ties the same way at every refresh, so that equal rows never swap."""
    return row.key[0], len(row.key[1]), row.key[1]


def _harm(row: Row) -> tuple[Any, ...]:
    rank = ORDER.index(row.word)
    return rank, -len(row.victims), -row.hold.held_s, *_last(row)


_KEYS: dict[Sort, Callable[[Row], tuple[Any, ...]]] = {
    "harm": _harm,
    "held": lambda row: (-row.hold.held_s, *_last(row)),
    "call site": lambda row: (
        place(row.hold.site, 9),
        place(row.hold.caller, 9),
        *_harm(row),
    ),
    "pool": lambda row: (row.pool_name, *_harm(row)),
}


def ordered(rows: Iterable[Row], by: Sort) -> list[Row]:
    """Sort rows by what the user asked for."""
    return sorted(rows, key=_KEYS[by])
