"""The hooks of one pool of a driver: the part that all drivers share.

A checkout passes up to three steps: ``begin_wait`` records a request as a wait,
``begin_hold`` turns it into a hold, and ``request_failed`` counts a request that ended
without a connection. The end of a hold differs by library: see the library's folder.

A driver's pool is one object for its whole life: it is hooked once, and its hooks are
dropped when it is collected.
"""

from __future__ import annotations

import sys
from asyncio import current_task
from asyncio.events import _get_running_loop as running_loop
from collections.abc import Callable, Collection
from contextlib import suppress
from inspect import iscoroutinefunction
from operator import attrgetter
from sys import _getframe as frame_at
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import finalize, ref

from poolwatch.adapters.connection_facts import facts_of
from poolwatch.adapters.recovery import Hooks, raised_by
from poolwatch.ledger.checkout import Checkout, ConnectionFacts, Gauges
from poolwatch.ledger.labels import current_context
from poolwatch.ledger.pool import PoolLedger
from poolwatch.runtime.guard import Guard
from poolwatch.stacks.holder import TaskRef

if TYPE_CHECKING:
    from poolwatch.adapters.base import AdapterContext
    from poolwatch.adapters.patching import Method, Patches


class DriverHooks(Hooks):
    """Installs and removes the hooks of one pool."""

    capacity: Callable[[Any], int | None] = attrgetter("maxconn")
    """Reads the maximum number of connections of a pool; 0 or None if unlimited."""
    wrapper_file: str | None = None
    """File of a wrapper around the public method, if the hooked method is an internal
    one that the public method calls. Both frames are left out of the recorded stack.
    """

    def __init__(
        self, pool: Any, ledger: PoolLedger, context: AdapterContext, patches: Patches
    ) -> None:
        self.ledger = ledger
        # tables of the ledger, as attributes for the hot path
        self.holds, self.waits, self.facts = (
            ledger.holds,
            ledger.waits,
            ledger.connections,
        )
        self._patches = patches
        self._object_id = id(pool)
        self.guard = Guard(f"pool {ledger.name!r}")
        self.on_collected: Callable[[str], None] = lambda _: None
        """Called with the id of the ledger once the pool was collected."""
        self._sites = context.sites
        self._per_thread = context.per_thread
        self._register_thread = context.register_thread
        self._explain = context.explain
        self._check_soon = context.check_soon
        self._report_failure = context.report_failure
        self.out_before: set[int] | None = None
        """Keys of connections checked out before the pool was hooked, if it knows them.
        """
        self._pool = ref(pool)
        self._finalizer = finalize(pool, self._pool_collected)
        self._finalizer.atexit = False
        self.begin_wait = self._make_begin_wait()
        self.begin_hold = self._make_begin_hold()
        ledger.gauges = self.gauges
        ledger.switched_off = lambda: self.guard.tripped

    @property
    def pool(self) -> Any:
        """The pool; None once it was collected."""
        return self._pool()

    def has(self, pool: Any) -> bool:
        """Whether these hooks are on ``pool``."""
        return self._pool() is pool

    def remove(self) -> None:
        """Remove all hooks. Calls in progress finish unrecorded."""
        self.guard.tripped = True
        self._finalizer.detach()
        self._patches.unhook(self._object_id)
        self._patches.restore_unused()

    def gauges(self) -> Gauges:
        """Read the current figures of the pool; empty once it was collected."""
        return Gauges()

    def out_now(self, out: set[int]) -> set[int]:
        """What of ``out`` has no hold and was not out from the beginning.

        ``out`` are the keys of all connections that the pool counts as checked out.
        """
        unheld = out.difference(self.holds.copy())
        if self.out_before is None:
            self.out_before = set(unheld)
        self.out_before &= unheld
        return unheld - self.out_before

    def left_behind(self, unheld: Collection[int]) -> set[int]:
        """Which of the connections without a hold a failed request has left behind.

        ``unheld``: the keys of ``facts``.
        """
        facts = self.facts.copy()
        here = {each.session for key, each in facts.items() if key not in unheld}
        sessions = self.ledger.slots.left_behind(monotonic(), here)
        return {
            key for key in unheld if key in facts and facts[key].session in sessions
        }

    def _pool_collected(self) -> None:
        self._patches.unhook(self._object_id)
        self.on_collected(self.ledger.id)

    # -- what differs by library -------------------------------------------------------

    def identify(
        self, checkout: Checkout, connection: Any, args: Any, kwargs: Any
    ) -> int | None:
        """Fill in ``facts`` and ``proxy`` of a checkout.

        Returns the key of its hold; None if the application got a connection that was
        already checked out under the same key of its own, so no new hold begins.
        """
        raise NotImplementedError

    def is_out(self, pool: Any, args: Any, kwargs: Any) -> bool:
        """Whether the application asks for a connection that is already checked out."""
        return False

    def is_timeout(self, error: BaseException, checkout: Checkout, args: Any) -> bool:
        """Whether the error means that all connections of the pool are checked out."""
        raise NotImplementedError

    def give_back(
        self, pool: Any, connection: Any, checkout: Checkout, args: Any, kwargs: Any
    ) -> Any:
        """Return a connection that does not reach the application; may be awaitable."""
        return pool.putconn(connection)

    # -- requests and holds ------------------------------------------------------------

    def _make_begin_wait(self) -> Callable[..., tuple[Checkout | None, int]]:  # noqa: C901 - written out
        """Make ``begin_wait``. It is on the hot path: all it needs is a closure local.

        ``begin_wait`` returns the checkout and its key in the table of waits; None if
        nothing is recorded.
        """
        ledger, guard = self.ledger, self.guard
        holds, waits, slots = ledger.holds, ledger.waits, ledger.slots
        per_thread, capture = self._per_thread, self._sites.capture
        get_context, capacity, wrapper_file = (
            current_context.get,
            self.capacity,
            self.wrapper_file,
        )

        def begin_wait(
            pool: Any, args: Any, kwargs: Any
        ) -> tuple[Checkout | None, int]:
            if guard.tripped:
                return None, 0
            checkout, key = None, 0
            try:
                holder = per_thread.holder or self._register_thread()
                frame: Any = frame_at(1).f_back  # None at the bottom of a greenlet
                if wrapper_file is not None:
                    frame = frame.f_back
                    if frame is not None and frame.f_code.co_filename == wrapper_file:
                        frame = frame.f_back
                stack, loop = capture(frame), running_loop()
                running = None if loop is None else current_task(loop)
                task = None if running is None else TaskRef(running)
                checkout = Checkout(stack, holder, get_context(), task, monotonic())
                key = id(checkout)
                waits[key] = checkout
                most = capacity(pool) or sys.maxsize
                scarce = holder.hold_count or len(holds) + slots.lost >= most
                if scarce and not self.is_out(pool, args, kwargs):
                    self._record_scarcity(checkout, most)
                return checkout, key  # noqa: TRY300 - an exception here would leave the wait
            except BaseException as error:
                if key in waits:  # no call: the stack may be full
                    del waits[key]
                if not self.recover(error, checkout):
                    raise
            return None, 0

        return begin_wait

    def _make_begin_hold(self) -> Callable[..., None]:
        """Make ``begin_hold``, which records that the pool lent a connection."""
        ledger, guard, identify = self.ledger, self.guard, self.identify
        holds, blamed, observers = ledger.holds, ledger.blamed, ledger.observers

        def begin_hold(checkout: Any, connection: Any, args: Any, kwargs: Any) -> None:
            key: Any = 0
            held_before = None
            try:
                if not guard.tripped:  # uninstrument() may have been called meanwhile
                    now = checkout.checked_out_at = monotonic()
                    if blamed:
                        ledger.waited(checkout, now)
                    key = identify(checkout, connection, args, kwargs)
                    if key is not None:
                        holder = checkout.holder
                        held_before = holder.hold_count
                        holds[key] = checkout
                        holder.hold_count = held_before + 1
                        notify = observers.checked_out
                        if notify is not None:
                            notify(ledger, checkout)
            except BaseException as error:
                if not self.recover(error, checkout, key, held_before):
                    raise

        return begin_hold

    def recover_request(
        self,
        error: BaseException,
        checkout: Checkout | None,
        from_library: bool,
        args: Any,
    ) -> bool:
        """Restore the ledger after an exception during a request.

        Returns whether the application gets a connection in spite of it. False if the
        library itself raised it: such a failure is counted.
        """
        if not from_library:
            return self.recover(error, checkout)
        if checkout is not None and not self.guard.tripped:
            self.request_failed(checkout, error, self.is_timeout(error, checkout, args))
        return False

    def _record_scarcity(self, checkout: Checkout, most: int) -> None:
        """Record a holder's second request, or a request to an exhausted pool."""
        ledger = self.ledger
        if checkout.holder.hold_count:
            ledger.requested_another(checkout)
        if len(ledger.holds) + ledger.slots.lost >= most:
            ledger.requested_beyond_capacity(checkout)
            self._check_soon(ledger.id)

    # -- connections -------------------------------------------------------------------

    def remember(
        self,
        connection: Any,
        key: int,
        opened: float,
        connect_s: float | None,
        *,
        age_unknown: bool = False,
    ) -> ConnectionFacts:
        """Record the facts of a connection, until it is closed.

        ``age_unknown``: the connection was opened before the pool was instrumented.
        """
        facts = facts_of(connection, opened, connect_s, age_unknown=age_unknown)
        self.ledger.connections[key] = facts
        return facts


