"""Whether a lent connection was dropped, where its pool itself keeps it alive.

psycopg2's pools and asyncpg's refer to what they have lent, so the garbage collector
never tells of one that the application has dropped. But the interpreter counts: if
there is not one reference more than the pool's own, nobody can ever return it. A
variable, a cursor, a frame that is suspended, a call into the driver: each of them is
one more. Weak references are looked at, too: somebody might come back by one.
"""

from __future__ import annotations

from collections.abc import Callable
from sys import getrefcount
from typing import Any
from weakref import getweakrefcount, ref

from poolwatch.ledger.checkout import Checkout


def references(weakly: Callable[[], Any]) -> int:
    """References to what is weakly referred to, this look's own included."""
    thing = weakly()
    return 0 if thing is None else getrefcount(thing)


class _Lent:
    """Something that only a dict refers to: what a look at it counts."""


_POOL = {"lent": _Lent()}
_ONE = references(ref(_POOL["lent"]))


def look(hold: Checkout, *, by_pool: int = 1, weakly: int = 1) -> None:
    """Note on a hold whether the pool alone has what ``hold.proxy`` refers to.

    ``by_pool`` is the number of the pool's own references, ``weakly`` that of the weak
    references that are known to be harmless: ours and the pool's.
    """
    lent = hold.proxy()
    others = lent is None or getweakrefcount(lent) > weakly
    del lent
    alone = not others and references(hold.proxy) <= _ONE + by_pool - 1
    hold.dropped = hold.dropped + 1 if alone else 0
