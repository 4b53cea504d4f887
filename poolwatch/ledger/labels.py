"""What the application says about its own work: labels, and holds meant to be long.

Both are context variables, so they follow the thread, the task and everything awaited
inside the ``with`` block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token

MOST = 16
"""Labels kept on one hold."""
LONGEST = 200
"""Characters of a label's value that are kept."""


class Context:
    """What surrounds the code that asks for a connection. Never changed."""

    __slots__ = ("labels", "long_hold")

    def __init__(self, labels: dict[str, str], long_hold: str | None) -> None:
        self.labels = labels
        self.long_hold = long_hold
        """Why a long hold is fine here, or None."""


NO_CONTEXT = Context({}, None)

current_context: ContextVar[Context] = ContextVar("poolwatch", default=NO_CONTEXT)


@contextmanager
def label(**labels: object) -> Iterator[None]:
    """Give the holds and waits begun inside labels, e.g. ``label(endpoint="/orders")``.

    Inner labels are added to outer ones. Values are kept as text, at most 16 of 200
    characters: they are shown to whoever may read this process's socket.
    """
    said = current_context.get()
    texts = {key: _text(value) for key, value in labels.items()}
    both = dict(list({**said.labels, **texts}.items())[:MOST])
    token = current_context.set(Context(both, said.long_hold))
    try:
        yield
    finally:
        _reset(token)


@contextmanager
def long_hold(reason: str) -> Iterator[None]:
    """Declare that holds taken inside are meant to last: they are never flagged.

    ``reason`` is shown with the hold. Raises ValueError if it is empty: a reader must
    be able to tell why.
    """
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError('long_hold() needs a reason, e.g. long_hold("LISTEN loop")')
    token = current_context.set(Context(current_context.get().labels, reason[:LONGEST]))
    try:
        yield
    finally:
        _reset(token)


def _reset(token: Token[Context]) -> None:
    """Leave the block. A generator (a fixture, a dependency) may be ended in another
    context than it was begun in: then there is nothing to reset there.
    """
    with suppress(ValueError):
        current_context.reset(token)


def _text(value: object) -> str:
    try:
        return str(value)[:LONGEST]
    except Exception:  # noqa: BLE001 - its own __str__; a label is not worth a failure
        return f"({type(value).__name__})"
