"""What the application gets in its hands instead of asyncpg's own proxy.

asyncpg keeps its proxy in the pool as long as the connection is out, so the end of that
object tells nothing. This one is the application's alone: when it is gone before the
connection came back, nobody can return the connection any more.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from asyncpg.pool import PoolConnectionProxy

if TYPE_CHECKING:
    from poolwatch.checkout import Checkout


class Lent(PoolConnectionProxy):  # type: ignore[misc]
    """Stands before asyncpg's proxy, and looks like it.

    Its two attributes are those of the proxy behind it at this moment, so that it is
    released when that one is.
    """

    __slots__ = ("__weakref__", "_gone", "_hold", "_own")

    def __init__(
        self, own: Any, hold: Checkout, gone: Callable[[Any, Checkout, int], None]
    ) -> None:
        self._own = own
        self._hold = hold
        self._gone = gone

    @property
    def _con(self) -> Any:
        return self._own._con

    @property
    def _holder(self) -> Any:
        return self._own._holder

    def _detach(self) -> Any:
        return self._own._detach()

    def __eq__(self, other: object) -> bool:
        """Equal to the proxy behind it: callbacks of a connection get that one."""
        return self._own is own(other)

    def __hash__(self) -> int:
        """As the proxy behind it."""
        return hash(self._own)

    def __repr__(self) -> str:
        return repr(self._own)

    def __del__(self) -> None:
        with suppress(Exception):  # the interpreter may be going down
            self._gone(self._own, self._hold, id(self))


Lent.__name__, Lent.__qualname__ = "PoolConnectionProxy", "PoolConnectionProxy"
Lent.__doc__ = PoolConnectionProxy.__doc__


def own(connection: Any) -> Any:
    """The proxy that ``connection`` stands before; itself, if it stands before none."""
    return connection._own if type(connection) is Lent else connection
