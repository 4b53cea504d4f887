"""Lets threads and executor jobs inherit a context variable of the code that starts
them, as tasks do by themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from contextvars import ContextVar
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import threading

T = TypeVar("T")


def patch(
    kind: Any, name: str, make_wrapper: Callable[[Any], Any]
) -> Callable[[], None]:
    """Replace a method by a wrapper; returns a function that undoes it.

    If somebody else has wrapped it meanwhile, the wrapper stays below theirs.
    """
    original = getattr(kind, name)
    wrapper = wraps(original)(make_wrapper(original))
    setattr(kind, name, wrapper)

    def undo() -> None:
        if getattr(kind, name) is wrapper:
            setattr(kind, name, original)

    return undo


def into_threads(variable: ContextVar[T]) -> Callable[[Any], Any]:
    """Wrap ``Thread.start``: a thread begins with the value of its starter.

    The value is set in the thread's own context. What the thread runs in a copy of
    another context, as anyio's workers do, has the value of that one.
    """

    def wrap(original: Any) -> Any:
        def start(thread: threading.Thread) -> None:
            value = variable.get()
            if value:
                _run_with(thread, variable, value)
            original(thread)

        return start

    return wrap


def _run_with(thread: threading.Thread, variable: ContextVar[T], value: T) -> None:
    own = vars(thread).get("run")

    def run() -> None:
        if own is None:
            del thread.run  # or it would refer to itself
        else:
            thread.run = own  # type: ignore[method-assign]
        variable.set(value)
        thread.run()

    thread.run = run  # type: ignore[method-assign]


def into_jobs(
    variable: ContextVar[Any], value: Callable[[], Any]
) -> Callable[[Any], Any]:
    """Wrap ``ThreadPoolExecutor.submit``: a job has the value of its submitter."""

    def wrap(original: Any) -> Any:
        def submit(executor: Any, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            if type(executor).__name__ == "InterpreterPoolExecutor":
                # pickles the function: it cannot be wrapped
                return original(executor, function, *args, **kwargs)
            inherited = value()

            def job(*args: Any, **kwargs: Any) -> Any:
                token = variable.set(inherited)
                try:
                    return function(*args, **kwargs)
                finally:
                    variable.reset(token)

            return original(executor, job, *args, **kwargs)

        return submit

    return wrap