# -- wrappers --------------------------------------------------------------------------


def request(original: Method, hooks_of: Callable[[int], Any]) -> Method:
    """Make the wrapper of the pool method that lends a connection."""
    return (_async_request if iscoroutinefunction(original) else _request)(
        original, hooks_of
    )


def _request(original: Method, hooks_of: Callable[[int], Any]) -> Method:  # noqa: C901 - written out
    def request(pool: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: C901 - as above
        hooks = hooks_of(id(pool))
        if hooks is None:
            return original(pool, *args, **kwargs)
        waits = hooks.waits
        checkout: Any = None
        key, connection, called = 0, None, False
        try:
            try:
                checkout, key = hooks.begin_wait(pool, args, kwargs)
                called = True
                connection = original(pool, *args, **kwargs)
            except BaseException:  # also if an interrupt follows
                if key in waits:
                    del waits[key]
                hooks.ledger.waited(checkout, monotonic())
                raise
            if checkout is not None:
                hooks.begin_hold(checkout, connection, args, kwargs)
                del waits[key]
            return connection  # noqa: TRY300 - an exception here would leave the hold
        except BaseException as error:
            if key in waits:  # no call: the stack may be full
                del waits[key]
            from_library = connection is None and raised_by(error, called, original)
            if not hooks.recover_request(error, checkout, from_library, args):
                if connection is not None:
                    with suppress(Exception):
                        hooks.give_back(pool, connection, checkout, args, kwargs)
                raise
        return original(pool, *args, **kwargs) if connection is None else connection

    return request


def _async_request(original: Method, hooks_of: Callable[[int], Any]) -> Method:  # noqa: C901 - as above
    """Like ``_request``, with ``await``."""

    async def request(pool: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: C901 - as above
        hooks = hooks_of(id(pool))
        if hooks is None:
            return await original(pool, *args, **kwargs)
        waits = hooks.waits
        checkout: Any = None
        key, connection, called = 0, None, False
        try:
            try:
                checkout, key = hooks.begin_wait(pool, args, kwargs)
                called = True
                connection = await original(pool, *args, **kwargs)
            except BaseException:
                if key in waits:
                    del waits[key]
                hooks.ledger.waited(checkout, monotonic())
                raise
            if checkout is not None:
                hooks.begin_hold(checkout, connection, args, kwargs)
                del waits[key]
            return connection  # noqa: TRY300
        except BaseException as error:
            if key in waits:
                del waits[key]
            from_library = connection is None and raised_by(error, called, original)
            if not hooks.recover_request(error, checkout, from_library, args):
                if connection is not None:
                    with suppress(Exception):
                        await hooks.give_back(pool, connection, checkout, args, kwargs)
                raise
        if connection is None:
            return await original(pool, *args, **kwargs)
        return connection

    return request
