"""The source for all user interfaces: the processes, joined with their servers.

How PostgreSQL is read, for each pool:

1. With a DSN, the viewer reads that server, once per refresh for all processes. The
   reading is used for the pools that are proven to be on that server. For other pools
   the agents read the servers.
2. Without a DSN, every agent reads the servers of its own pools.
3. If an agent cannot, the viewer tries DATABASE_URL or its libpq environment, with the
   same proof.

The proof that a pool is on the server of a DSN: the pool's agent, over a connection
opened with the pool's own settings, finds the same running server
(ServerReading.identity). The agent is asked again whenever the identities differ, so a
restarted server is recognised. If the agent cannot identify the server, each hold has
to prove it by its TCP port, or by its address on this same machine; one proven hold is
enough for its pool.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Hashable, Mapping
from functools import partial
from typing import Any

from poolwatch.adapters.connection_facts import connection_facts
from poolwatch.client.calls import BRIEF_S, Calls, Outcome
from poolwatch.client.client import Client
from poolwatch.client.pooler import Pooler
from poolwatch.client.processes import ProcessRegistry
from poolwatch.client.server_view import Attribution, attribute
from poolwatch.client.view import (
    PATIENCE_S,
    OwnReading,
    View,
    down_of,
    error_of,
    is_on,
    pids_of,
)
from poolwatch.diagnosis.evidence import ServerEvidence
from poolwatch.diagnosis.findings import with_server_findings
from poolwatch.errors import NoProcessError
from poolwatch.model import IncidentSnapshot, Snapshot, Unreachable
from poolwatch.postgres.dsn_reader import DsnReader, environment_dsn
from poolwatch.postgres.errors import SILENT
from poolwatch.protocol.sockets import Address
from poolwatch.text.naming import numbered

LINGER_S = 5.0
"""Seconds for which an agent keeps its connection for the viewer's next refresh."""

_KNOWN_S = 0.6
"""Seconds to wait for a server from the second look on: all holds are read before it,
and get older meanwhile."""
_CLOSING_S = 0.25
"""Seconds given to a hold without a backend to end by itself."""
ASK_AGAIN_S = 10.0
"""Seconds before an agent that could not identify its server is asked again."""


