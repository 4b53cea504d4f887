"""Assigns readings of PostgreSQL to the pools of one process, or the reason for none.

:mod:`poolwatch.client.live` asks the agents and reads the servers. All functions here
depend only on the answers, the snapshot of the process, and its carried-over state.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from poolwatch.client.view import (
    CarriedState,
    Interval,
    OwnReading,
    View,
    is_on,
    utc,
)
from poolwatch.errors import PoolerError
from poolwatch.model import Backend, ClosedConnection, Process, ServerStatus
from poolwatch.postgres.errors import SILENT
from poolwatch.postgres.join import (
    Window,
    claimed,
    join,
    missing,
    others,
    stray_sessions,
)
from poolwatch.postgres.pgbouncer import sessions_of, with_sessions
from poolwatch.protocol.records import ServerReading

_SWITCHED_OFF = "the server view is switched off in this process (server_view=False)"
_UNPROVEN = "not known which server this pool is on"
_HIDDEN = (
    "the role of the DSN may not see the application's sessions: "
    "grant it pg_read_all_stats"
)

ServerSource = Literal["agent", "dsn", "environment"]


@dataclass(frozen=True, slots=True)
class Attribution:
    """One process joined with the readings of its servers."""

    process: Process
    stray_sessions: tuple[tuple[ClosedConnection, Backend], ...]
    """Connections that the application has closed, with their remaining backends."""
    missing: frozenset[str]
    """Ids of holds without a backend on their server."""
    without_reading: tuple[str, ...]
    """Ids of the pools on PostgreSQL without a reading."""
    carried: CarriedState


def attribute(view: View, own: OwnReading | None, host: str, now: float) -> Attribution:
    """Choose a reading for each pool, and join the process with the readings.

    ``own`` is the viewer's own reading, ``host`` the name of the viewer's machine, and
    ``now`` the time of ``time.monotonic()``. The first available reading is used: that
    of the DSN if the pool is proven to be on its server; that of the agent; an own
    reading if a single hold is proven to be on its server.
    """
    statuses = _Statuses(view, now)
    reading = own.reading if own is not None else None
    if own is not None and own.source == "dsn":
        if reading is None:
            _dsn_failed(statuses, own)
        else:
            _use_for_proven_pools(statuses, own, reading)
            _use_for_pooled_holds(statuses, own, reading)
    _use_agent(statuses, view.pools)
    if own is not None and reading is not None:
        _use_for_proven_pools(statuses, own, reading)
        _use_for_proven_holds(statuses, own, reading, host)
    _add_errors(statuses, dsn=own is not None and own.source == "dsn")
    return statuses.join()


class _Statuses:
    """The readings and statuses found so far for the pools of one process."""

    def __init__(self, view: View, now: float) -> None:
        self.view = view
        self.now = now
        self.hidden = set(view.carried.hidden)
        self._read_at = dict(view.carried.read_at)
        self._readings: dict[str, ServerReading] = {}
        """By pool: with the rows that the pool can claim."""
        self._whole: dict[str, ServerReading] = {}
        """By pool: with all rows."""
        self._windows: dict[str, Window] = {}
        self._complete: set[str] = set()
        """Ids of the pools whose reading has all requested rows."""
        self._servers: list[ServerStatus] = []
        self._pooled: dict[str, Backend] = {}
        """By the id of a hold behind PgBouncer: the backend that serves it."""
        self._pooled_window: Window = (0.0, 0.0)

    def without_status(self) -> tuple[str, ...]:
        """Ids of the pools that have no status yet."""
        done = {pool for status in self._servers for pool in status.pools}
        return tuple(pool for pool in self.view.pools if pool not in done)

    def use(
        self,
        readings: Mapping[str, ServerReading],
        source: ServerSource,
        whole: ServerReading,
        read_during: Interval,
        *,
        complete: bool = True,
    ) -> None:
        """Use ``readings``, by pool: those rows of ``whole`` that the pools can claim.

        Pass ``complete=False`` if rows were omitted: a missing row then proves nothing.
        """
        if not readings:
            return
        self._readings |= readings
        self._whole |= dict.fromkeys(readings, whole)
        if complete:
            self._complete |= readings.keys()
        window = self._window(read_during)
        self._windows |= dict.fromkeys(readings, window)
        self._read_at |= dict.fromkeys(readings, read_during[1])
        status = _status(tuple(readings), source, whole)
        status = replace(status, late_s=window[1])
        if status.up_s is not None:  # at the time of the process's own snapshot
            up_s = max(0.0, status.up_s - (read_during[1] - self.view.ended))
            status = replace(status, up_s=up_s)
        self._servers.append(status)

    def use_pooled(
        self, backends: Mapping[str, Backend], read_during: Interval
    ) -> None:
        """Use the backends of holds behind PgBouncer, by hold."""
        self._pooled = dict(backends)
        self._pooled_window = self._window(read_during)

    def _window(self, read_during: Interval) -> Window:
        return read_during[0] - self.view.ended, read_during[1] - self.view.began

    def fail(
        self, pools: Iterable[str], source: ServerSource, why: str, **fields: Any
    ) -> None:
        """Set an error status for those of ``pools`` that have no status yet.

        ``fields`` are further fields of the status. Other known facts are retained.
        """
        remaining = self.without_status()
        pools = tuple([pool for pool in pools if pool in remaining])
        if not pools:
            return
        known = self._last_status(pools) or ServerStatus(pools, source, why)
        read_at = [self._read_at[pool] for pool in pools if pool in self._read_at]
        now: dict[str, Any] = {"read_s": None, "down": None}
        now |= {"others": (), "left_out": 0}
        if read_at:
            silent_s = self.now - max(read_at)
            now |= {"silent_s": silent_s, "since": utc(silent_s)}
        now |= fields
        if known.address is not None:
            now.pop("address", None)
        changes = {"pools": pools, "source": source, "error": why, **now}
        self._servers.append(replace(known, **changes))

    def _last_status(self, pools: Collection[str]) -> ServerStatus | None:
        """The last status of the server of these pools, if they are on one server."""
        last = self.view.carried.servers
        same_pools = [s for s in last if not set(pools).isdisjoint(s.pools)]
        same = len({status.identity or status.address for status in same_pools}) == 1
        return same_pools[0] if same else None

    def join(self) -> Attribution:
        """Join the process with the readings."""
        view, carried = self.view, self.view.carried
        process = join(view.process, self._readings, windows=self._windows)
        process = with_sessions(process, view.links, self._pooled, self._pooled_window)
        servers = tuple([self._with_others(process, each) for each in self._servers])
        pool_servers, relayed = dict(carried.pool_servers), set(carried.relayed)
        for hold in process.holds:
            if hold.server and hold.connection and hold.pool not in pool_servers:
                reading, address = self._readings[hold.pool], hold.connection.address
                pool_servers[hold.pool] = reading.identity, address
                if reading.relayed or reading.address != address:
                    relayed.add(hold.pool)
        complete = {pool: self._readings[pool] for pool in self._complete}
        return Attribution(
            process=replace(process, servers=servers),
            stray_sessions=stray_sessions(process, self._readings, self._windows),
            missing=missing(process, complete, carried.seen),
            without_reading=tuple([p for p in view.pools if p not in self._readings]),
            carried=replace(
                carried,
                pool_servers=pool_servers,
                relayed=frozenset(relayed),
                seen=self._seen(process),
                hidden=frozenset(self.hidden),
                read_at=self._read_at,
                servers=servers,
            ),
        )

    def _seen(self, process: Process) -> frozenset[tuple[str, str]]:
        """The open holds that have a backend, or had one."""
        open_holds = {hold.id for hold in process.holds}
        joined = [h for h in process.holds if h.server and h.pool in self._readings]
        found = {(h.id, self._readings[h.pool].identity) for h in joined}
        found |= {pair for pair in self.view.carried.seen if pair[0] in open_holds}
        return frozenset(found)

    def _with_others(self, process: Process, status: ServerStatus) -> ServerStatus:
        """Add the sessions that are no holds of this process."""
        whole = self._whole.get(status.pools[0])
        if whole is None:
            return status
        held = {
            hold.backend_pid or 0
            for hold in process.holds
            if hold.server and self._readings[hold.pool].identity == whole.identity
        }
        return replace(status, others=others(held, whole), left_out=whole.left_out or 0)


def _dsn_failed(statuses: _Statuses, own: OwnReading) -> None:
    """Use the agent's readings, or the DSN's error, for pools on the DSN's server."""
    pool_servers = statuses.view.carried.pool_servers
    proven = [
        p for p in statuses.view.pools if is_on(statuses.view.carried, p, own.identity)
    ]
    _use_agent(statuses, proven)
    _add_down_servers(statuses)
    error = own.error or SILENT
    remaining = statuses.without_status()
    elsewhere = pool_servers if own.identity else {}
    statuses.fail(proven, "dsn", error, down=own.down)
    unknown = [
        pool for pool in remaining if pool not in proven and pool not in elsewhere
    ]
    statuses.fail(unknown, "dsn", error)


