"""The sessions of the servers: whose each is, and their order by harm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple
from urllib.parse import SplitResult, urlsplit

from poolwatch.diagnosis.blocking import Node
from poolwatch.diagnosis.sessions import (
    PREPARED,
    KeptLock,
    Key,
    Session,
    is_session_of,
    server_of,
    servers_by_pool,
)
from poolwatch.model import (
    OWN_NAME,
    Backend,
    ClosedConnection,
    Frame,
    LockRequest,
    PoolStats,
    Process,
    ServerRow,
    Snapshot,
)
from poolwatch.text.format import neutral, one_line
from poolwatch.tui.state.rows import VERDICTS, Row, hold_key
from poolwatch.tui.state.rows import Key as HoldKey
from poolwatch.tui.state.trees import Trees

_NEW_S = 2.0
"""A session without a name is not told as a stranger's before it is this old."""
Kind = Literal["held", "idle", "nobody's", "not ours", "poolwatch", "unknown"]


class Departed(NamedTuple):
    """A connection that an application has given up, but the server still serves."""

    process: Process
    connection: ClosedConnection


@dataclass(frozen=True, slots=True, eq=False)
class SessionRow:
    """One session."""

    key: Key
    session: Session
    kind: Kind
    hold: Row | None = None
    """The row of its hold."""
    departed: Departed | None = None
    node: Node | None = None
    """Its place among the sessions that wait for locks, or hold up others."""

    @property
    def kept(self) -> KeptLock | None:
        """The session-level lock that others wait for, if an earlier user took it."""
        return self.node.session.kept if self.node else None

    @property
    def lock(self) -> LockRequest | None:
        """The request of that lock, if it was seen."""
        return self.kept.request if self.kept else None

    @property
    def row(self) -> ServerRow | None:
        """Its row of ``pg_stat_activity``, if known."""
        return self.session.row

    @property
    def backend(self) -> Backend | None:
        """What the server says of its client; None if this was not asked for."""
        return self.session.backend

    @property
    def process(self) -> Process | None:
        """The instrumented process that has it, or has given it up."""
        return self.departed.process if self.departed else self.session.process

    @property
    def site(self) -> Frame | None:
        """The call site of its hold, or of its last one; or who requested its lock."""
        if self.lock is not None:
            return self.lock.sent or self.lock.site
        if self.departed is not None:
            return self.departed.connection.site
        known = self.session.hold or self.session.idle
        return known.site if known else None

    @property
    def pool(self) -> str | None:
        """The name of its pool, or its id when the pool is gone."""
        found = self._pool()
        return found.name if isinstance(found, PoolStats) else found

    @property
    def url(self) -> SplitResult | None:
        """The URL of its pool, which says what the server was not asked for."""
        found = self._pool()
        try:
            return urlsplit(found.url or "") if isinstance(found, PoolStats) else None
        except ValueError:
            return None

    def _pool(self) -> PoolStats | str | None:
        closed = self.departed.connection if self.departed else None
        known = self.session.hold or self.session.idle or closed
        if self.process is None or known is None:
            return None
        pools = (pool for pool in self.process.pools if pool.id == known.pool)
        return next(pools, known.pool)

    @property
    def just_taken(self) -> bool:
        """Whether it was idle in its pool, but in use when the server was read."""
        idle, row = self.session.idle, self.row
        if idle is None or row is None or idle.unchanged_s >= 0:
            return False
        return row.state not in (None, "idle")

    @property
    def holds_up(self) -> int:
        """Number of sessions that wait for it, at once or behind others."""
        return self.node.holds_up if self.node else 0

    @property
    def statement(self) -> str | None:
        """The last statement: as the server has it, or as the application sent it."""
        sent = self.session.hold.statement if self.session.hold else None
        return (self.row.query if self.row else None) or sent

    @property
    def mark(self) -> tuple[str, str]:
        """Shape and ink."""
        if self.hold is not None:
            return VERDICTS[self.hold.word][:2]
        if self.node is not None:
            return VERDICTS["ROOT" if self.node.is_root else "BLOCKED"][:2]
        if self.kind == "nobody's":
            return "◆", "warn"
        return ("○", "muted") if self.kind == "idle" else ("·", "muted")


