"""The snapshot of one process in a viewer, and the readings of its servers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Literal

from poolwatch.client.calls import Outcome
from poolwatch.errors import NO_ANSWER, PoolwatchError, ServerDownError
from poolwatch.model import Process, ServerStatus
from poolwatch.postgres.errors import SILENT
from poolwatch.postgres.pgbouncer import Link
from poolwatch.protocol.records import AgentReading, ServerReading

PATIENCE_S = 3.0
"""Seconds that a refresh waits for an answer."""
_NO_ANSWER = "the process has not answered in time when asked for its server view"

Interval = tuple[float, float]
"""When a reading was taken, between two times of ``time.monotonic()``."""


@dataclass(frozen=True, slots=True)
class CarriedState:
    """State of one process that is carried over from one refresh to the next."""

    pool_servers: Mapping[str, tuple[str, str | None]] = field(default_factory=dict)
    """By pool id: the identity of its server, and the server's address as reported by
    the pool's driver."""
    relayed: frozenset[str] = frozenset()
    """Ids of the pools that may be on several servers: see ServerReading.relayed."""
    seen: frozenset[tuple[str, str]] = frozenset()
    """The open holds that had a backend, and the identity of its server."""
    hidden: frozenset[str] = frozenset()
    """Ids of the pools whose sessions the viewer's own role may not see."""
    agent_answered_at: float | None = None
    """When the agent last answered."""
    answers: tuple[AgentReading, ...] = ()
    """The agent's last answer. Its errors still stand when its readings are too old."""
    read_at: Mapping[str, float] = field(default_factory=dict)
    """By pool id: when its server last answered."""
    incomplete: bool = False
    """The agent's last answer was late, or a server did not answer the agent."""
    servers: tuple[ServerStatus, ...] = ()
    """The statuses of the last refresh."""


@dataclass(frozen=True, slots=True)
class View:
    """The snapshot of one process, with the state carried over from earlier ones."""

    process: Process
    began: float
    ended: float
    carried: CarriedState
    pools: tuple[str, ...]
    """Ids of its pools on PostgreSQL."""
    fresh: tuple[AgentReading, ...] = ()
    """The agent's readings of this refresh."""
    fresh_at: Interval = (0.0, 0.0)
    pending: str | None = None
    """Why the agent's answer is missing, if it was asked and is late."""
    links: Mapping[str, Link] = field(default_factory=dict)
    """By the id of a hold behind PgBouncer: the server connection that serves it."""
    linked_at: float = 0.0
    """When PgBouncer's console was read, at the earliest."""
    pooler_hint: str = "give --dsn and --pgbouncer"
    """Why a hold behind a pooler may have no link, or what would help."""

    def with_answer(self, outcome: Outcome | None, now: float) -> View:
        """Return the view with the agent's answer, if the agent was asked."""
        if outcome is None:
            return self
        if outcome.ended is None:
            # an agent answers within 2.5 s, whether its server does or not
            pending = SILENT if now - outcome.began < PATIENCE_S else _NO_ANSWER
            carried = replace(self.carried, incomplete=True)
            return replace(self, carried=carried, pending=pending)
        answered = self.with_late_answer(outcome)
        if outcome.error is not None:
            return answered
        answers = answered.carried.answers
        return replace(answered, fresh=answers, fresh_at=(outcome.began, outcome.ended))

    def with_late_answer(self, outcome: Outcome) -> View:
        """Return the view with an answer whose readings may be too old to show."""
        why = error_of(outcome, _NO_ANSWER)
        if why is not None:
            answers: tuple[AgentReading, ...] = (AgentReading(self.pools, None, why),)
        else:
            answers = tuple(outcome.value)
        pool_servers, relayed = dict(self.carried.pool_servers), self.carried.relayed
        for answer in answers:
            if answer.reading is not None:
                relayed -= set(answer.pools)
                relayed |= set(answer.pools if answer.reading.relayed else ())
                server = answer.reading.identity, answer.reading.address
                pool_servers |= dict.fromkeys(answer.pools, server)
        carried = replace(
            self.carried,
            pool_servers=pool_servers,
            relayed=relayed,
            agent_answered_at=outcome.ended,
            answers=answers,
            incomplete=any(answer.down for answer in answers),
        )
        process = _without_made_up_pids(self.process, answers)
        return replace(self, process=process, carried=carried)