class LiveSource:
    """A Source for the viewer. One thread at a time may call it."""

    def __init__(
        self,
        client: Client,
        *,
        dsn: str | None = None,
        environ: Mapping[str, str] = os.environ,
        patience_s: float = PATIENCE_S,
        reader: Callable[[str], DsnReader] | None = None,
        host: str | None = None,
        linger_s: float = LINGER_S,
        sessions: bool = False,
        pgbouncer: str | None = None,
    ) -> None:
        """``dsn``: read this server; ``patience_s``: how long a refresh waits.

        ``pgbouncer`` is the DSN of the console of a PgBouncer in front of that server.
        ``linger_s``: how long agents keep their connection for the next refresh.
        ``sessions``: whether the servers return all sessions, not only blockers.
        """
        self._linger_s = linger_s
        self._sessions = sessions
        reader = reader or partial(DsnReader, facts=connection_facts, everyone=sessions)
        self._client = client
        self._patience_s = patience_s
        self._calls = Calls()
        self._host = host or socket.gethostname()
        self._dsn = reader(dsn) if dsn is not None else None
        fallback = environment_dsn(environ) if dsn is None else None
        self._environment = reader(fallback) if fallback is not None else None
        self._pooler = Pooler(pgbouncer, self._calls) if pgbouncer is not None else None
        self._processes = ProcessRegistry(client, self._calls, patience_s)
        self._missing_before: dict[Address, frozenset[str]] = {}
        """By agent: ids of the holds that had no backend at the last snapshot."""
        self._looked_before = False
        """Whether there was a snapshot of a process."""
        self._dsn_identity: str | None = None
        self._dsn_down: str | None = None
        """The error of the DSN's server or its driver, while the server is down."""
        self.server_error: str | None = None
        """The error of the DSN at the last snapshot, one sentence. It is also set if
        there is no process in which to show it."""

    def snapshot(self) -> Snapshot:
        """Return all processes as they are now, joined with their servers.

        Raises what Client.agents() raises. If there are no processes, the server of the
        DSN is read all the same, so that its error is shown early.
        """
        late = self._calls.late()
        try:
            views, unreachable = self._processes.ask(late)
        except NoProcessError as error:
            self._read({}, late)
            if self.server_error is None:
                raise
            why = f"{error}\n\nserver view: {self.server_error}"
            raise NoProcessError(why) from None
        views, own = self._read(views, late)
        attributed = self._attribute(views, own)
        for address, each in attributed.items():
            self._processes.carry_over(address, each.carried)
        self._wait_for_closing_holds(
            {a: each.missing for a, each in attributed.items()}
        )
        processes = numbered([each.process for each in attributed.values()])
        evidence = [
            ServerEvidence(
                process,
                each.stray_sessions,
                self._still_open(address, each.missing),
            )
            for process, (address, each) in zip(
                processes, attributed.items(), strict=True
            )
        ]
        return Snapshot(
            processes=with_server_findings(evidence),
            unreachable=unreachable,
            dsn_error=self.server_error,
        )

    def all_incident_snapshots(
        self,
    ) -> tuple[tuple[IncidentSnapshot, ...], tuple[Unreachable, ...]]:
        """Return the incident snapshots, the oldest first, and the silent processes.

        May be called while another thread takes a snapshot. Raises what
        Client.agents() raises.
        """
        return self._client.all_incident_snapshots()

    def _wait_for_closing_holds(
        self, missing: Mapping[Address, frozenset[str]]
    ) -> None:
        """Wait a moment if a hold without a backend was not missing before.

        Its connection may be closing: when a statement is cancelled, drivers close the
        connection first, and then the pool ends the hold.
        """
        if any(
            m - self._missing_before.get(a, frozenset()) for a, m in missing.items()
        ):
            time.sleep(_CLOSING_S)
        self._missing_before = {}

    def _still_open(self, address: Address, missing: frozenset[str]) -> frozenset[str]:
        """The missing holds that are still open in a second snapshot."""
        if not missing:
            return missing
        again = ("again", address)
        job = partial(self._client.view, address)
        outcome = self._calls.run({again: job}, self._patience_s)[again]
        if error_of(outcome, SILENT) is not None:
            return frozenset()
        found = self._missing_before[address] = missing & {
            hold.id for hold in outcome.value.holds
        }
        return found

    def close(self) -> None:
        """Close the viewer's own connections to PostgreSQL.

        Not one that waits for a server that hangs: the driver would wait with it.
        """
        readers = {"dsn": self._dsn, "environment": self._environment}
        for key, reader in readers.items():
            if reader is not None and not self._calls.is_running(key):
                reader.close()
        if self._pooler is not None:
            self._pooler.close()

    @property
    def server_down(self) -> bool:
        """Whether the server of the DSN did not answer at the last snapshot."""
        return self._dsn_down is not None

    def _read(
        self, views: Mapping[Address, View], late: Mapping[Hashable, Outcome]
    ) -> tuple[dict[Address, View], OwnReading | None]:
        """Let the viewer's own connection and the agents read at the same time.

        Returns the views with the agents' answers, and the reading of the DSN.
        """
        if "dsn" in late:
            self._dsn_down = down_of(late["dsn"])
        views = {
            address: view.with_late_answer(late["servers", address])
            if ("servers", address) in late
            else view
            for address, view in views.items()
        }
        patience_s = _KNOWN_S if self._looked_before else self._patience_s
        if self._pooler is not None:
            views = self._pooler.with_links(views, patience_s)
        needed = {a: view for a, view in views.items() if self._agent_needed(view)}
        jobs = self._requests(needed)
        any_pool = any(view.pools for view in views.values())
        if self._dsn is not None and (any_pool or self._dsn_identity is None):
            jobs["dsn"] = partial(self._dsn.read, *pids_of(views.values()))
        outcomes = self._calls.run(jobs, self._patience_s, limits=self._limits(views))
        if self._pooler is not None:
            views = self._pooler.confirmed(views, patience_s)
        self._looked_before |= bool(views)
        own = self._read_dsn(outcomes.get("dsn"))
        if own is not None and own.down is not None:
            # the applications may still reach their server, in another way
            more = {a: v for a, v in views.items() if a not in needed and v.pools}
            outcomes |= self._calls.run(self._requests(more), BRIEF_S)
        now = time.monotonic()
        answered = {
            address: view.with_answer(outcomes.get(("servers", address)), now)
            for address, view in views.items()
        }
        return answered, own

    def _requests(
        self, views: Mapping[Address, View]
    ) -> dict[Hashable, Callable[[], Any]]:
        """Requests for the servers that the agents read."""
        full = self._with_all_sessions(views)
        return {
            ("servers", address): partial(
                self._client.servers,
                address,
                linger=self._linger_for(view),
                everyone=address in full,
            )
            for address, view in views.items()
        }

    def _read_dsn(self, outcome: Outcome | None) -> OwnReading | None:
        if outcome is None:
            return None
        own = OwnReading.of("dsn", outcome, self._dsn_identity)
        self.server_error, self._dsn_down = own.error, own.down
        self._dsn_identity = own.identity
        return own

    def _attribute(
        self, views: Mapping[Address, View], own: OwnReading | None
    ) -> dict[Address, Attribution]:
        """Join each process with its readings; reads the environment's server last."""
        found = self._join(views, own)
        incomplete = {a: views[a] for a, each in found.items() if each.without_reading}
        if self._environment is not None and incomplete:
            job = partial(self._environment.read, *pids_of(incomplete.values()))
            outcome = self._calls.run({"environment": job}, self._patience_s)
            own = OwnReading.of("environment", outcome["environment"])
            found |= self._join(incomplete, own)
        return found

    def _join(
        self, views: Mapping[Address, View], own: OwnReading | None
    ) -> dict[Address, Attribution]:
        now = time.monotonic()
        found = {}
        for address, view in views.items():
            found[address] = attribute(view, own, self._host, now)
            own = own and own.without_sessions_of(found[address].process)
        return found

    def _limits(self, views: Mapping[Address, View]) -> dict[Hashable, float]:
        """How long to wait for servers before the processes are shown without them."""
        limits: dict[Hashable, float] = {}
        for address, view in views.items():
            if view.carried.incomplete:
                limits["servers", address] = BRIEF_S
            elif self._looked_before:
                limits["servers", address] = _KNOWN_S
        if self._dsn_down is not None:
            limits["dsn"] = BRIEF_S
        elif self._looked_before:
            limits["dsn"] = _KNOWN_S
        return limits

    def _agent_needed(self, view: View) -> bool:
        if not view.pools or self._dsn is None:
            return bool(view.pools)
        if self._dsn_down and any(
            self._is_on_dsn_server(view, pool) for pool in view.pools
        ):
            return True  # it may be up again before the viewer tries again
        if any(pool in view.carried.hidden for pool in view.pools):
            return True
        pool_servers = view.carried.pool_servers
        if any(
            pool in pool_servers and not self._is_on_dsn_server(view, pool)
            for pool in view.pools
        ):
            return self._dsn_identity is not None
        answered_at = view.carried.agent_answered_at
        recently = (
            answered_at is not None and time.monotonic() - answered_at < ASK_AGAIN_S
        )
        return not recently and not all(pool in pool_servers for pool in view.pools)

    def _with_all_sessions(self, views: Mapping[Address, View]) -> set[Address]:
        """The agents that are asked for all sessions: one for each database."""
        found: set[Address] = set()
        covered: set[Hashable] = set()
        if self._sessions:
            # one that was late would leave the others without the sessions
            for address in sorted(views, key=lambda a: views[a].carried.incomplete):
                databases = self._databases(views[address]) - covered
                if databases:
                    found.add(address)
                    covered |= databases
        return found

    def _databases(self, view: View) -> set[Hashable]:
        """The databases of a process whose sessions the DSN's reading does not have."""
        found: set[Hashable] = set()
        for pool in view.process.pools:
            server, _ = view.carried.pool_servers.get(pool.id, (None, None))
            by_dsn = self._dsn is not None and server in {None, self._dsn_identity}
            unread = self._dsn_down is not None or pool.id in view.carried.hidden
            if pool.id in view.pools and (unread or not by_dsn):
                url = pool.url or f"{view.process.pid} {pool.id}"
                name = url.partition("?")[0].rpartition("/")[2]
                found.add((server, name) if server else url)
        return found

    def _linger_for(self, view: View) -> float:
        """Seconds to keep a connection; 0 if the agent only identifies its server."""
        elsewhere = any(
            not self._is_on_dsn_server(view, pool) for pool in view.carried.pool_servers
        )
        return self._linger_s if self._dsn is None or elsewhere else 0.0

    def _is_on_dsn_server(self, view: View, pool: str) -> bool:
        """Whether the pool is proven to be on the server of the DSN."""
        return is_on(view.carried, pool, self._dsn_identity)
