"""How the books are put right when an exception ends a hook, at whichever line.

The stack may be full, so a hook takes its wait out of the books by itself, without a
call. The rest is here. An exception that the library raises when a hook calls it is the
library's. Any other is ours, and reaches the application only if it is meant for the
application: Ctrl-C, or the end of a greenlet or thread.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolwatch.ledger.checkout import Checkout
    from poolwatch.ledger.pool import PoolBook
    from poolwatch.runtime.guard import Guard


def is_library_s(error: BaseException, called: bool, original: Any) -> bool:
    """Whether ``original`` has raised it; ``called``: the hook was about to call that.

    To be asked in the ``except`` block of the hook: then the traceback begins with it.
    A signal's handler has a frame of its own there, in place of the library's. That is
    told for functions only: what another tool has put around one may show the code of
    the function as its own, and has frames of its own.
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

    book: PoolBook
    guard: Guard
    """Switches the hooks off."""
    _explain: Callable[[str], str]
    _tell_refused: Callable[[PoolBook, BaseException], None]

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
        """Count a request that the pool has refused or the application has ended."""
        try:
            self.book.waited(wait, monotonic())
            self.refused(wait.asked, error, timed_out)
        except Exception as ours:  # noqa: BLE001 - the application waits for its own
            self.guard.failed(ours)

    def refused(self, asked: float, error: BaseException, timed_out: bool) -> None:
        """Count a failed request, made at ``asked``, that is not among the waits."""
        waited = monotonic() - asked
        if timed_out:
            self.book.timed_out(waited)
            self.explain_to(error)
        elif not isinstance(error, Exception):
            self.book.given_up(waited)
        else:
            self._tell_refused(self.book, error)

    def explain_to(self, error: BaseException) -> None:
        """Add a note to a timeout error: who holds the connections."""
        error.add_note(self._explain(self.book.id))

    def goes_on(
        self,
        error: BaseException,
        wait: Checkout | None,
        at: int = 0,
        before: int | None = None,
    ) -> bool:
        """Whether the application gets a connection in spite of an exception of ours.

        ``at`` is the key of the hold, and ``before`` the number of holds that its
        holder had until then; None if it did not come to that.
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
        """Count out a hold whose connection is back and whose end was cut short."""
        if hold is not None:
            hold.holder.out -= 1
            if hold.account is not None:
                hold.account.out.pop(hold, None)
