"""Labels and intended long holds, declared by the application.

Both are kept in a context variable, so they apply to the thread or task and to
everything awaited inside the ``with`` block.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar, Token

MAX_LABELS = 16
"""Maximum number of labels on one hold."""
MAX_VALUE_LENGTH = 200
"""Maximum length of a label's value, in characters."""


class Context:
    """The labels and the declared long hold of a request. Immutable."""

    __slots__ = ("labels", "long_hold")

    def __init__(self, labels: dict[str, str], long_hold: str | None) -> None:
        self.labels = labels
        self.long_hold = long_hold
        """Reason for an intended long hold, or None."""


NO_CONTEXT = Context({}, None)

current_context: ContextVar[Context] = ContextVar("poolwatch", default=NO_CONTEXT)


@contextmanager
def label(**labels: object) -> Iterator[None]:
    """Label the holds and waits that begin inside, e.g. ``label(endpoint="/orders")``.

    Inner labels are added to outer ones. At most 16 labels are kept, as text of at most
    200 characters. Every client that may read this process's socket sees them.
    """
    outer = current_context.get()
    texts = {key: _text(value) for key, value in labels.items()}
    merged = dict(list({**outer.labels, **texts}.items())[:MAX_LABELS])
    token = current_context.set(Context(merged, outer.long_hold))
    try:
        yield
    finally:
        _reset(token)


@contextmanager
def long_hold(reason: str) -> Iterator[None]:
    """Declare that holds begun inside are meant to be long: they are never flagged.

    ``reason`` is shown with the hold. Raises ValueError if it is empty.
    """
    if not isinstance(reason, str) or not reason.strip():
        raise ValueError('long_hold() needs a reason, e.g. long_hold("LISTEN loop")')
    token = current_context.set(
        Context(current_context.get().labels, reason[:MAX_VALUE_LENGTH])
    )
    try:
        yield
    finally:
        _reset(token)


def _reset(token: Token[Context]) -> None:
    """Restore the outer labels, if this is still the context of the block.

    A generator (a fixture, a dependency) may be closed in another context than the one
    it began in. There is nothing to reset in that context.
    """
    with suppress(ValueError):
        current_context.reset(token)


def _text(value: object) -> str:
    try:
        return str(value)[:MAX_VALUE_LENGTH]
    except Exception:  # noqa: BLE001 - a user's __str__ may raise anything
        return f"({type(value).__name__})"
