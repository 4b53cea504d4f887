"""A pool over a pool: the outer pool gets its connections from the inner one.

SQLAlchemy's pools do so with ``creator=pool.getconn``. The connection is then held
twice. Only the hold of the outer pool is shown. That of the inner pool counts as a slot
of the inner pool, but has no holder, as long as the outer pool has the connection, in
use or idle.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout, ConnectionFacts, Session

_SLACK_S = 0.05
"""SQLAlchemy's time of a connect is that of another clock."""
_CLOSING_S = 1.0
"""How long a connection may take from the close in the outer pool to the inner pool."""


class Pool(Protocol):
    """The ledger of a pool, as far as it matters here."""

    id: str
    holds: dict[int, Checkout]
    connections: dict[int, ConnectionFacts]
    lending: Lending
    server_connect: Callable[[], Any] | None


class Lending:
    """The connections that one pool lends to pools over it, and the pools under it."""

    def __init__(
        self, holds: dict[int, Checkout], all_pools: Mapping[str, Pool]
    ) -> None:
        self._holds = holds
        self._all_pools = all_pools
        self._outer: dict[Checkout, tuple[str, float]] = {}
        """By hold: the id of the pool over this one, and when it last had the
        connection.
        """
        self.over: dict[str, None] = {}
        """Ids of the pools from which this one gets its connections."""
        self.foreign_creator = False
        """Whether code of the application opens the connections: it may take them from
        another pool, which shows only when it has opened one."""

    def __len__(self) -> int:
        return len(self._outer)

    def lent(self) -> set[Checkout]:
        """The holds whose connection is that of a pool over this one."""
        self._drop_ended()
        return set(self._outer)

    def own(self) -> dict[int, Checkout]:
        """The other open holds of this pool, by key."""
        if not self._outer:
            return self._holds
        holds = self._holds.copy().items()
        return {key: hold for key, hold in holds if hold not in self._outer}

    def add(self, hold: Checkout, outer: Pool) -> None:
        """Note that the connection of an open hold is now that of ``outer``."""
        self._drop_ended()
        self._outer[hold] = outer.id, monotonic()

    def _drop_ended(self) -> None:
        """Forget holds that have ended, or whose connection the outer pool has closed
        without giving it back: such a hold is one like any other.
        """
        if not self._outer:
            return
        now, holds = monotonic(), set(self._holds.copy().values())
        outer_pools = {pool_id for pool_id, _ in list(self._outer.values())}
        sessions = {
            pool_id: sessions_of(pool) if (pool := self._all_pools.get(pool_id)) else ()
            for pool_id in outer_pools
        }
        for hold, (pool_id, last) in list(self._outer.items()):
            session = hold.facts.session if hold.facts is not None else None
            if hold in holds and session in sessions[pool_id]:
                self._outer[hold] = pool_id, now
            elif hold not in holds or now - last > _CLOSING_S:
                self._outer.pop(hold, None)


def sessions_of(pool: Pool) -> set[Session]:
    """The sessions of all connections of a pool, idle ones included."""
    return {facts.session for facts in list(pool.connections.values())}


def find_lent(pools: Mapping[str, Pool]) -> None:
    """Find the adopted holds that are out because a pool over theirs has them."""
    for outer in [each for each in pools.values() if each.lending.foreign_creator]:
        sessions = sessions_of(outer)
        for pool in [each for each in pools.values() if each is not outer]:
            for hold in list(pool.holds.values()):
                if hold.adopted and hold.facts and hold.facts.session in sessions:
                    _lend(hold, pool, outer)


def took_from_another(
    outer: Pool, facts: ConnectionFacts, pools: Mapping[str, Pool]
) -> None:
    """Find out whether a new connection of ``outer`` is one that another pool has lent,
    after ``outer`` began to connect.
    """
    began = facts.opened - (facts.connect_s or 0.0) - _SLACK_S
    if facts.reported_pid is None or len(pools) == 1:
        return
    for pool in list(pools.values()):
        for hold in reversed(list(pool.holds.values()) if pool is not outer else ()):
            if hold.checked_out_at < began:
                break
            if hold.facts is not None and hold.facts.session == facts.session:
                _lend(hold, pool, outer)
                return


def _lend(hold: Checkout, pool: Pool, outer: Pool) -> None:
    pool.lending.add(hold, outer)
    outer.lending.over[pool.id] = None
    outer.server_connect = pool.server_connect
