"""Reads pg_stat_activity inside the application, when a viewer requests it.

One reader per database server, over a connection opened as the engine opens its own.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

from poolwatch.agent.idle_connections import idle_pids
from poolwatch.agent.poolers import note_pooler
from poolwatch.errors import NO_ANSWER, PoolerError, ServerDownError, ServerViewError
from poolwatch.postgres.agent_reader import AgentReader
from poolwatch.protocol.records import AgentReading, ServerReading
from poolwatch.runtime.guard import log

if TYPE_CHECKING:
    from poolwatch.agent.outages import Outages
    from poolwatch.ledger.checkout import ConnectionFacts
    from poolwatch.ledger.ledger import Ledger
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.postgres.connection import Facts

_MAX_SERVERS = 16
"""Servers that are read per request."""
_TIMEOUT_S = 2.5
"""A slower server counts as down; a viewer waits 3 s for the agent."""


class ServerView:
    """Reads pg_stat_activity for the pools of this process, on request."""

    def __init__(self, ledger: Ledger, facts: Facts, outages: Outages) -> None:
        """``facts`` reads the backend pid of a DBAPI connection."""
        self._outages = outages
        self._ledger = ledger
        self._facts = facts
        self._readers: dict[str, AgentReader] = {}
        self._lock = threading.Lock()

    def readings(
        self, linger: float, *, everyone: bool = False
    ) -> Sequence[AgentReading]:
        """Read every server once; keep the connections open for ``linger`` seconds.

        ``everyone``: also the sessions of others, see AgentReader.read().
        """
        by_server: dict[str, list[PoolLedger]] = {}
        for pool in list(self._ledger.pools.values()):
            known = (
                not pool.lending.foreign_creator or pool.connects or pool.connections
            )
            if pool.server_connect is not None and known:
                by_server.setdefault(_server_key(pool), []).append(pool)
        self._drop_other_readers(by_server)
        servers = list(by_server.items())[:_MAX_SERVERS]
        answers: dict[str, AgentReading] = {}

        def read(key: str, pools: list[PoolLedger]) -> None:
            try:
                query = partial(self._query, linger=linger, everyone=everyone)
                answers[key] = self._read(key, pools, query)
            except Exception as error:  # noqa: BLE001 - runs the application's own code
                log().debug("a server view failed", exc_info=True)
                why = f"the server view failed with {type(error).__name__}"
                answers[key] = AgentReading(_ids(pools), None, why)

        threads = [
            threading.Thread(target=read, args=server, name="poolwatch", daemon=True)
            for server in servers
        ]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + _TIMEOUT_S
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        readings = [
            (pools, answers.get(key) or _timed_out(pools)) for key, pools in servers
        ]
        for pools, answer in readings:
            self._note_outage(pools[0], answer)
        return [answer for _, answer in readings]

    def _note_outage(self, pool: PoolLedger, answer: AgentReading) -> None:
        """Log when a server stops answering or answers again."""
        if answer.down is not None:
            self._outages.down(pool, answer.down)
        elif answer.reading is not None:
            self._outages.answers(pool)

    def close_idle(self) -> bool:
        """Close connections whose linger time is over; True while any is open."""
        any_open = False
        for reader in list(self._readers.values()):
            reader.close_idle()
            any_open = any_open or reader.is_connected
        return any_open

    def close(self) -> None:
        """Close all connections."""
        for reader in list(self._readers.values()):
            reader.close()

    def _read(
        self, key: str, pools: list[PoolLedger], query: Callable[..., ServerReading]
    ) -> AgentReading:
        ids, address = _ids(pools), _address(pools)
        connects = [
            pool.server_connect
            for pool in pools
            if pool.server_view and pool.server_connect is not None
        ]
        if not connects:
            return AgentReading(ids, None, None, enabled=False)
        reader = self._reader(key, partial(_connect, connects))
        reader.behind_pooler = any(note_pooler(pool) for pool in pools)
        try:
            return AgentReading(ids, query(reader, pools), None)
        except ServerDownError as error:
            return AgentReading(
                ids, None, str(error), down=error.words, address=address
            )
        except PoolerError as error:
            for pool in pools:
                pool.setup.behind_pooler = True
            return AgentReading(
                ids, None, str(error), address=address, behind_pooler=True
            )
        except ServerViewError as error:
            return AgentReading(ids, None, str(error), address=address)

    def _query(
        self,
        reader: AgentReader,
        pools: Collection[PoolLedger],
        *,
        linger: float,
        everyone: bool,
    ) -> ServerReading:
        known = [
            hold.facts
            for pool in pools
            for hold in pool.open_holds()
            if hold.facts is not None
        ]
        known += [facts for pool in pools for _, facts in list(pool.recently_closed)]
        known += [
            facts
            for pool in list(self._ledger.pools.values())  # a creator may be broken
            for _, facts in list(pool.slots.stranded)
        ]
        pids = {each.backend_pid for each in known if each.backend_pid is not None}
        idle, listening = idle_pids(pools)
        return reader.read(pids | listening, idle, everyone, linger=linger)

    def _reader(self, key: str, connect: Callable[[], Any]) -> AgentReader:
        with self._lock:
            reader = self._readers.get(key)
            if reader is None:
                reader = self._readers[key] = AgentReader(connect, self._facts)
            reader.connect = connect  # the previous pool may be gone
            return reader

    def _drop_other_readers(self, servers: Mapping[str, object]) -> None:
        with self._lock:
            gone = [key for key in self._readers if key not in servers]
            readers = [self._readers.pop(key) for key in gone]
        for reader in readers:
            reader.close()


def _connect(connects: Sequence[Callable[[], Any]]) -> Any:
    """Connect by the first pool that can; raise the error of the last one."""
    *others, last = connects
    for connect in others:
        with suppress(ServerViewError):  # the engine was collected
            return connect()
    return last()


def _timed_out(pools: Collection[PoolLedger]) -> AgentReading:
    """Return the reading for a server that has not answered in time."""
    why = f"PostgreSQL has not answered for {_TIMEOUT_S:g} s"
    return AgentReading(_ids(pools), None, why, down=NO_ANSWER, address=_address(pools))


def _ids(pools: Iterable[PoolLedger]) -> tuple[str, ...]:
    return tuple(pool.id for pool in pools)


def _address(pools: Iterable[PoolLedger]) -> str | None:
    """Return the server address of the pools' connections, if all have the same."""
    addresses = {facts.address for pool in pools for facts in _connections(pool)}
    return addresses.pop() if len(addresses) == 1 else None


def _connections(pool: PoolLedger) -> list[ConnectionFacts]:
    return list(pool.connections.values())


def _server_key(pool: PoolLedger) -> str:
    """Return equal keys for pools of one server; different keys if in doubt.

    The URL is not enough: connect_args or a creator may set the host.
    """
    addresses = {facts.address for facts in _connections(pool)}
    if len(addresses) != 1 or pool.url is None:
        return pool.id
    return f"{pool.url} {addresses.pop()}"