def _without_made_up_pids(
    process: Process, answers: Collection[AgentReading]
) -> Process:
    """The process without the pids that a pooler made up, before it knew of one."""
    behind = {pool for each in answers if each.behind_pooler for pool in each.pools}
    if not behind:
        return process
    return replace(
        process,
        pools=tuple(
            [
                replace(pool, behind_pooler=pool.behind_pooler or pool.id in behind)
                for pool in process.pools
            ]
        ),
        holds=tuple(
            [
                replace(hold, backend_pid=None) if hold.pool in behind else hold
                for hold in process.holds
            ]
        ),
        idle=tuple([each for each in process.idle if each.pool not in behind]),
        departed=tuple([each for each in process.departed if each.pool not in behind]),
    )


@dataclass(frozen=True, slots=True)
class OwnReading:
    """The viewer's own reading of one server, or why there is none."""

    source: Literal["dsn", "environment"]
    reading: ServerReading | None
    read_during: Interval = (0.0, 0.0)
    error: str | None = None
    down: str | None = None
    """The error of the server or its driver, if the server does not answer."""
    identity: str | None = None
    """Of the server, as of the last reading that succeeded."""

    @classmethod
    def of(
        cls,
        source: Literal["dsn", "environment"],
        outcome: Outcome,
        identity: str | None = None,
    ) -> OwnReading:
        """The reading that a call has returned; ``identity`` is the last known one."""
        error, down = error_of(outcome, SILENT), down_of(outcome)
        if error is not None:
            return cls(source, None, error=error, down=down, identity=identity)
        reading: ServerReading = outcome.value
        ended = outcome.ended or outcome.began
        # the first part of the call was spent connecting
        began = outcome.began if reading.read_s is None else ended - reading.read_s
        return cls(source, reading, (began, ended), identity=reading.identity)

    def without_sessions_of(self, process: Process) -> OwnReading:
        """The reading for the next process: only one process lists all sessions."""
        if self.reading is None or not any(
            status.source == self.source and status.error is None
            for status in process.servers
        ):
            return self
        return replace(self, reading=replace(self.reading, left_out=None))


def is_on(carried: CarriedState, pool: str, identity: str | None) -> bool:
    """Whether a pool is proven to be on the server of that identity."""
    server, _ = carried.pool_servers.get(pool, (None, None))
    return server is not None and server == identity


def error_of(outcome: Outcome, late: str) -> str | None:
    """One sentence if a call failed or is late; re-raises unexpected errors."""
    if outcome.ended is None:
        return late
    if outcome.error is not None and not isinstance(outcome.error, PoolwatchError):
        raise outcome.error
    return None if outcome.error is None else str(outcome.error)


def utc(ago_s: float = 0.0) -> str:
    """Return the time ``ago_s`` seconds ago, in ISO 8601."""
    at = datetime.now(UTC) - timedelta(seconds=ago_s)
    return at.isoformat(timespec="milliseconds")


def down_of(outcome: Outcome) -> str | None:
    """The error of a server or its driver if it does not answer; None if it does."""
    if outcome.ended is None:
        return NO_ANSWER
    error = outcome.error
    return error.words if isinstance(error, ServerDownError) else None


def postgres_pools(process: Process) -> tuple[str, ...]:
    """Ids of the pools that are known to be on PostgreSQL."""
    with_backend = {hold.pool for hold in process.holds if hold.backend_pid is not None}
    with_backend |= {idle.pool for idle in process.idle}
    return tuple(
        pool.id
        for pool in process.pools
        if pool.behind_pooler
        or (pool.url.startswith("postgres") if pool.url else pool.id in with_backend)
    )


def pids_of(views: Iterable[View]) -> tuple[set[int], set[int]]:
    """Pids of the backends whose rows are wanted, and of idle connections."""
    pids: set[int] = set()
    idle_pids: set[int] = set()
    for view in views:
        process = view.process
        idle_pids |= {e.backend_pid for e in process.idle if e.pool in view.pools}
        known = [(hold.pool, hold.backend_pid) for hold in process.holds]
        known += [(closed.pool, closed.backend_pid) for closed in process.departed]
        known += [(e.pool, e.backend_pid) for e in process.idle if e.listening]
        pids |= {pid for pool, pid in known if pid is not None and pool in view.pools}
        pids |= {link.pid for link in view.links.values()}
    return pids, idle_pids
