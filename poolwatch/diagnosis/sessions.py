"""Assigns the sessions of a server to holds, idle connections and other programs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime
from functools import cached_property
from typing import NamedTuple, TypeVar

from poolwatch.model import (
    Backend,
    Connection,
    Frame,
    Hold,
    IdleConnection,
    LockRequest,
    Process,
    ServerRow,
    ServerStatus,
)

IN_TRANSACTION = "idle in transaction"
"""The beginning of the states of a backend with an open transaction and no work."""
PREPARED = 0
"""Stands for the pid of a prepared transaction."""
_ADVISORY = "Lock:advisory"
"""The wait event of a session that waits for an advisory lock."""
_MAX_CHAIN = 64
"""Maximum number of sessions that are followed from one that waits."""
_MOMENT_S = 2.0
"""Seconds between two readings of the same refresh, at most."""
_CLOCKS_S = 0.5
"""Seconds by which the clocks of two hosts may differ."""

_Connected = TypeVar("_Connected", Hold, IdleConnection)

Key = tuple[str, int]
"""The identity of a server, and the pid of a backend on it."""


class KeptLock(NamedTuple):
    """A session lock that came back to the pool with its connection.

    Whoever uses the connection now knows nothing of it.
    """

    request: LockRequest | None
    """The statement that requested it, if it was seen."""
    site: Frame | None
    """The call site to blame, if it is known."""


class Session(NamedTuple):
    """One session, with what is proven to have it; all None for an unknown one."""

    pid: int
    process: Process | None = None
    hold: Hold | None = None
    idle: IdleConnection | None = None
    backend: Backend | None = None
    advisory: bool = False
    """As a blocker: of a session that waits for an advisory lock."""
    kept: KeptLock | None = None
    """As such a blocker: the lock, if it stays whoever uses the connection."""

    @property
    def row(self) -> ServerRow | None:
        """Its row of ``pg_stat_activity``, if known."""
        known = self.hold or self.idle
        if known is not None and known.server is not None:
            return known.server
        return None if self.backend is None else self.backend.row

    @property
    def is_waiting(self) -> bool:
        """Whether it has to wait itself before it can let go."""
        if self.kept is not None:
            return False  # who uses the connection cannot release the lock
        return self.row is not None and (self.row.wait_event or "").startswith("Lock:")


class Sessions:
    """The known sessions of all servers.

    A pid means the same session only on the same server.
    """

    def __init__(self, processes: Sequence[Process]) -> None:
        self.known: dict[Key, Session] = {}
        for process in processes:
            for server in process.servers:
                key = server_of(process, server)
                for backend in server.others:
                    session = Session(backend.pid, backend=backend)
                    self.known[key, backend.pid] = session
        for process in processes:
            self._add(process, process.idle)
        for process in processes:  # last: a hold may be idle in a pool over its own
            self._add(process, process.holds)

    def _add(self, process: Process, connections: Iterable[_Connected]) -> None:
        servers = servers_by_pool(process)
        for each in connections:
            if each.pool not in servers:
                continue
            pid = each.backend_pid or 0
            key = server_of(process, servers[each.pool]), pid
            known = self.known.get(key)
            backend = None if known is None else known.backend
            if each.server is None:
                if backend is None or not is_session_of(each.connection, backend):
                    continue
                each = _read_by_another(each, backend.row)  # noqa: PLW2901
            self.known[key] = (
                Session(pid, process, hold=each, backend=backend)
                if isinstance(each, Hold)
                else Session(pid, process, idle=each, backend=backend)
            )

    def get(self, server: str, pid: int) -> Session:
        """Return a session by the identity of its server and its pid."""
        return self.known.get((server, pid)) or Session(pid)

    def blockers(self, server: str, waiting: Session) -> list[Session]:
        """Return the sessions that block another one."""
        pids = waiting.row.blocked_by if waiting.row is not None else ()
        return [self.blocker(server, waiting, pid) for pid in pids]

    def blocker(self, server: str, waiting: Session, pid: int) -> Session:
        """Return a session that blocks another one, as far as it is proven."""
        found, row = self.get(server, pid), waiting.row
        if row is not None and row.wait_event == _ADVISORY:
            found = _seen_by(waiting, found._replace(advisory=True))
            kept = self._kept.get((server, pid))
            return found if found.row is None else found._replace(kept=kept)
        is_past = waiting.process is not None and waiting.process.at is not None
        return _seen_by(waiting, found) if is_past else found

    @cached_property
    def _kept(self) -> dict[Key, KeptLock]:
        """The locks that stay with their sessions, whoever uses the connections."""
        longest: dict[Key, float] = {}
        for (server, _), session in self.known.items():
            row = session.row
            if row is None or row.wait_event != _ADVISORY:
                continue
            waited_s = row.state_age_s if row.waited_s is None else row.waited_s
            for pid in row.blocked_by:
                key, other = (server, pid), self.get(server, pid)
                waits = other.row is not None and other.row.wait_event == _ADVISORY
                if waits and len(row.blocked_by) > 1:
                    continue  # it may only be ahead in the queue
                earlier_s = (waited_s or 0.0) - _apart_s(session, other)
                longest[key] = max(earlier_s, longest.get(key, earlier_s))
        kept = {key: _kept_lock(self.get(*key), s) for key, s in longest.items()}
        return {key: lock for key, lock in kept.items() if lock is not None}

    def roots(self, server: str, waiting: Session) -> list[Session]:
        """Return the sessions at the end of the chains of waits that begin at one.

        These wait for no lock. A chain that leads to an unknown session has no root.
        """
        reached: dict[int, Session] = {}
        chain = [waiting]
        for link in chain:
            for each in self.blockers(server, link):
                if each.pid in reached or len(reached) >= _MAX_CHAIN:
                    continue
                reached[each.pid] = each
                if each.is_waiting:
                    chain.append(each)
        return [each for each in reached.values() if each.row and not each.is_waiting]


def is_session_of(connection: Connection | None, backend: Backend) -> bool:
    """Whether a row that another process has read is that of a connection.

    Both have the same pid on the same server. The port or the age tells it from an
    earlier backend with that pid.
    """
    if connection is None:
        return False
    port = connection.client_port
    if port is not None and port == backend.client_port:
        return True
    if backend.age_s is None or connection.met:
        return False
    apart_s = abs(backend.age_s - connection.age_s)
    return apart_s <= _MOMENT_S + (connection.connect_s or 0.0)


def _read_by_another(each: _Connected, row: ServerRow) -> _Connected:
    """A connection whose row was read at about, not exactly, the same time."""
    if isinstance(each, IdleConnection):
        return replace(each, unchanged_s=(row.state_age_s or 0.0) - _MOMENT_S)
    longest_s = max(row.state_age_s or 0.0, row.xact_age_s or 0.0)
    return replace(each, may_have_ended=longest_s < _MOMENT_S)


def _seen_by(waiting: Session, blocker: Session) -> Session:
    """Return a blocker without what may have changed since it blocked.

    In a history, the snapshots of two processes are seconds apart. The blocker is known
    to be the same if its transaction (for an advisory lock: its hold) was open when the
    other session was seen waiting, and the other one waited when this one was seen.
    """
    first, second, row = waiting.process, blocker.process, waiting.row
    if row is None or first is None or second is None or first is second:
        return blocker
    if first.at is None or second.at is None:  # both are of now
        return blocker
    then, now = map(datetime.fromisoformat, (first.at, second.at))
    apart_s = (now - then).total_seconds()
    margin_s = 0.0 if first.host == second.host else _CLOCKS_S
    waited = (row.state_age_s or 0.0) >= margin_s - apart_s
    if waited and _open_s(blocker) >= margin_s + apart_s:
        return blocker
    if blocker.hold is not None:
        hold = replace(blocker.hold, may_have_ended=True, server=None)
        return blocker._replace(hold=hold, backend=None)
    if blocker.idle is not None:
        idle = replace(blocker.idle, unchanged_s=-1.0, server=None)
        return blocker._replace(idle=idle, backend=None)
    return blocker


def _open_s(blocker: Session) -> float:
    """How long the lock may have been there: with its transaction, else its hold."""
    if blocker.idle is not None:
        return blocker.idle.unchanged_s
    hold, row = blocker.hold, blocker.row
    if hold is None or row is None:
        return 0.0
    if blocker.advisory or (row.xact_age_s is None and row.state != "idle"):
        return hold.known_s
    return min(hold.known_s, row.xact_age_s or 0.0)


def _kept_lock(blocker: Session, waited_s: float) -> KeptLock | None:
    """The lock of a pooled connection that its present user has not taken.

    The server serves requests for a lock in turn: a session that blocks another one had
    the lock when that one began to wait. So who has come to the connection since is not
    to blame, whether the request was seen or not. ``waited_s``: how long the other one
    had waited when the process of the blocker was read; negative if it may have begun
    later.
    """
    hold, idle = blocker.hold, blocker.idle
    if hold is not None and hold.server is not None:
        request = hold.earlier_lock
        is_earlier = request is not None and not hold.may_have_ended
        out_s = hold.held_s if request is None else 0.0  # None: adopted, nobody knows
        if is_earlier or (out_s is not None and waited_s >= out_s):
            return KeptLock(request, request.site if request else None)
    elif idle is not None and idle.server is not None:
        request, was_idle = idle.lock, idle.unchanged_s >= 0.0
        if was_idle and idle.server.state != "idle":
            return None  # of a transaction
        if (was_idle and idle.advisory_locks) or waited_s >= 0.0:
            had_it = was_idle and idle.returned_s + idle.held_s >= waited_s
            last = idle.site if had_it else None
            return KeptLock(request, request.site if request else last)
    return None


def _apart_s(waiting: Session, blocker: Session) -> float:
    """Seconds from the reading of a blocker's process to that of who waits, at most."""
    process, known = blocker.process, blocker.hold or blocker.idle
    if process is None or known is None or waiting.process is not process:
        return _MOMENT_S
    late_s = servers_by_pool(process)[known.pool].late_s
    return _MOMENT_S if late_s is None else late_s


def server_of(process: Process, status: ServerStatus) -> str:
    """The identity of a server; if it is unknown, its address on that host."""
    # two hosts may call two servers by the same address
    return status.identity or f"{status.address} of {process.host}"


def holds_with_rows(process: Process) -> list[tuple[Hold, ServerRow, ServerStatus]]:
    """The holds whose backend is proven, with its row and its server."""
    servers = servers_by_pool(process)
    return [
        (hold, hold.server, servers[hold.pool])
        for hold in process.holds
        if hold.server is not None and hold.pool in servers
    ]


def idle_with_rows(process: Process) -> list[tuple[IdleConnection, ServerStatus]]:
    """The idle connections with a row and a server; few have one: see activity.sql."""
    servers = servers_by_pool(process)
    return [
        (idle, servers[idle.pool])
        for idle in process.idle
        if idle.server is not None and idle.pool in servers
    ]


def servers_by_pool(process: Process) -> dict[str, ServerStatus]:
    """The status of each pool's server, by the id of the pool."""
    return {pool: server for server in process.servers for pool in server.pools}
