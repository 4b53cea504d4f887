"""One process in one refresh: which reading speaks for which of its pools, and why not.

Filled in step by step by :mod:`poolwatch.client.live`, which does the asking.
"""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from poolwatch.client.calls import Outcome
from poolwatch.diagnosis import servers as of_servers
from poolwatch.errors import NO_ANSWER, PoolwatchError, ServerDownError
from poolwatch.model import Process, ServerStatus
from poolwatch.postgres.join import Window, claimed, join, missing, strays
from poolwatch.protocol.records import AgentReading, ServerReading

PATIENCE_S = 3.0
SILENT = "PostgreSQL has not answered in time"
_NO_ANSWER = "the process has not answered in time when asked for its server view"
_SWITCHED_OFF = "the server view is switched off in this process (server_view=False)"
_UNPROVEN = "not known which server this pool is on"
_HIDDEN = (
    "the role of the DSN may not see the application's sessions: "
    "grant it pg_read_all_stats"
)

ServerSource = Literal["agent", "dsn", "environment"]


@dataclass(slots=True)
class Memory:
    """What is remembered of one process between two refreshes."""

    homes: dict[str, tuple[str, str | None]] = field(default_factory=dict)
    """By pool id: identity of its server, and address in the words of its driver."""
    hidden: set[str] = field(default_factory=set)
    """Ids of the pools whose sessions our own role may not see."""
    asked: float | None = None
    answers: tuple[AgentReading, ...] = ()
    """The agent's last answer: its readings are past, its errors still stand."""
    read_at: dict[str, float] = field(default_factory=dict)
    """By pool id: when its server last answered, on the monotonic clock."""
    unread: bool = False
    """The last answer was late, or was that a server does not answer."""
    servers: tuple[ServerStatus, ...] = ()
    """What was last shown."""


@dataclass(slots=True)
class Look:
    """One process in one refresh, filled in step by step."""

    process: Process
    began: float
    ended: float
    memory: Memory
    pools: tuple[str, ...]
    """Ids of those on PostgreSQL."""
    fresh: tuple[AgentReading, ...] = ()
    """What the agent has read in this refresh, between ``asked`` and ``told``."""
    asked: float = 0.0
    told: float = 0.0
    pending: str | None = None
    """The message for an agent that was asked and has not answered yet."""
    readings: dict[str, ServerReading] = field(default_factory=dict)
    windows: dict[str, Window] = field(default_factory=dict)
    servers: list[ServerStatus] = field(default_factory=list)
    whole: set[str] = field(default_factory=set)
    """Ids of the pools whose reading has all rows that were asked for."""

    def missing(self) -> frozenset[str]:
        """Ids of holds that their server has no backend for."""
        whole = {pool: self.readings[pool] for pool in self.whole}
        return missing(self.process, whole)

    def untold(self) -> tuple[str, ...]:
        """Ids of the pools for which nothing has been said yet."""
        told = {pool for status in self.servers for pool in status.pools}
        return tuple(pool for pool in self.pools if pool not in told)

    def use(
        self,
        readings: Mapping[str, ServerReading],
        source: ServerSource,
        address: str | None,
        moment: tuple[float, float],
        *,
        whole: bool = True,
    ) -> None:
        """Join ``readings``, by pool, taken between the two ends of ``moment``.

        Not ``whole`` if there are rows left out: then a missing one means nothing.
        """
        if not readings:
            return
        one = next(iter(readings.values()))
        self.readings |= readings
        if whole:
            self.whole |= readings.keys()
        window = (moment[0] - self.ended, moment[1] - self.began)
        self.windows |= dict.fromkeys(readings, window)
        self.memory.read_at |= dict.fromkeys(readings, moment[1])
        status = _status(tuple(readings), source, one, address)
        if status.up_s is not None:  # as of the moment of the process's own picture
            up_s = max(0.0, status.up_s - (moment[1] - self.ended))
            status = replace(status, up_s=up_s)
        self.servers.append(status)

    def complain(
        self, pools: Iterable[str], source: ServerSource, why: str, **more: Any
    ) -> None:
        """Say for ``pools`` why there is no server's side to them, now.

        ``more`` are fields of the status. What was known of the server stays.
        """
        pools = tuple(pools)
        if not pools:
            return
        known = self._known(pools) or ServerStatus(pools, source, why)
        read_at = [self.memory.read_at[p] for p in pools if p in self.memory.read_at]
        now: dict[str, Any] = {"read_s": None, "down": None}
        if read_at:
            silent_s = time.monotonic() - max(read_at)
            now |= {"silent_s": silent_s, "since": utc(silent_s)}
        now |= more
        if known.address is not None:
            now.pop("address", None)
        told = {"pools": pools, "source": source, "error": why, **now}
        self.servers.append(replace(known, **told))

    def _known(self, pools: Collection[str]) -> ServerStatus | None:
        """What was last shown of the server of these pools, if they are on one."""
        found = [s for s in self.memory.servers if not set(pools).isdisjoint(s.pools)]
        same = len({status.identity or status.address for status in found}) == 1
        return found[0] if same else None

    def complain_down(self) -> None:
        """Report the servers that do not answer the agent as down."""
        for answer in self.memory.answers:
            if answer.down is not None:
                untold = self.untold()
                self.complain(
                    (pool for pool in answer.pools if pool in untold),
                    "agent",
                    answer.error or answer.down,
                    down=answer.down,
                    address=answer.address,
                )

    def joined(self) -> Process:
        """Return the process with all that was given."""
        self.memory.servers = tuple(self.servers)
        process = join(self.process, self.readings, windows=self.windows)
        for hold in process.holds:
            if hold.server and hold.connection and hold.pool not in self.memory.homes:
                home = self.readings[hold.pool].identity, hold.connection.address
                self.memory.homes[hold.pool] = home
        left = strays(process, self.readings, self.windows)
        findings = (*process.findings, *of_servers.strays(left))
        return replace(process, servers=tuple(self.servers), findings=findings)


