"""The holds of a snapshot, with their verdicts and their order by harm.

Lock waits are matched across all processes, but only between connections to the same
server address: backends of two servers can have the same pid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from poolwatch.model import (
    FindingKind,
    Hold,
    PoolStats,
    Process,
    ServerRow,
    Snapshot,
)
from poolwatch.text.naming import holder_name

ProcessKey = tuple[str, int, str]
"""Host, pid and start time: containers may share a host name or a pid."""
Key = tuple[int, str, str, str]
"""Process pid, hold id, host, and start time of the process."""

Word = Literal["GHOST", "LEAKED", "BLOCKS", "BLOCKED", "IDLE-TX", "LONG", "ok"]

VERDICTS: dict[Word, tuple[str, str, str]] = {
    "GHOST": ("◌", "bad", "its session on the server has ended"),
    "LEAKED": ("■", "bad", "no code is left that could return it"),
    "BLOCKS": ("▲", "bad", "others wait for a lock that it holds"),
    "BLOCKED": ("▽", "warn", "waits for a lock of another backend"),
    "IDLE-TX": ("◆", "warn", "its transaction is open and idle"),
    "LONG": ("●", "warn", "held over the threshold, its code still runs"),
    "ok": ("·", "good", "nothing is wrong"),
}
"""Shape, ink and meaning, worst first; shapes tell them apart without colour."""

_Backend = tuple[str | None, int]
"""A running server, and the pid of one of its backends."""


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One hold, with its process, its pool, and the lock waits it is part of."""

    key: Key
    process: Process
    pool: PoolStats | None
    hold: Hold
    word: Word
    victims: tuple[Hold, ...]
    """Holds that wait for a lock of this hold."""
    blockers: tuple[tuple[int, Hold | None], ...]
    """Pids of the backends it waits for; with the hold, if it is a known one."""

    @property
    def verdict(self) -> str:
        """The verdict in one word, with the number of blocked holds."""
        return f"BLOCKS {len(self.victims)}" if self.word == "BLOCKS" else self.word

    @property
    def mark(self) -> tuple[str, str]:
        """The verdict with its shape, and the ink of both."""
        shape, ink, _ = VERDICTS[self.word]
        return f"{shape} {self.verdict}", ink

    @property
    def pool_name(self) -> str:
        """Name of the pool, or its id when the pool is gone."""
        return self.pool.name if self.pool else self.hold.pool

    @property
    def holder(self) -> str:
        """The task if there is one, else the thread."""
        return holder_name(self.hold)


def process_key(process: Process) -> ProcessKey:
    """Return what identifies a process."""
    return process.host, process.pid, process.started_at


def hold_key(process: Process, hold_id: str) -> Key:
    """Return what identifies a hold."""
    return process.pid, hold_id, process.host, process.started_at


def build(snapshot: Snapshot) -> list[Row]:
    """Return a row for each hold of all processes, unsorted."""
    holds = [(p, h, _backend(p, h)) for p in snapshot.processes for h in p.holds]
    hold_of = {backend: hold for _, hold, backend in holds if backend}
    victims: dict[_Backend, list[Hold]] = {}
    for _, hold, backend in holds:
        if hold.server and backend:
            for pid in hold.server.blocked_by:
                victims.setdefault((backend[0], pid), []).append(hold)
    idle_in_transaction = _named_by(snapshot, "idle_in_transaction")
    ghosts = _named_by(snapshot, "ghost")
    pools = {
        (process_key(p), pool.id): pool for p in snapshot.processes for pool in p.pools
    }
    rows = []
    for process, hold, backend in holds:
        key = hold_key(process, hold.id)
        blocked = tuple(victims.get(backend, ())) if backend else ()
        blocked_by = hold.server.blocked_by if hold.server else ()
        address = backend[0] if backend else None
        rows.append(
            Row(
                key,
                process,
                pools.get((process_key(process), hold.pool)),
                hold,
                "GHOST"
                if key in ghosts
                else _word(hold, blocked, key in idle_in_transaction),
                blocked,
                tuple((pid, hold_of.get((address, pid))) for pid in blocked_by),
            )
        )
    return rows


def _named_by(snapshot: Snapshot, kind: FindingKind) -> set[Key]:
    """The holds that findings of this kind name."""
    return {
        hold_key(process, hold)
        for process in snapshot.processes
        for finding in process.findings
        if finding.kind == kind
        for hold in finding.holds
    }


def _backend(process: Process, hold: Hold) -> _Backend | None:
    """Return the backend's server and pid; None without a server view."""
    if hold.server is None or hold.backend_pid is None:
        return None
    for status in process.servers:
        if hold.pool in status.pools:
            # two hosts may call two servers by the same address
            address = f"{status.address} of {process.host}"
            return status.identity or address, hold.backend_pid
    return None, hold.backend_pid


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


def by_harm(row: Row) -> tuple[Any, ...]:
    """Sort key: the most harmful first; equal rows always in the same order."""
    rank = list(VERDICTS).index(row.word)
    tie_break = row.key[0], len(row.key[1]), *row.key[1:]
    return rank, -len(row.victims), -row.hold.held_s, *tie_break


def short_state(row: ServerRow | None) -> str | None:
    """Return the backend's state in one word: ``idle-tx`` for "idle in transaction"."""
    state = row.state if row else None
    if state is None:
        return None
    state = state.replace("idle in transaction", "idle-tx")
    return state.replace(" (aborted)", "!").replace(
        "fastpath function call", "fastpath"
    )
