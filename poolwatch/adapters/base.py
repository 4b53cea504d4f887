"""Base class of the adapters: the instrumented pools of one library."""

from __future__ import annotations

import gc
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from sys import _getframe as frame_at
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

from poolwatch.adapters.adoption import adopt
from poolwatch.adapters.patching import Patches, with_parameters_of
from poolwatch.ledger.checkout import Gauges
from poolwatch.ledger.ledger import Ledger
from poolwatch.ledger.settings import Settings
from poolwatch.runtime.guard import Guard, log
from poolwatch.runtime.weak_values import WeakValues
from poolwatch.stacks.holder import Holder, PerThread

if TYPE_CHECKING:
    from types import CodeType

    from poolwatch.adapters.recovery import Hooks
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.model import Frame
    from poolwatch.stacks.capture import CallSites

_MAX_CALLERS = 16
"""Frames, ours included, in which the line that made a pool is searched for."""
_FOR_EVER = 1e9
"""Seconds. ``long_after=math.inf`` is allowed, but JSON has no infinity."""


class AdapterContext:
    """The services that the agent gives to each adapter."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        sites: Callable[[], CallSites],
        per_thread: PerThread,
        register_thread: Callable[[], Holder],
        explain: Callable[[str], str],
        check_soon: Callable[[str], None],
        report_failure: Callable[[PoolLedger, BaseException], None],
    ) -> None:
        self.ledger = ledger
        self._sites = sites
        self.per_thread = per_thread
        self.register_thread = register_thread
        """Makes the Holder of the calling thread, at its first checkout."""
        self.explain = explain
        """Describes the holders of a pool's connections; takes the id of the pool."""
        self.check_soon = check_soon
        """Schedules a check of a pool, by its id, when a request may have to wait."""
        self.report_failure = report_failure
        """Called with the ledger of the pool and the exception of a failed checkout,
        except for timeouts.
        """

    @property
    def sites(self) -> CallSites:
        """The store of captured stacks."""
        return self._sites()