def hear(look: Look, outcome: Outcome | None) -> None:
    """Take in what the agent answered, if it was asked."""
    if outcome is None:
        return
    if outcome.ended is None:
        look.memory.unread = True
        # an agent answers within 2.5 s, whether its server does or not
        soon = time.monotonic() - outcome.began < PATIENCE_S
        look.pending = SILENT if soon else _NO_ANSWER
        return
    look.asked, look.told = outcome.began, outcome.ended
    if hear_late(look, outcome):
        look.fresh = look.memory.answers


def hear_late(look: Look, outcome: Outcome) -> bool:
    """Remember an answer, though its readings may be past; False if there is none."""
    look.memory.asked, look.memory.unread = outcome.ended, False
    why = error_of(outcome, _NO_ANSWER)
    if why is not None:
        look.memory.answers = (AgentReading(look.pools, None, why),)
        return False
    look.memory.answers = tuple(outcome.value)
    look.memory.unread = any(answer.down for answer in look.memory.answers)
    for answer in look.memory.answers:
        if answer.reading is not None:
            home = answer.reading.identity, answer.reading.address
            look.memory.homes |= dict.fromkeys(answer.pools, home)
    return True


def use_where_at_home(look: Look, source: ServerSource, outcome: Outcome) -> None:
    """Use a reading of ours for the pools that are proven to be on that server."""
    reading, moment = _read(outcome)
    homes = look.memory.homes
    here = {
        pool: replace(reading, address=homes[pool][1])
        for pool in look.untold()
        if pool in homes and homes[pool][0] == reading.identity
        if not _is_hidden(look, pool, reading)
    }
    look.use(here, source, reading.address, moment)


