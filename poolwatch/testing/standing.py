"""A wait or a statement of a test run that has lasted long."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout


class Standing(NamedTuple):
    """A wait or a statement that has lasted long."""

    request: Checkout
    """The wait, or the hold whose statement is running."""
    began: float
    """``time.monotonic()`` at its beginning."""
    waits: bool

    @property
    def id(self) -> str:
        """Its id in a snapshot."""
        return f"{'w' if self.waits else 'h'}{self.request.number}"

    def lasts(self) -> bool:
        """Whether a statement is still the same one; a wait has an id of its own."""
        usage = self.request.usage
        return self.waits or (usage is not None and usage.began == self.began)
