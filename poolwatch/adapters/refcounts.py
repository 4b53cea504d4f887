"""Detects dropped connections by their reference counts.

The pools of psycopg2 and asyncpg keep references to connections in use, so the garbage
collector does not report a connection that the application has dropped. But if no
references are left other than the pool's own, the connection can never be returned. A
variable, a cursor, a suspended frame or a running call into the driver is one more
reference. Weak references count as well: they may lead back to the connection.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import getrefcount
from typing import Any
from weakref import getweakrefcount, ref

from poolwatch.ledger.checkout import Checkout


def references(reference: Callable[[], Any]) -> int:
    """Count the references to the target of a weak reference, including our own."""
    target = reference()
    return 0 if target is None else getrefcount(target)


class _Sample:
    """An object with one reference from a dict, to measure the smallest count."""


_POOL = {"connection": _Sample()}
_ONE = references(ref(_POOL["connection"]))


def check_dropped(
    hold: Checkout, *, pool_references: int = 1, weak_references: int = 1
) -> None:
    """Record on a hold whether only the pool refers to the connection."""
    dropped = is_unused(hold.proxy, pool_references, weak_references)
    hold.dropped = hold.dropped + 1 if dropped else 0


def is_unused(
    reference: Callable[[], Any], pool_references: int = 1, weak_references: int = 1
) -> bool:
    """Whether only the pool refers to a connection; False if it is gone.

    ``pool_references`` is the number of the pool's own references, ``weak_references``
    the number of weak references that poolwatch and the pool have.
    """
    connection = reference()
    in_use = connection is None or getweakrefcount(connection) > weak_references
    del connection
    return not in_use and references(reference) <= _ONE + pool_references - 1