def use_where_claimed(
    look: Look, source: ServerSource, outcome: Outcome, host: str
) -> None:
    """Use it also for single holds that prove by themselves to be on that server."""
    reading, moment = _read(outcome)
    address = reading.address if look.process.host == host else None
    found = {
        pool: claimed(look.process, pool, reading, address)
        for pool in look.untold()
        if pool not in look.memory.homes and not _is_hidden(look, pool, reading)
    }
    proven = {pool: rows for pool, rows in found.items() if rows.backends}
    look.use(proven, source, reading.address, moment, whole=False)


def _is_hidden(look: Look, pool: str, reading: ServerReading) -> bool:
    """Whether our role sees no more than the pids; the agent's own role may see all."""
    pids = {hold.backend_pid for hold in look.process.holds if hold.pool == pool}
    hidden = any(b.age_s is None for b in reading.backends if b.pid in pids)
    (look.memory.hidden.add if hidden else look.memory.hidden.discard)(pool)
    return hidden


def use_agent(look: Look, pools: Collection[str]) -> None:
    """Use the agent's readings for those of ``pools`` that have no status yet."""
    untold = [pool for pool in look.untold() if pool in pools]
    for answer in look.fresh:
        if answer.reading is not None:
            mine = {pool: answer.reading for pool in answer.pools if pool in untold}
            moment = (look.asked, look.told)
            look.use(mine, "agent", answer.reading.address, moment)


def explain(look: Look, dsn: bool) -> None:
    """Say why, for each pool that is still left."""
    look.complain_down()
    if dsn and not look.pending:
        hidden = look.memory.hidden
        look.complain((p for p in look.untold() if p in hidden), "dsn", _HIDDEN)
    for answer in look.memory.answers:
        why = answer.error if answer.enabled else _SWITCHED_OFF
        if why is None or look.pending:
            continue
        if dsn:
            why = f"not proven to be on the server of the DSN ({why})"
        elif not answer.enabled:
            why += ": give --dsn"
        untold = look.untold()
        mine = (pool for pool in answer.pools if pool in untold)
        look.complain(
            mine, "agent", why, enabled=answer.enabled, address=answer.address
        )
    look.complain(look.untold(), "agent", look.pending or _UNPROVEN)


def _read(outcome: Outcome) -> tuple[ServerReading, tuple[float, float]]:
    """A reading of our own and when it was taken; what came before was connecting."""
    reading: ServerReading = outcome.value
    ended = outcome.ended or outcome.began
    began = outcome.began if reading.read_s is None else ended - reading.read_s
    return reading, (began, ended)


def error_of(outcome: Outcome, late: str) -> str | None:
    """One sentence if the call failed or is late; what is no word of ours is raised."""
    if outcome.ended is None:
        return late
    if outcome.error is not None and not isinstance(outcome.error, PoolwatchError):
        raise outcome.error
    return None if outcome.error is None else str(outcome.error)


def utc(ago_s: float = 0.0) -> str:
    """Return the time of so many seconds ago, in ISO 8601."""
    at = datetime.now(UTC) - timedelta(seconds=ago_s)
    return at.isoformat(timespec="milliseconds")


def down_of(outcome: Outcome) -> str | None:
    """What the server or its driver said if it does not answer; None if it does."""
    if outcome.ended is None:
        return NO_ANSWER
    error = outcome.error
    return error.words if isinstance(error, ServerDownError) else None


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


def postgres_pools(process: Process) -> tuple[str, ...]:
    """Ids of the pools that are on PostgreSQL, as far as one can know."""
    with_backend = {hold.pool for hold in process.holds if hold.backend_pid is not None}
    return tuple(
        pool.id
        for pool in process.pools
        if (pool.url.startswith("postgres") if pool.url else pool.id in with_backend)
    )


def pids_of(looks: Iterable[Look]) -> set[int]:
    """The backends of all holds on PostgreSQL, and of connections closed of late."""
    pids = set()
    for look in looks:
        known = [(hold.pool, hold.backend_pid) for hold in look.process.holds]
        known += [(gone.pool, gone.backend_pid) for gone in look.process.departed]
        pids |= {pid for pool, pid in known if pid is not None and pool in look.pools}
    return pids
