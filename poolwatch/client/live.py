"""The viewers' Source: the snapshots of all processes, joined with their servers.

Which reading of PostgreSQL is used, for each pool:

1. With a DSN, the viewer reads that server, once a refresh for all processes. The
   reading is used for the pools that are proven to be on it; the agents of the other
   processes read their own servers.
2. Without a DSN, each agent reads the servers of its own pools.
3. Where an agent cannot, the viewer tries DATABASE_URL or its libpq environment, with
   the same proof.

Proof that a pool is on the server of a DSN: the agent, over a connection made the way
the pool makes its own, finds the same running server (ServerReading.identity). The
agent is asked again whenever the two differ, so a restarted server is recognised. If
the agent cannot read the server, a hold is proof: by its TCP port, or by its address if
it is on this machine. The first such hold proves it for its whole pool.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Collection, Hashable, Mapping
from functools import partial
from typing import Any

from poolwatch.adapters.connection_facts import connection_facts
from poolwatch.client.calls import BRIEF_S, Calls, Outcome
from poolwatch.client.client import Client
from poolwatch.client.processes import ProcessRegistry
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
from poolwatch.model import Frozen, Snapshot, Unreachable
from poolwatch.postgres.dsn_reader import DsnReader, environment_dsn
from poolwatch.protocol.sockets import Address
from poolwatch.text.naming import numbered

LINGER_S = 5.0
"""How long agents leave their connections open for the next refresh."""

_KNOWN_S = 1.0
"""How long to wait for a server that has answered so far."""
_ENDING_S = 0.25
"""How long a hold without a backend gets to end by itself."""
ASK_AGAIN_S = 10.0
"""Pause after an agent could not read the servers of its pools."""


class LiveSource:
    """A Source of live snapshots. Not thread-safe."""

    def __init__(
        self,
        client: Client,
        *,
        dsn: str | None = None,
        environ: Mapping[str, str] = os.environ,
        patience_s: float = PATIENCE_S,
        reader: Callable[[str], DsnReader] = lambda dsn: DsnReader(
            dsn, connection_facts
        ),
        host: str | None = None,
        linger_s: float = LINGER_S,
    ) -> None:
        """``dsn``: read this server; ``patience_s``: how long a refresh waits.

        ``linger_s``: how long agents leave connections open for the next refresh.
        """
        self._linger_s = linger_s
        self._client = client
        self._patience_s = patience_s
        self._calls = Calls()
        self._host = host or socket.gethostname()
        self._dsn = reader(dsn) if dsn is not None else None
        fallback = environment_dsn(environ) if dsn is None else None
        self._environment = reader(fallback) if fallback is not None else None
        self._processes = ProcessRegistry(client, self._calls, patience_s)
        self._ghosts: dict[Address, frozenset[str]] = {}
        """By process: ids of the holds without a backend at the last snapshot."""
        self._dsn_identity: str | None = None
        self._dsn_down: str | None = None
        """If the server of the DSN does not answer: its last message."""
        self.server_error: str | None = None
        """What was wrong with the DSN at the last snapshot, in one sentence; also set
        while there is no process."""

    def snapshot(self) -> Snapshot:
        """Return the snapshot of all processes, joined with their servers.

        Raises only what Client.agents() raises. Without any process the server of the
        DSN is read all the same, so that a wrong DSN is reported early.
        """
        late = self._calls.late()
        try:
            looks, unreachable = self._processes.ask(late)
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
            ghosts(look.joined(), self._still_open(address, look.missing()))
            for address, look in looks.items()
        ]
        return Snapshot(
            processes=with_server(numbered(joined)), unreachable=unreachable
        )

    def all_frozen(self) -> tuple[tuple[Frozen, ...], tuple[Unreachable, ...]]:
        """Return the incident snapshots of all processes, oldest first.

        Also returns the processes that failed. May be called from another thread while
        a snapshot is taken. Raises what Client.agents() raises.
        """
        return self._client.all_frozen()

    def _let_them_end(self, missing: Mapping[Address, frozenset[str]]) -> None:
        """Give holds without a backend a moment to end, unless they had it before.

        When a statement is cancelled, drivers close the connection first; the pool
        takes it from its holder only then.
        """
        if any(m - self._ghosts.get(a, frozenset()) for a, m in missing.items()):
            time.sleep(_ENDING_S)
        self._ghosts = {}

    def _still_open(self, address: Address, missing: frozenset[str]) -> frozenset[str]:
        """Those of the holds that are still open; asks the process if there are any."""
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
        self, looks: Mapping[Address, Look], late: Mapping[Hashable, Outcome]
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

    def _limits(self, looks: Mapping[Address, Look]) -> dict[Hashable, float]:
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
