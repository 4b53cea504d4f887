"""The values of the fixtures; their context managers work with or without a call."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, Self

from poolwatch.agent.instrument import agent
from poolwatch.model import Hold, Snapshot
from poolwatch.testing.leak import PoolLeakError
from poolwatch.testing.limits import stack_lines
from poolwatch.testing.no_leaks import no_leaks
from poolwatch.testing.owners import Owner
from poolwatch.testing.region import Region, Regions
from poolwatch.text.format import plural


class _WithoutCall:
    """Begins a block with default arguments for each ``with`` or ``async with``."""

    def __init__(self) -> None:
        self._default = self()

    def __call__(self) -> Any:
        """Return a context manager, which can be entered again."""
        raise NotImplementedError

    def __enter__(self) -> Any:
        return self._default.__enter__()

    def __exit__(self, *exc_info: object) -> None:
        self._default.__exit__(*exc_info)

    async def __aenter__(self) -> Any:
        return await self._default.__aenter__()

    async def __aexit__(self, *exc_info: object) -> None:
        await self._default.__aexit__(*exc_info)


class AssertNoPoolLeaks(_WithoutCall):
    """``with assert_no_pool_leaks:`` or ``with assert_no_pool_leaks(engine):``."""

    def __call__(
        self, target: Any = None, *, grace: float = 0.0, allow: int = 0
    ) -> no_leaks:
        """Return ``poolwatch.no_leaks`` with these arguments."""
        return no_leaks(target, grace=grace, allow=allow)

    def now(self, target: Any = None, *, allow: int = 0) -> Awaitable[None]:
        """Assert that no connection is out at this point, in any thread or task.

        The check is done by the call. An async test may await the result.

        Args:
            target: an Engine, AsyncEngine or pool; every engine if omitted.
            allow: the number of connections that may be out.

        Raises:
            PoolLeakError: with the holders, as for a leak.
        """
        from poolwatch.testing.nothing_out import assert_nothing_out

        return assert_nothing_out(target, allow)


class AssertMaxPoolCheckouts(_WithoutCall):
    """``with assert_max_pool_checkouts(2):``; without a call, the maximum is one."""

    def __call__(self, n: int = 1, target: Any = None) -> _CheckoutLimit:
        """Return a context manager that allows ``n`` connections at once."""
        return _CheckoutLimit(n, target)


class _CheckoutLimit:
    """Raises PoolLeakError if a block holds more than ``n`` connections at once."""

    def __init__(self, n: int, target: Any) -> None:
        if isinstance(n, bool) or not isinstance(n, int) or n < 0:
            raise ValueError(f"n must be a number of connections >= 0, not {n!r}")
        self._n = n
        self._target = target
        self._blocks = Regions()

    def __enter__(self) -> Self:
        self._blocks.begin(self._target)
        return self

    def __exit__(self, *exc_info: object) -> None:
        region = self._blocks.last()
        region.end()
        if exc_info[0] is None and len(region.peak) > self._n:
            raise PoolLeakError(_too_many(region, self._n))

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(self, *exc_info: object) -> None:
        self.__exit__(*exc_info)


def _too_many(region: Region, n: int) -> str:
    held = plural(len(region.peak), "connection")
    head = f"this block held {held} at once; the limit is {n}"
    return "\n".join(
        [head, *stack_lines([each.stack.frames() for each in region.peak])]
    )


class PoolWatch:
    """The value of the fixture ``pool_watch``: the pools while a test runs."""

    def __init__(self, owner: Owner | None) -> None:
        self._owner = owner

    def holds(self) -> tuple[Hold, ...]:
        """The connections that this test holds now, the oldest first."""
        holds = agent.source.process().holds
        if self._owner is None:
            return holds
        own_ids = {f"h{hold.number}" for hold in list(self._owner.open_holds)}
        return tuple(hold for hold in holds if hold.id in own_ids)

    @property
    def peak(self) -> int:
        """The most connections that this test has held at once so far; 0 if unknown."""
        return self._owner.peak if self._owner is not None else 0

    def snapshot(self) -> Snapshot:
        """The snapshot of this process, all its pools included."""
        return agent.source.snapshot()
