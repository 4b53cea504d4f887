"""The session that the user has selected, with what proves which backend it is."""

from __future__ import annotations

from poolwatch.diagnosis.sessions import (
    Session,
    holds_with_rows,
    idle_with_rows,
    server_of,
)
from poolwatch.errors import RefusedError
from poolwatch.model import Connection, ServerStatus, Snapshot
from poolwatch.model.actions import Chosen
from poolwatch.text.format import call_site, place
from poolwatch.text.naming import process_name


def chosen(
    session: Session,
    server: ServerStatus | None,
    snapshot: Snapshot,
    seen: tuple[float, float],
) -> Chosen:
    """Describe a session for an action; raises RefusedError if nothing proves it.

    ``seen``: the session was read between these times of ``time.monotonic()``.
    """
    if snapshot.at is not None:
        raise RefusedError("an action needs the present: this is the past")
    if session.pid <= 0:
        raise RefusedError("it has no backend that an action could reach")
    if _is_behind_pooler(session):
        raise RefusedError(
            f"a pooler may give backend {session.pid} to another client at any moment"
        )
    if server is None or server.identity is None:
        raise RefusedError(
            f"the server of backend {session.pid} was not read: which one it is on is "
            "not proven"
        )
    connection = _connection(session)
    if connection is None:
        raise RefusedError(f"nothing proves which backend has pid {session.pid} now")
    process, row = session.process, session.row
    return Chosen(
        pid=session.pid,
        server=server.identity,
        connection=connection,
        seen=seen,
        xact_age_s=row.xact_age_s if row else None,
        process=None
        if process is None
        else f"{process_name(process)}, pid {process.pid} on {process.host}",
        site=_site(session),
        sites=_sites(server, snapshot),
    )


def _is_behind_pooler(session: Session) -> bool:
    if session.hold is None or session.process is None:
        return False
    pools = session.process.pools
    return any(p.id == session.hold.pool and p.behind_pooler for p in pools)


def _connection(session: Session) -> Connection | None:
    """The facts of its connection; of one that is not ours, by what the server said."""
    known = session.hold or session.idle
    if known is not None:
        return known.connection
    backend = session.backend
    if backend is None or backend.age_s is None:
        return None
    return Connection(backend.age_s, 0.0, None, backend.client_port)


def _site(session: Session) -> str | None:
    if session.hold is not None:
        return call_site(session.hold)
    if session.idle is not None:
        return f"idle in its pool, last used by {place(session.idle.site)}"
    return None


def _sites(server: ServerStatus, snapshot: Snapshot) -> dict[int, str]:
    """By pid: the call sites of the sessions of one server."""
    found: dict[int, str] = {}
    for process in snapshot.processes:
        for idle, status in idle_with_rows(process):
            if server_of(process, status) == server.identity:
                found[idle.backend_pid] = place(idle.site)
        for hold, _, status in holds_with_rows(process):
            if server_of(process, status) == server.identity and hold.backend_pid:
                found[hold.backend_pid] = call_site(hold)
    return found
