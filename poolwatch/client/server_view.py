"""Which reading of PostgreSQL speaks for which pool of one process, and why not.

:mod:`poolwatch.client.live` asks the agents and reads the servers. Everything here is a
function of the answers, of the process's own snapshot, and of what was remembered.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from poolwatch.client.view import SILENT, Memory, Moment, OwnReading, View, is_on, utc
from poolwatch.model import Departed, Process, ServerStatus
from poolwatch.postgres.join import Window, claimed, join, missing, strays
from poolwatch.protocol.records import Backend, ServerReading

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
    strays: tuple[tuple[Departed, Backend], ...]
    """Connections that the application has given up, with their living backends."""
    missing: frozenset[str]
    """Ids of holds that their server has no backend for."""
    unread: tuple[str, ...]
    """Ids of the pools on PostgreSQL that no reading speaks for."""
    memory: Memory


def attribute(view: View, own: OwnReading | None, host: str, now: float) -> Attribution:
    """Decide which reading speaks for each pool, and join the process with it.

    ``own`` is the viewer's own reading, ``host`` the name of the viewer's machine, and
    ``now`` the time of ``time.monotonic()``. Of several readings the first one counts:
    the DSN's for a pool that is proven to be on its server, then the agent's, then an
    own reading that single holds prove to be of their server.
    """
    found = _Statuses(view, now)
    reading = own.reading if own is not None else None
    if own is not None and own.source == "dsn":
        if reading is None:
            _dsn_failed(found, own)
        else:
            _use_at_home(found, own, reading)
    _use_agent(found, view.pools)
    if own is not None and reading is not None:
        _use_at_home(found, own, reading)
        _use_claimed(found, own, reading, host)
    _explain(found, dsn=own is not None and own.source == "dsn")
    return found.join()


class _Statuses:
    """The readings and statuses found so far for the pools of one process."""

    def __init__(self, view: View, now: float) -> None:
        self.view = view
        self.now = now
        self.hidden = set(view.memory.hidden)
        self._read_at = dict(view.memory.read_at)
        self._readings: dict[str, ServerReading] = {}
        self._windows: dict[str, Window] = {}
        self._whole: set[str] = set()
        """Ids of the pools whose reading has all rows that were asked for."""
        self._servers: list[ServerStatus] = []

    def open(self) -> tuple[str, ...]:
        """Ids of the pools that have no status yet."""
        done = {pool for status in self._servers for pool in status.pools}
        return tuple(pool for pool in self.view.pools if pool not in done)

    def use(
        self,
        readings: Mapping[str, ServerReading],
        source: ServerSource,
        address: str | None,
        moment: Moment,
        *,
        whole: bool = True,
    ) -> None:
        """Use ``readings``, by pool, that were taken at ``moment``.

        Not ``whole`` if rows are left out: then a missing row means nothing.
        """
        if not readings:
            return
        self._readings |= readings
        if whole:
            self._whole |= readings.keys()
        window = (moment[0] - self.view.ended, moment[1] - self.view.began)
        self._windows |= dict.fromkeys(readings, window)
        self._read_at |= dict.fromkeys(readings, moment[1])
        one = next(iter(readings.values()))
        status = _status(tuple(readings), source, one, address)
        if status.up_s is not None:  # as of the moment of the process's own snapshot
            up_s = max(0.0, status.up_s - (moment[1] - self.view.ended))
            status = replace(status, up_s=up_s)
        self._servers.append(status)

    def fail(
        self, pools: Iterable[str], source: ServerSource, why: str, **more: Any
    ) -> None:
        """Say for those of ``pools`` without a status why they have no reading.

        ``more`` are fields of the status. What was known of the server stays.
        """
        left = self.open()
        pools = tuple([pool for pool in pools if pool in left])
        if not pools:
            return
        known = self._known(pools) or ServerStatus(pools, source, why)
        read_at = [self._read_at[pool] for pool in pools if pool in self._read_at]
        now: dict[str, Any] = {"read_s": None, "down": None}
        if read_at:
            silent_s = self.now - max(read_at)
            now |= {"silent_s": silent_s, "since": utc(silent_s)}
        now |= more
        if known.address is not None:
            now.pop("address", None)
        changes = {"pools": pools, "source": source, "error": why, **now}
        self._servers.append(replace(known, **changes))

    def _known(self, pools: Collection[str]) -> ServerStatus | None:
        """The last status of the server of these pools, if they are on one server."""
        last = self.view.memory.servers
        found = [s for s in last if not set(pools).isdisjoint(s.pools)]
        same = len({status.identity or status.address for status in found}) == 1
        return found[0] if same else None

    def join(self) -> Attribution:
        """Join the process with the readings."""
        view, memory = self.view, self.view.memory
        servers = tuple(self._servers)
        process = join(view.process, self._readings, windows=self._windows)
        homes = dict(memory.homes)
        for hold in process.holds:
            if hold.server and hold.connection and hold.pool not in homes:
                home = self._readings[hold.pool].identity, hold.connection.address
                homes[hold.pool] = home
        whole = {pool: self._readings[pool] for pool in self._whole}
        return Attribution(
            process=replace(process, servers=servers),
            strays=strays(process, self._readings, self._windows),
            missing=missing(process, whole),
            unread=tuple([p for p in view.pools if p not in self._readings]),
            memory=replace(
                memory,
                homes=homes,
                hidden=frozenset(self.hidden),
                read_at=self._read_at,
                servers=servers,
            ),
        )


def _dsn_failed(found: _Statuses, own: OwnReading) -> None:
    """Use the agent's readings, or the DSN's error, for pools on the DSN's server."""
    homes = found.view.memory.homes
    here = [p for p in found.view.pools if is_on(found.view.memory, p, own.identity)]
    _use_agent(found, here)
    _agents_servers_down(found)
    error = own.error or SILENT
    left = found.open()
    elsewhere = homes if own.identity else {}
    found.fail(here, "dsn", error, down=own.down)
    unknown = [pool for pool in left if pool not in here and pool not in elsewhere]
    found.fail(unknown, "dsn", error)


