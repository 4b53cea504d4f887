"""The holds of a snapshot, with their verdicts and their order by harm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from poolwatch.diagnosis.blocking import Node
from poolwatch.diagnosis.sessions import IN_TRANSACTION, server_of, servers_by_pool
from poolwatch.model import FindingKind, Hold, PoolStats, Process, ServerRow, Snapshot
from poolwatch.text.naming import holder_name
from poolwatch.tui.state.trees import Trees

ProcessKey = tuple[str, int, str]
"""Host, pid and start time: containers may share a host name or a pid."""
Key = tuple[int, str, str, str]
"""Process pid, hold id, host, and start time of the process."""

Word = Literal["ROOT", "GHOST", "LEAKED", "BLOCKED", "IDLE-TX", "LONG", "ok"]

VERDICTS: dict[Word, tuple[str, str, str]] = {
    "ROOT": ("▲", "bad", "it waits for no lock, and holds up n sessions"),
    "GHOST": ("◌", "bad", "its session on the server has ended"),
    "LEAKED": ("■", "bad", "no code is left that could return it"),
    "BLOCKED": ("▽", "warn", "waits for a lock of another backend"),
    "IDLE-TX": ("◆", "warn", "its transaction is open and idle"),
    "LONG": ("●", "warn", "held over the threshold, its code still runs"),
    "ok": ("·", "good", "nothing is wrong"),
}
"""Shape, ink and meaning, worst first; shapes tell them apart without colour."""
_RANKS = {word: rank for rank, word in enumerate(VERDICTS)}


@dataclass(frozen=True, slots=True, eq=False)
class Row:
    """One hold, with its process, its pool, and its place among the lock waits."""

    key: Key
    process: Process
    pool: PoolStats | None
    hold: Hold
    word: Word
    node: Node | None = None
    """Its place among the sessions that wait for locks, or hold up others."""

    @property
    def holds_up(self) -> int:
        """Number of sessions that wait for it, at once or behind others."""
        return self.node.holds_up if self.node else 0

    @property
    def verdict(self) -> str:
        """The verdict in one word; of a root, with the number it holds up."""
        return f"ROOT {self.holds_up}" if self.word == "ROOT" else self.word

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


def build(snapshot: Snapshot, trees: Trees) -> list[Row]:
    """Return a row for each hold of all processes, unsorted; ``trees``: its trees."""
    idle_in_transaction = _named_by(snapshot, "idle_in_transaction")
    ghosts = _named_by(snapshot, "ghost")
    rows = []
    for process in snapshot.processes:
        pools = {pool.id: pool for pool in process.pools}
        servers = {
            pool: server_of(process, status)
            for pool, status in servers_by_pool(process).items()
        }
        for hold in process.holds:
            key = hold_key(process, hold.id)
            node = _node(hold, servers.get(hold.pool), trees)
            word: Word = (
                "GHOST"
                if key in ghosts
                else _word(hold, node, key in idle_in_transaction)
            )
            rows.append(Row(key, process, pools.get(hold.pool), hold, word, node))
    return rows


def _node(hold: Hold, server: str | None, trees: Trees) -> Node | None:
    """Return the place of the hold's session; without a row its pid proves nothing."""
    if server is None or not trees.nodes:
        return None
    node = trees.node((server, hold.backend_pid or 0))
    if node is None or hold.server is not None:
        return node
    known = node.session.hold
    return node if known is not None and known.id == hold.id else None


def _named_by(snapshot: Snapshot, kind: FindingKind) -> set[Key]:
    """The holds that findings of this kind name."""
    return {
        hold_key(process, hold)
        for process in snapshot.processes
        for finding in process.findings
        if finding.kind == kind
        for hold in finding.holds
    }


def _word(hold: Hold, node: Node | None, idle_in_transaction: bool) -> Word:
    if node is not None and node.is_root:
        return "ROOT"
    if hold.verdict == "leaked":
        return "LEAKED"
    if node is not None:
        return "BLOCKED"
    idle = bool(hold.server and (hold.server.state or "").startswith(IN_TRANSACTION))
    if idle_in_transaction or (hold.verdict == "long" and idle):
        return "IDLE-TX"
    return "LONG" if hold.verdict == "long" else "ok"


def by_harm(row: Row) -> tuple[Any, ...]:
    """Sort key: the most harmful first; equal rows always in the same order."""
    rank = _RANKS[row.word]
    tie_break = row.key[0], len(row.key[1]), *row.key[1:]
    return rank, -row.holds_up, -row.hold.known_s, *tie_break


def short_state(row: ServerRow | None) -> str | None:
    """Return the backend's state in one word: ``idle-tx`` for "idle in transaction"."""
    state = row.state if row else None
    if state is None:
        return None
    state = state.replace("idle in transaction", "idle-tx")
    return state.replace(" (aborted)", "!").replace(
        "fastpath function call", "fastpath"
    )
