"""The source behind every face: what the processes say, joined with the server.

Who reads PostgreSQL, for each pool:

1. With a DSN, the viewer reads that server, once a refresh for all processes. It speaks
   for the pools that are proven to be on it; the agents of the others read theirs.
2. Without one, every agent reads for its own pools.
3. Where an agent cannot, DATABASE_URL or the libpq environment of the viewer is tried,
   with the same proof.

The proof that a pool is on the server of a DSN: its agent, over a connection made the
pool's own way, finds the same running server (ServerReading.identity). It is asked
again whenever the two differ, so a restarted server is recognised. Where the agent
cannot tell, each hold has to prove it by its TCP port, or by its address on this same
machine; the first that does speaks for its pool.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from poolwatch.adapters.connection_facts import connection_facts
from poolwatch.client.calls import BRIEF_S, Calls, Outcome
from poolwatch.client.roster import Roster
from poolwatch.client.server_view import (
    PATIENCE_S,
    SILENT,
    Look,
    ServerSource,
    down_of,
    error_of,
    explain,
    hear,
    hear_late,
    pids_of,
    use_agent,
    use_where_at_home,
    use_where_claimed,
)
from poolwatch.diagnosis.servers import ghosts, with_server
from poolwatch.errors import NoProcessError, PoolwatchError
from poolwatch.model import Frozen, Process, Snapshot, Unreachable
from poolwatch.postgres.dsn_reader import DsnReader, environment_dsn
from poolwatch.protocol.records import AgentReading, ServerReading
from poolwatch.text.naming import numbered

LINGER_S = 5.0
"""How long an agent is asked to keep its connection for our next refresh."""

_KNOWN_S = 1.0
"""How long a server is waited for that has answered so far."""
_ON_ITS_WAY_OUT_S = 0.25
"""How long a hold without a backend gets to end by itself."""
ASK_AGAIN_S = 10.0
"""After an agent could not tell which server its pools are on."""


class Address(Protocol):
    """Where an agent listens; the same, and hashable, as long as its process lives."""

    @property
    def pid(self) -> int | None:
        """The process's pid."""
        ...

    def __hash__(self) -> int: ...


class Client(Protocol):
    """What is needed of :class:`poolwatch.client.client.Client`."""

    def agents(self) -> Sequence[Any]:
        """Return the Address of every process that has a socket."""
        ...

    def view(self, address: Any) -> Process:
        """Return a process's own picture; raises PoolwatchError."""
        ...

    def servers(self, address: Any, *, linger: float) -> Sequence[AgentReading]:
        """Let the agent read its servers; raises PoolwatchError."""
        ...

    def all_frozen(self) -> tuple[tuple[Frozen, ...], tuple[Unreachable, ...]]:
        """Return the pictures that agents have kept, and who could not tell."""
        ...


class Reader(Protocol):
    """What is needed of a DsnReader."""

    def read(self, pids: Collection[int]) -> ServerReading:
        """Read the server; raises PoolwatchError."""
        ...

    def close(self) -> None:
        """Close the connection."""
        ...


