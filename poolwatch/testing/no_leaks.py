"""``with poolwatch.no_leaks(engine):`` for any test runner, and for production code."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any, Self, TypeVar

from poolwatch.testing.leak import PoolLeakError
from poolwatch.testing.region import STEP_S, Region
from poolwatch.testing.report import in_words

F = TypeVar("F", bound=Callable[..., Any])


class no_leaks:  # noqa: N801 - used like a function
    """Assert that a block returns all connections that it takes.

    Works with ``with``, ``async with`` and as a decorator of functions and coroutine
    functions. What counts is taken inside by this thread or task, by tasks made
    inside, and by threads that take their first connection inside.

    Args:
        target: an Engine, AsyncEngine or pool; every engine if left out. It is
            instrumented for the time of the block if it is not yet.
        grace: seconds that other threads and tasks get to return theirs.
        allow: how many leaks are fine.

    Raises:
        PoolLeakError: at the end of the block, with the leaks as ``.leaks``; not if the
            block fails by itself: its traceback may be what keeps the connection.
    """

    def __init__(
        self, target: Any = None, *, grace: float = 0.0, allow: int = 0
    ) -> None:
        if not grace >= 0:
            raise ValueError(f"grace must be seconds, not {grace!r}")
        if allow < 0:
            raise ValueError(f"allow must be a number of leaks, not {allow!r}")
        self._target = target
        self._grace = grace
        self._allow = allow
        self._blocks: list[Region] = []
        """Those under way: one instance may be entered again inside itself."""

    def __call__(self, function: F) -> F:
        """Wrap a function: each call is a block of its own."""
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
        self._blocks.append(Region(self._target))
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """End it; raises PoolLeakError."""
        block = self._blocks.pop()
        try:
            if kind is None:
                block.settle(self._grace)
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
        """End it, when the other tasks have had a turn; raises PoolLeakError."""
        import asyncio

        block = self._blocks.pop()
        try:
            if kind is None:
                await asyncio.sleep(0)
                block.last_call()
                until = time.monotonic() + self._grace
                while block.waits() and time.monotonic() < until:  # noqa: ASYNC110
                    await asyncio.sleep(STEP_S)
                self._judge(block)
        finally:
            block.end()

    def _copy(self) -> no_leaks:
        return no_leaks(self._target, grace=self._grace, allow=self._allow)

    def _judge(self, block: Region) -> None:
        leaks = block.leaks(self._allow)
        if len(leaks) > self._allow:
            raise PoolLeakError(in_words(leaks, "this block"), leaks)