def _use_for_proven_pools(
    statuses: _Statuses, own: OwnReading, reading: ServerReading
) -> None:
    """Use an own reading for the pools that are proven to be on that server."""
    pool_servers = statuses.view.carried.pool_servers
    proven = {
        pool: replace(
            reading,
            address=pool_servers[pool][1],
            relayed=pool in statuses.view.carried.relayed,
        )
        for pool in statuses.without_status()
        if is_on(statuses.view.carried, pool, reading.identity)
        if not _is_hidden(statuses, pool, reading)
    }
    statuses.use(proven, own.source, reading, own.read_during)


def _use_for_pooled_holds(
    statuses: _Statuses, own: OwnReading, reading: ServerReading
) -> None:
    """Use an own reading for holds that PgBouncer serves from that server."""
    view = statuses.view
    backends = sessions_of(view.links, reading, own.read_during[1] - view.linked_at)
    statuses.use_pooled(backends, own.read_during)
    pools = {hold.pool for hold in view.process.holds if hold.id in backends}
    remaining = pools.intersection(statuses.without_status())
    readings = dict.fromkeys(remaining, reading)
    statuses.use(readings, own.source, reading, own.read_during, complete=False)


def _use_for_proven_holds(
    statuses: _Statuses, own: OwnReading, reading: ServerReading, host: str
) -> None:
    """Use an own reading for single holds that are proven to be on that server."""
    process, pool_servers = statuses.view.process, statuses.view.carried.pool_servers
    address = reading.address if process.host == host else None
    rows = {
        pool: claimed(process, pool, reading, address)
        for pool in statuses.without_status()
        if pool not in pool_servers and not _is_hidden(statuses, pool, reading)
    }
    proven = {pool: each for pool, each in rows.items() if each.backends}
    statuses.use(proven, own.source, reading, own.read_during, complete=False)