def _use_at_home(found: _Statuses, own: OwnReading, reading: ServerReading) -> None:
    """Use an own reading for the pools that are proven to be on that server."""
    homes = found.view.memory.homes
    here = {
        pool: replace(reading, address=homes[pool][1])
        for pool in found.open()
        if is_on(found.view.memory, pool, reading.identity)
        if not _is_hidden(found, pool, reading)
    }
    found.use(here, own.source, reading.address, own.moment)


def _use_claimed(
    found: _Statuses, own: OwnReading, reading: ServerReading, host: str
) -> None:
    """Use an own reading for single holds that prove to be on that server."""
    process, homes = found.view.process, found.view.memory.homes
    address = reading.address if process.host == host else None
    rows = {
        pool: claimed(process, pool, reading, address)
        for pool in found.open()
        if pool not in homes and not _is_hidden(found, pool, reading)
    }
    proven = {pool: each for pool, each in rows.items() if each.backends}
    found.use(proven, own.source, reading.address, own.moment, whole=False)


def _is_hidden(found: _Statuses, pool: str, reading: ServerReading) -> bool:
    """Whether the viewer's role sees no more than the pids of a pool's sessions.

    The agent's own role may see all of them.
    """
    pids = {hold.backend_pid for hold in found.view.process.holds if hold.pool == pool}
    hidden = any(b.age_s is None for b in reading.backends if b.pid in pids)
    (found.hidden.add if hidden else found.hidden.discard)(pool)
    return hidden


def _use_agent(found: _Statuses, pools: Collection[str]) -> None:
    """Use the agent's readings for those of ``pools`` that have no status yet."""
    left = [pool for pool in found.open() if pool in pools]
    for answer in found.view.fresh:
        if answer.reading is not None:
            mine = {pool: answer.reading for pool in answer.pools if pool in left}
            found.use(mine, "agent", answer.reading.address, found.view.fresh_at)


def _agents_servers_down(found: _Statuses) -> None:
    """Report the servers that do not answer the agent as down."""
    for answer in found.view.memory.answers:
        if answer.down is not None:
            found.fail(
                answer.pools,
                "agent",
                answer.error or answer.down,
                down=answer.down,
                address=answer.address,
            )


def _explain(found: _Statuses, *, dsn: bool) -> None:
    """Say why, for each pool that is left without a reading."""
    pending = found.view.pending
    _agents_servers_down(found)
    if dsn and not pending:
        hidden = [pool for pool in found.open() if pool in found.hidden]
        found.fail(hidden, "dsn", _HIDDEN)
    for answer in found.view.memory.answers:
        why = answer.error if answer.enabled else _SWITCHED_OFF
        if why is None or pending:
            continue
        if dsn:
            why = f"not proven to be on the server of the DSN ({why})"
        elif not answer.enabled:
            why += ": give --dsn"
        found.fail(
            answer.pools, "agent", why, enabled=answer.enabled, address=answer.address
        )
    found.fail(found.open(), "agent", pending or _UNPROVEN)


def _status(
    pools: tuple[str, ...],
    source: ServerSource,
    reading: ServerReading,
    address: str | None,
) -> ServerStatus:
    return ServerStatus(
        pools=pools,
        source=source,
        error=None,
        address=address,
        version=reading.version,
        sessions=reading.sessions,
        max_connections=reading.max_connections,
        read_s=reading.read_s,
        reserved=reading.reserved,
        identity=reading.identity,
        up_s=reading.up_s,
    )
