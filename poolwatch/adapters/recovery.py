"""Restores the ledger when an exception interrupts a hook at any line.

The stack may be full, so a hook removes its wait from the ledger inline, without a
call. The rest of the recovery is here. There are two kinds of exceptions: those that
the library raised when a hook called it, and all others, which poolwatch caused. The
latter reach the application only if they are meant for it: Ctrl-C, or the end of a
greenlet or thread.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import wraps
from time import monotonic
from types import FunctionType, MethodType
from typing import TYPE_CHECKING, Any

from poolwatch.adapters.failed_connects import connections_opened
from poolwatch.ledger.slots import Failed

if TYPE_CHECKING:
    from poolwatch.adapters.adoption import Adoption, Unheld
    from poolwatch.ledger.checkout import Checkout
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.runtime.guard import Guard


def raised_by(error: BaseException, called: bool, original: Any) -> bool:
    """Whether ``original`` raised the error.

    ``called``: the hook had reached the call of ``original``. Use this in the
    ``except`` block of the hook: the traceback then begins with the hook's frame,
    followed by the library's. If a signal handler raised, its frame follows instead.
    Only plain functions can be recognised: a wrapper of another tool has its own
    frames, but may copy the code object of the wrapped function.
    """
    function = original.__func__ if type(original) is MethodType else original
    if not called or type(function) is not FunctionType:
        return called
    traceback = error.__traceback__
    after = None if traceback is None else traceback.tb_next
    return after is not None and after.tb_frame.f_code is function.__code__


def guarded(hook: Callable[..., Any]) -> Callable[..., Any]:
    """Decorator for a hook: logs and swallows exceptions, and returns None then."""

    @wraps(hook)
    def call(hooks: Any, *args: Any) -> Any:
        if hooks.guard.tripped:
            return None
        try:
            return hook(hooks, *args)
        except Exception as error:  # noqa: BLE001 - the application must go on
            hooks.guard.failed(error)
            return None

    return call


class Hooks:
    """The hooks of one pool, and their recovery from exceptions.

    ``ledger.gauges`` must be a bound method of the hooks: other code finds the hooks
    through its ``__self__``.
    """

    ledger: PoolLedger
    guard: Guard
    """Disables the hooks after a failure."""
    prove_dropped = True
    """Detect dropped holds in pools that keep references to connections in use."""
    adoption: Adoption | None = None
    """Set if connections that were out before the hooks are adopted."""
    _explain: Callable[[str], str]
    _report_failure: Callable[[PoolLedger, BaseException], None]

    @property
    def pool(self) -> Any:
        """The hooked pool; None once it was collected."""
        raise NotImplementedError

    def has(self, pool: Any) -> bool:
        """Whether these hooks are on ``pool``."""
        raise NotImplementedError

    def remove(self) -> None:
        """Remove all hooks. Checkouts in progress finish unrecorded."""
        raise NotImplementedError

    def meet(self, connection: Any) -> None:
        """Take note of a connection that may have been lent before the hooks."""

    def unheld(self) -> Iterable[Unheld]:
        """The connections that are out and have no hold."""
        return ()

    def request_failed(
        self, checkout: Checkout, error: BaseException, timed_out: bool
    ) -> None:
        """Count a request that the pool refused or the application cancelled."""
        try:
            self.ledger.waited(checkout, monotonic())
            self._count_failure(checkout, error, timed_out)
        except Exception as failure:  # noqa: BLE001 - the application gets its own error
            self.guard.failed(failure)

    def _count_failure(
        self, checkout: Checkout, error: BaseException, timed_out: bool
    ) -> None:
        now = monotonic()
        if timed_out:
            self.ledger.timed_out(now - checkout.requested_at)
            self.explain_to(error)
            return
        failed = Failed(now, checkout.stack, type(error).__name__)
        self.ledger.slots.failed.append(failed)
        opened = connections_opened(error, checkout.requested_at, now)
        self.ledger.slots.stranded.extend((failed, facts) for facts in opened)
        if not isinstance(error, Exception):
            self.ledger.given_up(now - checkout.requested_at)
        else:
            self._report_failure(self.ledger, error)

    def explain_to(self, error: BaseException) -> None:
        """Add a note to a timeout error that lists the holders of the connections."""
        error.add_note(self._explain(self.ledger.id))

    def recover(
        self,
        error: BaseException,
        checkout: Checkout | None,
        hold_key: int = 0,
        held_before: int | None = None,
    ) -> bool:
        """Restore the ledger after an exception in a hook.

        Returns whether the application gets its connection in spite of it.

        ``hold_key`` is the key of the hold. ``held_before`` is the number of holds that
        the holder had before; None if the hold had not begun.
        """
        if checkout is not None:
            self.ledger.waited(checkout, monotonic())
            if held_before is not None:
                checkout.holder.hold_count = held_before + (
                    self.ledger.holds.get(hold_key) is checkout
                )
        return self.suppress_failure(error)

    def suppress_failure(self, error: BaseException) -> bool:
        """Log a failure of poolwatch; False if the application must get the error."""
        if not isinstance(error, Exception):
            return False
        self.guard.failed(error)
        return True

    def uncount_hold(self, hold: Checkout | None) -> None:
        """Correct the count of the holder after its connection was returned."""
        if hold is not None:
            hold.holder.hold_count -= 1