def session_rows(
    snapshot: Snapshot, trees: Trees, holds: Mapping[HoldKey, Row]
) -> dict[Key, SessionRow]:
    """Return a row for each known session, the most harmful first."""
    departed = _departed(snapshot, trees.sessions)
    rows = [
        session_row(key, session, trees, holds, departed.get(key))
        for key, session in trees.sessions.items()
    ]
    return {row.key: row for row in sorted(rows, key=_by_harm)}


def session_row(
    key: Key,
    session: Session,
    trees: Trees,
    holds: Mapping[HoldKey, Row],
    departed: Departed | None = None,
) -> SessionRow:
    """Return the row of one session."""
    hold = None
    if session.hold is not None and session.process is not None:
        hold = holds.get(hold_key(session.process, session.hold.id))
    node = trees.node(key)
    kind = _kind(session, departed)
    return SessionRow(key, session, kind, hold, departed, node)


def _kind(session: Session, departed: Departed | None) -> Kind:
    if session.hold is not None:
        return "held"
    if session.idle is not None:
        return "idle"
    if departed is not None:
        return "nobody's"
    if session.backend is None or _is_new(session.backend):
        return "unknown"
    return "poolwatch" if session.backend.application == OWN_NAME else "not ours"


def _is_new(backend: Backend) -> bool:
    """Whether it has just connected: it has said neither its name nor anything."""
    is_young = backend.age_s is not None and backend.age_s < _NEW_S
    return is_young and not (backend.application or backend.row.query)


def _departed(
    snapshot: Snapshot, sessions: Mapping[Key, Session]
) -> dict[Key, Departed]:
    """The sessions whose connection an application has given up."""
    found = {}
    for process in snapshot.processes:
        servers = servers_by_pool(process) if process.departed else {}
        for gone in process.departed:
            address = gone.connection.address or "-"
            status = servers.get(gone.pool)
            for each in [status] if status else process.servers:
                key = server_of(process, each), gone.backend_pid
                session = sessions.get(key)
                if (
                    (status or each.address == address)
                    and session is not None
                    and session.process is None
                    and session.backend is not None
                    and is_session_of(gone.connection, session.backend)
                ):
                    found[key] = Departed(process, gone)
    return found


_WORDS = list(VERDICTS)
_KINDS: tuple[Kind, ...] = ("held", "not ours", "idle", "poolwatch", "unknown")


def _by_harm(row: SessionRow) -> tuple[Any, ...]:
    """Sort key: roots, and what is nobody's; the others as in the table of holds."""
    rank = float(len(_WORDS) - 1)  # that of a hold without a fault
    if row.hold is not None:
        rank = _WORDS.index(row.hold.word)
    elif row.node is not None:
        rank = _WORDS.index("ROOT" if row.node.is_root else "BLOCKED")
    elif row.kind == "nobody's":
        rank = _WORDS.index("BLOCKED") - 0.5
    else:
        rank += _KINDS.index(row.kind)
    age_s = row.row.state_age_s if row.row else None
    return rank, -row.holds_up, -(age_s or 0.0), row.key


def whose(row: SessionRow) -> str:
    """Name the holder, or say what kind of session it is."""
    if row.hold is not None:
        labels = " ".join(list(row.hold.hold.labels.values())[:4])
        return one_line(f"{row.hold.holder} {labels}", 60)
    if row.just_taken:
        return one_line(f"just taken from {row.pool}", 60)
    if row.kind == "idle":
        return one_line(f"idle in pool {row.pool}", 60)
    if row.kind == "poolwatch":
        return "poolwatch's own"
    if row.kind == "unknown" and row.backend is not None:
        return "just connected"
    return "a prepared transaction" if row.session.pid == PREPARED else row.kind


def stranger(row: SessionRow, *, with_port: bool = False) -> str:
    """Name a session of another program: ``"metabase" 10.0.9.2:51244``."""
    return f'"{application(row)}" {address(row, with_port=with_port)}'.rstrip()


def application(row: SessionRow) -> str:
    """Return the application_name, or else the role."""
    backend = row.backend
    if backend is None:
        return "?"
    return one_line(backend.application or backend.user or "no application_name", 60)


def address(row: SessionRow, *, with_port: bool = False) -> str:
    """Return where the client is, as the server sees it; empty if that is hidden."""
    backend = row.backend
    if backend is None or backend.client_port is None:
        return ""
    if backend.client is None:
        return "local"
    port = f":{backend.client_port}" if with_port else ""
    return neutral(f"{backend.client}{port}")
