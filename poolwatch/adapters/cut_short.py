"""What becomes of an exception in a hook: the ledger is put right, wherever it hit.

The stack may be full, so a hook removes its wait from the ledger itself, without a
call. Everything else is here. An exception is the library's if the library raised it
when a hook called it. Any other is ours. Ours reach the application only if they are
meant for it: Ctrl-C, or the end of a greenlet or thread.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.runtime.guard import Guard


def is_library_s(error: BaseException, called: bool, original: Any) -> bool:
    """Whether ``original`` raised the error.

    ``called``: the hook was about to call ``original``. Call this in the ``except``
    block of the hook: then the traceback begins with the hook's frame, and the frame of
    the library is next. The frame of a signal handler would be in its place. Only
    functions can be told apart in this way: a wrapper of another tool has frames of its
    own, but may show the code of the function that it wraps.
    """
    function = original.__func__ if type(original) is MethodType else original
    if not called or type(function) is not FunctionType:
        return called
    traceback = error.__traceback__
    after = None if traceback is None else traceback.tb_next
    return after is not None and after.tb_frame.f_code is function.__code__


class Hooks:
    """What is attached to one pool, and what becomes of an exception in it.

    ``book.gauges`` must be a bound method of the hooks: they are found again by it.
    """

    book: PoolLedger
    guard: Guard
    """Switches the hooks off."""
    prove_dropped = True
    """Look for holds that were dropped, where the pool keeps what it lends."""
    _explain: Callable[[str], str]
    _tell_refused: Callable[[PoolLedger, BaseException], None]

    @property
    def pool(self) -> Any:
        """The pool that is hooked; None once it is gone."""
        raise NotImplementedError

    def has(self, pool: Any) -> bool:
        """Whether these hooks are on ``pool``."""
        raise NotImplementedError

    def remove(self) -> None:
        """Take everything off again. Checkouts that are under way pass through."""
        raise NotImplementedError

    def gave_up(self, wait: Checkout, error: BaseException, timed_out: bool) -> None:
        """Count a request that the pool refused or the application ended."""
        try:
            self.book.waited(wait, monotonic())
            self.refused(wait.asked, error, timed_out)
        except Exception as ours:  # noqa: BLE001 - the application waits for its own
            self.guard.failed(ours)

    def refused(self, asked: float, error: BaseException, timed_out: bool) -> None:
        """Count a failed request that was made at ``asked``, a ``time.monotonic()``."""
        waited = monotonic() - asked
        if timed_out:
            self.book.timed_out(waited)
            self.explain_to(error)
        elif not isinstance(error, Exception):
            self.book.given_up(waited)
        else:
            self._tell_refused(self.book, error)

    def explain_to(self, error: BaseException) -> None:
        """Add a note to a timeout error: the holders of the connections."""
        error.add_note(self._explain(self.book.id))

    def goes_on(
        self,
        error: BaseException,
        wait: Checkout | None,
        at: int = 0,
        before: int | None = None,
    ) -> bool:
        """Whether the application gets a connection in spite of an exception of ours.

        ``at`` is the key of the hold. ``before`` is the number of holds that the holder
        had before it; None if the hold had not begun.
        """
        if wait is not None:
            self.book.waited(wait, monotonic())
            if before is not None:
                wait.holder.out = before + (self.book.holds.get(at) is wait)
        return self.survives(error)

    def survives(self, error: BaseException) -> bool:
        """Count an exception of ours; False for one meant for the application."""
        if not isinstance(error, Exception):
            return False
        self.guard.failed(error)
        return True

    def came_back(self, hold: Checkout | None) -> None:
        """Correct the count of a holder whose connection has come back."""
        if hold is not None:
            hold.holder.out -= 1
