"""``with poolwatch.no_leaks(engine):`` for any test runner, and for production code."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from poolwatch.testing.leak import PoolLeakError
from poolwatch.testing.open_holds import steps
from poolwatch.testing.region import Region, Regions
from poolwatch.testing.report import describe

F = TypeVar("F", bound=Callable[..., Any])


class no_leaks:  # noqa: N801 - used like a function
    """Assert that a block returns all connections that it checks out.

    Works with ``with``, ``async with`` and as a decorator of functions and coroutine
    functions. Connections count if they are checked out by the block, or by tasks,
    threads and executor jobs that are started in it, while it runs. What other code
    does meanwhile does not count. Blocks may overlap, also those of one instance.

    Args:
        target: an Engine, AsyncEngine or pool; every engine if omitted. It is
            instrumented for the duration of the block, unless it is already.
        grace: seconds that other threads and tasks get to return their connections.
        allow: the number of leaks that are tolerated.

    Raises:
        PoolLeakError: at the end of the block, with the leaks as ``.leaks``. Not raised
            if the block raises: its traceback may keep the connection alive.
    """

    def __init__(
        self, target: Any = None, *, grace: float = 0.0, allow: int = 0
    ) -> None:
        if not grace >= 0:
            raise ValueError(f"grace must be a number of seconds >= 0, not {grace!r}")
        if allow < 0:
            raise ValueError(f"allow must be a number of leaks >= 0, not {allow!r}")
        self._target = target
        self._grace = grace
        self._allow = allow
        self._blocks = Regions()

    def __call__(self, function: F) -> F:
        """Decorate a function: each call is a separate block.

        Raises:
            TypeError: for a class or generator function, whose calls end before the
                code runs.
        """
        if inspect.isclass(function) or _is_generator_function(function):
            raise TypeError(
                "no_leaks decorates functions and coroutine functions, not "
                f"{getattr(function, '__qualname__', function)!r}: write "
                "'with no_leaks():' inside it"
            )
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def coroutine(*args: Any, **kwargs: Any) -> Any:
                async with self._copy():
                    return await function(*args, **kwargs)

            return coroutine  # type: ignore[return-value]

        @functools.wraps(function)
        def call(*args: Any, **kwargs: Any) -> Any:
            with self._copy():
                return function(*args, **kwargs)

        return call  # type: ignore[return-value]

    def __enter__(self) -> Self:
        """Begin the block."""
        self._blocks.begin(self._target)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the block; raises PoolLeakError."""
        block = self._blocks.last()
        try:
            if kind is None:
                block.wait_for_returns(self._grace)
                self._judge(block)
        finally:
            block.end()

    async def __aenter__(self) -> Self:
        """Begin the block."""
        return self.__enter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End the block after other tasks have run once; raises PoolLeakError."""
        import asyncio

        block = self._blocks.last()
        try:
            if kind is None:
                await asyncio.sleep(0)
                block.mark_suspects()
                for pause in steps(self._grace):
                    if not block.has_open_suspects():
                        break
                    await asyncio.sleep(pause)
                self._judge(block)
        finally:
            block.end()

    def _copy(self) -> no_leaks:
        return no_leaks(self._target, grace=self._grace, allow=self._allow)

    def _judge(self, block: Region) -> None:
        leaks = block.leaks(self._allow)
        if len(leaks) > self._allow:
            raise PoolLeakError(describe(leaks), leaks)


def _is_generator_function(function: object) -> bool:
    return inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function)