def _is_hidden(statuses: _Statuses, pool: str, reading: ServerReading) -> bool:
    """Whether the viewer's role sees only the pids of a pool's sessions.

    The agent's own role may see all columns.
    """
    holds = [hold for hold in statuses.view.process.holds if hold.pool == pool]
    links = statuses.view.links
    pids = {hold.backend_pid for hold in holds}
    pids |= {links[hold.id].pid for hold in holds if hold.id in links}
    hidden = any(b.age_s is None for b in reading.backends if b.pid in pids)
    (statuses.hidden.add if hidden else statuses.hidden.discard)(pool)
    return hidden


def _use_agent(statuses: _Statuses, pools: Collection[str]) -> None:
    """Use the agent's readings for those of ``pools`` that have no status yet."""
    remaining = [pool for pool in statuses.without_status() if pool in pools]
    for answer in statuses.view.fresh:
        if answer.reading is not None:
            readings = {
                pool: answer.reading for pool in answer.pools if pool in remaining
            }
            statuses.use(readings, "agent", answer.reading, statuses.view.fresh_at)


def _add_down_servers(statuses: _Statuses) -> None:
    """Report the servers that do not answer the agent as down."""
    for answer in statuses.view.carried.answers:
        if answer.down is not None:
            statuses.fail(
                answer.pools,
                "agent",
                answer.error or answer.down,
                down=answer.down,
                address=answer.address,
            )


def _add_errors(statuses: _Statuses, *, dsn: bool) -> None:
    """Add an error status for each pool without a reading."""
    pending = statuses.view.pending
    _add_down_servers(statuses)
    if dsn and not pending:
        hidden = [pool for pool in statuses.without_status() if pool in statuses.hidden]
        statuses.fail(hidden, "dsn", _HIDDEN)
    behind = {pool.id for pool in statuses.view.process.pools if pool.behind_pooler}
    for answer in statuses.view.carried.answers:
        why = answer.error if answer.enabled else _SWITCHED_OFF
        if why is None or pending:
            continue
        if answer.enabled and behind.intersection(answer.pools):
            why = f"{PoolerError()}: {statuses.view.pooler_hint}"
        elif dsn:
            why = f"not proven to be on the server of the DSN ({why})"
        elif not answer.enabled:
            why += ": give --dsn"
        statuses.fail(
            answer.pools, "agent", why, enabled=answer.enabled, address=answer.address
        )
    statuses.fail(statuses.without_status(), "agent", pending or _UNPROVEN)


def _status(
    pools: tuple[str, ...], source: ServerSource, reading: ServerReading
) -> ServerStatus:
    return ServerStatus(
        pools=pools,
        source=source,
        error=None,
        address=reading.address,
        version=reading.version,
        sessions=reading.sessions,
        max_connections=reading.max_connections,
        read_s=reading.read_s,
        reserved=reading.reserved,
        identity=reading.identity,
        up_s=reading.up_s,
    )
