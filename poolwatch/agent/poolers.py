"""Recognises a pooler between a pool and its server, without asking either.

A pooler such as PgBouncer makes up the pid that a driver reports. One number that is no
pid is enough: what is true of one connection of a pool is true of all.
"""

from __future__ import annotations

from poolwatch.ledger.pool import PoolLedger


def note_pooler(pool: PoolLedger) -> bool:
    """Whether a pooler is known to be in between; then no pid of the pool is believed.

    That the server view has met one is noted in the pool's ``setup``.
    """
    connections = list(pool.connections.values())
    if any(each.behind_pooler for each in connections):
        pool.setup.behind_pooler = True
    if pool.setup.behind_pooler:
        for each in connections:
            each.behind_pooler = True
    return pool.setup.behind_pooler