class LibraryPools(ABC):
    """The instrumented pools of one library, by weak reference.

    A target is the object that the user passes to ``instrument()``; usually it is the
    pool itself.
    """

    target_classes: tuple[type, ...]
    """Classes of targets."""
    patched_classes: tuple[type, ...]
    """Classes whose ``__init__`` is wrapped while all pools are instrumented. Their
    subclasses must call it.
    """

    def __init__(self, context: AdapterContext) -> None:
        self._context = context
        self._explicit: set[str] = set()
        """Ids of the pools that were passed to ``instrument()`` themselves."""
        self._hooks: WeakValues[str, Hooks] = WeakValues()
        """By the id of the pool. Weak references: if this dict kept the hooks alive
        when their pool is collected, they would survive until a full collection.
        """
        self._seen: WeakSet[Any] = WeakSet()
        """Pools that were instrumented before, so they are not new."""
        self._origin_guard = Guard("counting the pools that are made")
        self._lock = threading.RLock()  # a finalizer may run while it is held
        self._settings_for_all: Settings | None = None
        self._patches = Patches()
        """The wrapped methods of the library's classes."""

    lent_classes: tuple[type, ...] = ()
    """Classes of what is lent, if the pool itself does not know what is out."""
    request_codes: tuple[CodeType, ...] = ()
    """Codes of the methods that wait for a connection; the pool is their ``self``."""

    # -- what differs by library -------------------------------------------------------

    @abstractmethod
    def make_hooks(self, target: Any, ledger: PoolLedger) -> Hooks:
        """Hook a pool, and complete its ledger except for the settings."""

    @abstractmethod
    def name_of(self, target: Any) -> str:
        """The default name of the pool, usually its database."""

    @abstractmethod
    def url_of(self, target: Any) -> str | None:
        """The URL of the pool's database, with the password hidden."""

    @abstractmethod
    def server_connect(self, target: Any) -> Callable[[], Any] | None:
        """Return a function that opens one synchronous connection with the pool's
        parameters, outside the pool; None if the database is not PostgreSQL.

        The function keeps nothing alive and sets a connect timeout. It raises
        ServerViewError when it cannot connect in this way.
        """

    def unwrapped(self, target: Any) -> Any:
        """The target without its wrapper objects."""
        return target

    def is_wrapper(self, value: Any, target: Any) -> bool:
        """Whether ``value``, any object at all, is a wrapper of the target."""
        return False

    def pool_of(self, target: Any) -> Any:
        """The pool of a target."""
        return target

    def kind_of(self, target: Any) -> str:
        """The kind of the pool, in snapshots: the name of its class."""
        return type(self.pool_of(target)).__name__

    def can_comment(self, target: Any) -> bool:
        """Whether statements go through the target, so that they can carry comments."""
        return False

    def inner_pool(self, target: Any) -> Any:
        """A pool of another library that is instrumented in place of the target; None
        if the target itself is.
        """
        return None

    def arguments_of(self, target: Any) -> Any:
        """The connect arguments of the pool; they are only compared."""
        return None

    def is_new(self, target: Any) -> bool:
        """Whether the pool was probably created just now. Then the running code is the
        origin of the pool.
        """
        if target in self._seen:
            return False
        self._seen.add(target)
        return True

    def has_own_creator(self, target: Any) -> bool:
        """Whether a function of the application provides the connections."""
        return False

    def options_of(self, target: Any) -> Any:
        """Options that make two pools for one database different; only compared."""
        return None

    def keeps_connections(self, target: Any) -> bool:
        """Whether making such pools again and again costs connections."""
        return True

    def lender_of(self, connection: Any) -> Any:
        """The pool that has lent an instance of ``lent_classes``; None if none has."""
        return getattr(connection, "_pool", None)

    def is_ready(self, target: Any) -> bool:
        """Whether ``__init__`` has done enough for the pool to be hooked."""
        return True

    def track_collection(self, hooks: Any) -> None:
        """Call _on_pool_collected() when the pool of these hooks is collected."""
        hooks.on_collected = self._on_pool_collected

    def on_reinstrument(self, hooks: Any, target: Any) -> None:  # noqa: B027 - optional
        """Called when instrument() gets an already instrumented pool."""

    def apply(self, hooks: Any, settings: Settings) -> None:
        """Apply the settings that concern the hooks."""
        hooks.prove_dropped = settings.prove_dropped

    # -- called by the registry --------------------------------------------------------

    def accepts(self, target: Any) -> bool:
        """Whether ``target`` is a pool of this library."""
        return isinstance(self.unwrapped(target), self.target_classes)

    def watch(self, target: Any, settings: Settings) -> str:
        """Instrument a pool, or change its settings; returns the id of the pool."""
        return self._watch(self.unwrapped(target), settings, explicit=True)

    def _watch(
        self,
        target: Any,
        settings: Settings,
        *,
        explicit: bool,
        exists: bool = False,
    ) -> str:
        with self._lock:
            hooks = self._hooks_of(self.pool_of(target))
            if hooks is None:
                hooks = self._install_hooks(target, settings)
                if not exists:
                    self._record_origin(target, hooks.ledger, explicit=explicit)
            else:
                self.on_reinstrument(hooks, target)
                # the settings of one pool win over those of all pools
                if explicit or hooks.ledger.id not in self._explicit:
                    self._change_settings(hooks, target, settings)
            if explicit:
                self._explicit.add(hooks.ledger.id)
        return hooks.ledger.id

    def _change_settings(self, hooks: Hooks, target: Any, settings: Settings) -> None:
        ledger = hooks.ledger
        ledger.name = self._display_name(target, settings)
        ledger.long_after = min(settings.long_after, _FOR_EVER)
        ledger.server_view = settings.server_view
        ledger.setup.trace_waits = settings.trace_waits
        self.apply(hooks, settings)

    def _display_name(self, target: Any, settings: Settings) -> str:
        # the name may be any object: a logging name is not checked, a URL may be a Mock
        return str(settings.name or self.name_of(target))

    def id_of(self, target: Any) -> str | None:
        """The id of an instrumented pool; None if the pool is not instrumented."""
        hooks = self._hooks_of(self.pool_of(self.unwrapped(target)))
        return None if hooks is None else hooks.ledger.id

    def unwatch(self, target: Any) -> None:
        """Remove the hooks of one pool, if it has any."""
        with self._lock:
            hooks = self._hooks_of(self.pool_of(self.unwrapped(target)))
            if hooks is not None:
                self._remove_hooks(hooks.ledger.id)

    def watch_all(self, settings: Settings, *, existing: bool = True) -> None:
        """Instrument all new pools, and the existing ones, found by a search of the
        heap.

        Pools that were instrumented one by one keep their settings.
        """
        with self._lock:
            self._settings_for_all = settings
            for cls in self.patched_classes:
                self._patches.replace(cls, "__init__", self._init_wrapper)
        for each in gc.get_objects() if existing else ():
            # by type(): isinstance() would run the code of a proxy object
            if issubclass(type(each), self.patched_classes):
                self.watch_discovered(each, exists=True)

    def adopt(self) -> None:
        """Make holds of the connections that are out without one. Call it again: a
        connection is adopted at the second look.
        """
        adopt(self, list(self._hooks.values()), self._context.sites)

    def unwatch_all(self) -> None:
        """Remove the hooks of all pools."""
        with self._lock:
            self._settings_for_all = None
            self._patches.undo()
            for pool_id in list(self._hooks):
                self._remove_hooks(pool_id)

    def forget_parent(self) -> None:
        """In a forked child, replace the lock: a thread of the parent may hold it."""
        self._lock = threading.RLock()

    # -- new pools -----------------------------------------------------------------

    def _init_wrapper(self, original: Any) -> Any:
        return with_parameters_of(original, self._instrumenting_init(original))

    def _instrumenting_init(self, original: Any) -> Callable[..., None]:
        def instrumenting_init(pool: Any, *args: Any, **kwargs: Any) -> None:
            original(pool, *args, **kwargs)
            self.watch_discovered(pool)

        return instrumenting_init

    def watch_discovered(self, target: Any, *, exists: bool = False) -> None:
        """Instrument a pool that was not passed to instrument().

        ``exists``: the pool is not being created by the running code.
        """
        try:
            # a pool under construction in another thread comes again in its __init__
            if self._settings_for_all is None or not self.is_ready(target):
                return
            self._watch(target, self._settings_for_all, explicit=False, exists=exists)
        except Exception:  # noqa: BLE001 - the application must get its pool
            log().exception("poolwatch could not instrument a pool")

    # -- hooks -------------------------------------------------------------------------

    def _hooks_of(self, pool: Any) -> Hooks | None:
        return next((h for h in list(self._hooks.values()) if h.has(pool)), None)

    def _install_hooks(self, target: Any, settings: Settings) -> Hooks:
        ledger = self._context.ledger.open(
            name=self._display_name(target, settings),
            kind=self.kind_of(target),
            url=self.url_of(target),
            long_after=min(settings.long_after, _FOR_EVER),
            gauges=Gauges,
        )
        ledger.server_connect = self.server_connect(target)
        ledger.server_view = settings.server_view
        ledger.setup.trace_waits = settings.trace_waits
        ledger.extends = self._extended_class(target, ledger.kind)
        hooks = self.make_hooks(target, ledger)
        self._hooks[ledger.id] = hooks
        self.apply(hooks, settings)
        ledger.slots.compare(monotonic(), ledger.gauges())
        self.track_collection(hooks)
        return hooks

    def _extended_class(self, target: Any, kind: str) -> str | None:
        """Name of the library's pool class that the target's class extends, if any."""
        from poolwatch.runtime.libraries import libraries

        known = set().union(*(each.options for each in libraries()))
        if kind in known:
            return None
        for each in type(self.pool_of(target)).__mro__:
            package = each.__module__.partition(".")[0]
            for name in (each.__name__, f"{package}.{each.__name__}"):
                if name in known:
                    return name
        return None

    def _record_origin(
        self, target: Any, ledger: PoolLedger, *, explicit: bool
    ) -> None:
        """Record how a new pool is set up, and count it at its origin: the call of its
        ``__init__`` or, if the user instruments each pool, the call of instrument().
        """
        if self._origin_guard.tripped:
            return
        try:
            if not self.is_new(target):
                return
            from poolwatch.ledger.pool_origins import fingerprint, made_at
            from poolwatch.stacks.capture import pairs_of, resolve

            codes = pairs_of(frame_at(1))
            stack = resolve(codes)
            arguments = fingerprint(self.arguments_of(target))
            setup, process_ledger = ledger.setup, self._context.ledger
            setup.made_at = made_at(stack, instrumented=explicit)
            if explicit and setup.made_at is None:
                setup.made_at = self._assigned_at(target, frame_at(1))
            setup.purpose = ledger.name, arguments, self._options_of(target, ledger)
            setup.own_creator = self.has_own_creator(target)
            if self.keeps_connections(target):
                process_ledger.origins.note(
                    stack,
                    ledger.url,
                    (ledger.name, arguments),
                    ledger.id,
                    codes=codes,
                    use_level=process_ledger.use_level_of,
                )
        except Exception as error:  # noqa: BLE001 - the application must get its pool
            self._origin_guard.failed(error)

    def _assigned_at(self, target: Any, frame: Any) -> Frame | None:
        """The line that made the target, if the code that instruments it, or a caller,
        has assigned it to a variable there.
        """
        from poolwatch.diagnosis.references.frames import local_variables
        from poolwatch.runtime.libraries import makers
        from poolwatch.stacks.assignments import assigned_at
        from poolwatch.stacks.code_owner import is_ours
        from poolwatch.stacks.current import with_callers

        for each in with_callers(frame, _MAX_CALLERS):
            ours = is_ours(each.f_code.co_filename)
            variables = ([], []) if ours else local_variables(each)
            for name, value in zip(*variables, strict=True):
                if value is target or self.is_wrapper(value, target):
                    found = assigned_at(each.f_code, name, makers())
                    if found is not None:
                        return found
        return None

    def _options_of(self, target: Any, ledger: PoolLedger) -> int:
        from poolwatch.ledger.pool_origins import fingerprint

        now = ledger.gauges()
        size = [ledger.kind, now.size, now.max_overflow, now.timeout_s]
        return fingerprint([*size, self.options_of(target)])

    def _on_pool_collected(self, pool_id: str) -> None:
        """Drop the records of a collected pool. Runs in a finalizer: takes no lock."""
        self._hooks.pop(pool_id, None)
        self._explicit.discard(pool_id)
        self._context.ledger.close(pool_id)

    def _remove_hooks(self, pool_id: str) -> None:
        hooks = self._hooks.pop(pool_id, None)
        self._explicit.discard(pool_id)
        if hooks is None:  # it was collected meanwhile
            return
        hooks.remove()
        self._context.ledger.remove(hooks.ledger)