class LiveSource:
    """A Source for the viewer. One thread at a time may call it."""

    def __init__(
        self,
        client: Client,
        *,
        dsn: str | None = None,
        environ: Mapping[str, str] = os.environ,
        patience_s: float = PATIENCE_S,
        reader: Callable[[str], Reader] = lambda dsn: DsnReader(dsn, connection_facts),
        host: str | None = None,
        linger_s: float = LINGER_S,
    ) -> None:
        """``dsn``: read this server; ``patience_s``: how long a refresh waits.

        ``linger_s``: how long agents keep their connection for our next refresh.
        """
        self._linger_s = linger_s
        self._client = client
        self._patience_s = patience_s
        self._calls = Calls()
        self._host = host or socket.gethostname()
        self._dsn = reader(dsn) if dsn is not None else None
        fallback = environment_dsn(environ) if dsn is None else None
        self._environment = reader(fallback) if fallback is not None else None
        self._roster = Roster(client, self._calls, patience_s)
        self._ghosts: dict[Hashable, frozenset[str]] = {}
        """By agent: holds that had no backend at the last snapshot."""
        self._dsn_identity: str | None = None
        self._dsn_down: str | None = None
        """If the server of the DSN does not answer: what it said last."""
        self.server_error: str | None = None
        """What is wrong with the DSN, one sentence, as of the last snapshot; also when
        there is no process yet that would show it."""

    def snapshot(self) -> Snapshot:
        """Return all processes as they are now, joined with their servers.

        Raises only what finding the processes raises. If there are none, the server of
        the DSN is looked at all the same: what is wrong with it is said early.
        """
        late = self._calls.late()
        try:
            looks, unreachable = self._roster.call(late)
        except NoProcessError as error:
            self._use_dsn((), self._ask({}, late).get("dsn"))
            if self.server_error is None:
                raise
            why = f"{error}\n\nserver view: {self.server_error}"
            raise NoProcessError(why) from None
        outcomes = self._ask(looks, late)
        self._use_dsn(looks.values(), outcomes.get("dsn"))
        for look in looks.values():
            use_agent(look, look.pools)
        self._use_evidence(looks.values(), outcomes.get("dsn"))
        for look in looks.values():
            explain(look, dsn=self._dsn is not None)
        self._let_them_end({a: look.missing() for a, look in looks.items()})
        joined = [
            ghosts(look.joined(), self._still_out(address, look.missing()))
            for address, look in looks.items()
        ]
        return Snapshot(
            processes=with_server(numbered(joined)), unreachable=unreachable
        )

    def all_frozen(self) -> tuple[tuple[Frozen, ...], tuple[Unreachable, ...]]:
        """Return the pictures that are kept of earlier trouble, the oldest first.

        With them the processes that could not tell. A thread of its own may ask, also
        while another one takes a snapshot. Raises what finding the processes raises.
        """
        return self._client.all_frozen()

    def _let_them_end(self, missing: Mapping[Hashable, frozenset[str]]) -> None:
        """Give holds without a backend a moment, unless they are known for that.

        A connection may be on its way out: when a statement is cancelled, drivers close
        the connection first, and then the pool takes it from its holder.
        """
        if any(m - self._ghosts.get(a, frozenset()) for a, m in missing.items()):
            time.sleep(_ON_ITS_WAY_OUT_S)
        self._ghosts = {}

    def _still_out(self, address: Any, missing: frozenset[str]) -> frozenset[str]:
        """Those of the holds that are open even now; asks only for a suspicion."""
        if not missing:
            return missing
        try:
            again = self._client.view(address)
        except PoolwatchError:
            return frozenset()
        found = self._ghosts[address] = missing & {hold.id for hold in again.holds}
        return found

    def close(self) -> None:
        """Close our own connections to PostgreSQL."""
        for reader in (self._dsn, self._environment):
            if reader is not None:
                reader.close()

    @property
    def server_down(self) -> bool:
        """Whether the server of the DSN did not answer at the last snapshot."""
        return self._dsn_down is not None

    # -- asking ---------------------------------------------------------------------

    def _ask(
        self, looks: Mapping[Hashable, Look], late: Mapping[Hashable, Outcome]
    ) -> dict[Hashable, Outcome]:
        """Let our own connection and the agents read, all at the same time."""
        if "dsn" in late:
            self._dsn_down = down_of(late["dsn"])
        jobs: dict[Hashable, Callable[[], Any]] = {}
        for address, look in looks.items():
            if ("servers", address) in late:
                hear_late(look, late["servers", address])
            if self._agent_needed(look):
                jobs["servers", address] = partial(
                    self._client.servers, address, linger=self._linger_for(look)
                )
        any_pool = any(look.pools for look in looks.values())
        if self._dsn is not None and (any_pool or self._dsn_identity is None):
            jobs["dsn"] = partial(self._dsn.read, pids_of(looks.values()))
        outcomes = self._calls.run(jobs, self._patience_s, limits=self._limits(looks))
        for address, look in looks.items():
            hear(look, outcomes.get(("servers", address)))
        return outcomes

    def _limits(self, looks: Mapping[Hashable, Look]) -> dict[Hashable, float]:
        """How long to wait for servers, so that the application is shown at once."""
        limits: dict[Hashable, float] = {}
        for address, look in looks.items():
            if look.memory.unread:
                limits["servers", address] = BRIEF_S
            elif look.memory.read_at:
                limits["servers", address] = _KNOWN_S
        if self._dsn_down is not None:
            limits["dsn"] = BRIEF_S
        return limits

    def _agent_needed(self, look: Look) -> bool:
        if not look.pools or self._dsn is None:
            return bool(look.pools)
        if self._dsn_down and any(self._is_here(look, pool) for pool in look.pools):
            return True  # it may be back, and our own next attempt is seconds away
        if any(pool in look.memory.hidden for pool in look.pools):
            return True
        homes = look.memory.homes
        if any(pool in homes and not self._is_here(look, pool) for pool in look.pools):
            return self._dsn_identity is not None
        asked = look.memory.asked
        recently = asked is not None and time.monotonic() - asked < ASK_AGAIN_S
        return not recently and not all(pool in homes for pool in look.pools)

    def _linger_for(self, look: Look) -> float:
        """No longer than needed where the agent is only asked which server it is."""
        elsewhere = any(not self._is_here(look, pool) for pool in look.memory.homes)
        return self._linger_s if self._dsn is None or elsewhere else 0.0

    def _is_here(self, look: Look, pool: str) -> bool:
        """Whether the pool is proven to be on the server of the DSN."""
        identity, _ = look.memory.homes.get(pool, (None, None))
        return identity is not None and identity == self._dsn_identity

    # -- using what came back -------------------------------------------------------

    def _use_dsn(self, looks: Collection[Look], outcome: Outcome | None) -> None:
        if outcome is None:
            return
        self.server_error = error_of(outcome, SILENT)
        self._dsn_down = down_of(outcome)
        if self.server_error is None:
            self._dsn_identity = outcome.value.identity
            for look in looks:
                use_where_at_home(look, "dsn", outcome)
            return
        for look in looks:
            here = [pool for pool in look.pools if self._is_here(look, pool)]
            use_agent(look, here)
            look.complain_down()
            untold, homes = look.untold(), look.memory.homes
            mine = [pool for pool in here if pool in untold]
            look.complain(mine, "dsn", self.server_error, down=self._dsn_down)
            elsewhere = homes if self._dsn_identity else {}
            unknown = [p for p in untold if p not in here and p not in elsewhere]
            look.complain(unknown, "dsn", self.server_error)

    def _use_evidence(self, looks: Collection[Look], outcome: Outcome | None) -> None:
        """For pools whose agent could not tell: each hold proves its own server."""
        lacking = [look for look in looks if look.untold()]
        source: ServerSource = "dsn"
        if self._environment is not None and lacking:
            source = "environment"
            job = partial(self._environment.read, pids_of(lacking))
            outcome = self._calls.run({source: job}, self._patience_s)[source]
        if outcome is None or error_of(outcome, SILENT) is not None:
            return
        for look in lacking:
            use_where_at_home(look, source, outcome)
            use_where_claimed(look, source, outcome, self._host)
