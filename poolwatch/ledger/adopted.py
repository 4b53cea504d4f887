"""Adopted holds and waits: those that were there already when poolwatch attached.

Who took such a connection, where and when is unknown, and stays so. Who waits for one,
and where, is on a stack; since when is unknown.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from poolwatch.ledger.checkout import Checkout, ConnectionFacts
from poolwatch.ledger.labels import NO_CONTEXT
from poolwatch.stacks.capture import UNKNOWN_STACK
from poolwatch.stacks.holder import UnknownHolder

if TYPE_CHECKING:
    from poolwatch.stacks.capture import CapturedStack
    from poolwatch.stacks.holder import Holder, TaskRef


class AdoptedHold(Checkout):
    """The hold of a connection whose checkout was not seen.

    Each has a holder of its own, so it is never the second hold of anybody. Its times
    are those of the adoption.
    """

    __slots__ = ()
    adopted = True

    def __init__(self, proxy: Callable[[], Any], facts: ConnectionFacts | None) -> None:
        super().__init__(UNKNOWN_STACK, UnknownHolder(), NO_CONTEXT, None, monotonic())
        self.proxy = proxy
        self.facts = facts


class AdoptedWait(Checkout):
    """A request whose beginning was not seen, and whose end will not be."""

    __slots__ = ()
    adopted = True

    def __init__(
        self, stack: CapturedStack, holder: Holder, task: TaskRef | None
    ) -> None:
        super().__init__(stack, holder, NO_CONTEXT, task, monotonic())
