"""Detects dropped connections by their reference counts.

The pools of psycopg2 and asyncpg keep references to the connections that are out, so
the garbage collector does not report a connection that the application has dropped. But
if there are no more references than the pool's own, the connection can never be
returned. A variable, a cursor, a suspended frame, a call into the driver: each of them
is one more reference. Weak references count, too: they may lead back to the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import getrefcount
from typing import Any
from weakref import getweakrefcount, ref

from poolwatch.ledger.checkout import Checkout


def references(weakly: Callable[[], Any]) -> int:
    """The number of references to the target of a weak one, our own included."""
    thing = weakly()
    return 0 if thing is None else getrefcount(thing)


class _Lent:
    """An object with one reference from a dict: the least that can be counted."""


_POOL = {"lent": _Lent()}
_ONE = references(ref(_POOL["lent"]))


def look(hold: Checkout, *, by_pool: int = 1, weakly: int = 1) -> None:
    """Note on a hold whether only the pool refers to the connection.

    ``by_pool`` is the number of the pool's own references. ``weakly`` is the number of
    harmless weak references: ours and the pool's.
    """
    lent = hold.proxy()
    others = lent is None or getweakrefcount(lent) > weakly
    del lent
    alone = not others and references(hold.proxy) <= _ONE + by_pool - 1
    hold.dropped = hold.dropped + 1 if alone else 0
