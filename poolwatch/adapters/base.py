"""What an adapter derives from: the pools of one library that are instrumented."""

from __future__ import annotations

import gc
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from sys import _getframe as frame_at
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, WeakValueDictionary

from poolwatch.adapters.patching import Patches, with_parameters_of
from poolwatch.ledger.checkout import Gauges
from poolwatch.ledger.ledger import Ledger
from poolwatch.ledger.settings import Settings
from poolwatch.runtime.guard import Guard, log
from poolwatch.stacks.holder import Holder, PerThread

if TYPE_CHECKING:
    from poolwatch.adapters.cut_short import Hooks
    from poolwatch.ledger.pool import PoolLedger
    from poolwatch.stacks.capture import CallSites

_FOR_EVER = 1e9
"""Seconds. ``long_after=math.inf`` is fine, but JSON has no word for it."""


class AdapterContext:
    """What the agent gives to each adapter: where to record, and whom to call."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        sites: Callable[[], CallSites],
        per_thread: PerThread,
        meet_thread: Callable[[], Holder],
        explain: Callable[[str], str],
        look_soon: Callable[[str], None],
        refused: Callable[[PoolLedger, BaseException], None],
    ) -> None:
        self.ledger = ledger
        self._sites = sites
        self.per_thread = per_thread
        self.meet_thread = meet_thread
        """Makes the record of the calling thread, at its first checkout."""
        self.explain = explain
        """Describes the holders of a pool's connections, by the id of the pool."""
        self.look_soon = look_soon
        """Called with a pool's id when a request for a connection may have to wait."""
        self.refused = refused
        """Called with the ledger of the pool and the exception of a failed checkout,
        unless that was a timeout."""

    @property
    def sites(self) -> CallSites:
        """The store of captured stacks."""
        return self._sites()


class LibraryPools(ABC):
    """The instrumented pools of one library. They are not kept alive.

    A target is the object that the user gives; usually it is the pool itself.
    """

    accepted: tuple[type, ...]
    """Classes of targets."""
    made: tuple[type, ...]
    """Classes whose ``__init__`` is replaced if every pool is instrumented. Their
    subclasses must call it."""

    def __init__(self, context: AdapterContext) -> None:
        self._context = context
        self._named: set[str] = set()
        """Ids of the pools that were instrumented one by one."""
        self._hooks: WeakValueDictionary[str, Hooks] = WeakValueDictionary()
        """By the id of the pool. Weak references: hooks that were alive here when their
        pool is collected would survive until a full collection.
        """
        self._seen: WeakSet[Any] = WeakSet()
        """Pools that were instrumented before: they are not new."""
        self._counting = Guard("counting the pools that are made")
        self._lock = threading.RLock()  # a finalizer may come in between
        self._every: Settings | None = None
        self._patches = Patches()
        """The methods of the library's classes that are replaced by ours."""

    # -- what differs by library -------------------------------------------------------

    @abstractmethod
    def make_hooks(self, target: Any, book: PoolLedger) -> Hooks:
        """Hook a pool, and complete its ledger, but for the settings."""

    @abstractmethod
    def name_of(self, target: Any) -> str:
        """The default name: often the database."""

    @abstractmethod
    def url_of(self, target: Any) -> str | None:
        """The URL of its database, with the password hidden."""

    @abstractmethod
    def server_connect(self, target: Any) -> Callable[[], Any] | None:
        """The call that opens one synchronous connection like the pool's, but not
        through the pool; None if there is no PostgreSQL.

        The call keeps nothing alive and sets a connect timeout. It raises
        ServerViewError when there is no way to connect.
        """

    def unwrapped(self, target: Any) -> Any:
        """The target itself, without the objects it is wrapped in."""
        return target

    def pool_of(self, target: Any) -> Any:
        """The pool of a target."""
        return target

    def arguments_of(self, target: Any) -> Any:
        """The arguments of its connections; they are only compared."""
        return None

    def is_new(self, target: Any) -> bool:
        """Whether the pool was made just now, as far as can be told, and keeps
        connections. Then the running code is the origin of the pool.
        """
        if target in self._seen:
            return False
        self._seen.add(target)
        return True

    def is_ready(self, target: Any) -> bool:
        """Whether its ``__init__`` is complete enough to hook it."""
        return True

    def follow(self, hooks: Any) -> None:
        """Have _gone() called when the pool of these hooks is collected."""
        hooks.on_gone = self._gone

    def met_again(self, hooks: Any, target: Any) -> None:  # noqa: B027 - if at all
        """An instrumented pool was given to instrument() again."""

    def apply(self, hooks: Any, settings: Settings) -> None:
        """Apply the settings that concern the hooks."""
        hooks.prove_dropped = settings.prove_dropped

    # -- called by the registry --------------------------------------------------------

    def accepts(self, target: Any) -> bool:
        """Whether ``target`` is a pool of this library."""
        return isinstance(self.unwrapped(target), self.accepted)

    def watch(self, target: Any, settings: Settings) -> str:
        """Instrument a pool, or change its settings; returns the id of the pool."""
        return self._watch(self.unwrapped(target), settings, by_itself=True)

    def _watch(
        self,
        target: Any,
        settings: Settings,
        *,
        by_itself: bool,
        exists: bool = False,
    ) -> str:
        with self._lock:
            hooks = self._of(self.pool_of(target))
            if hooks is None:
                hooks = self._hook(target, settings)
                if not exists:
                    self._note_origin(target, hooks.book)
            else:
                self.met_again(hooks, target)
                # the settings of one pool win over those of all pools
                if by_itself or hooks.book.id not in self._named:
                    self._change(hooks, target, settings)
            if by_itself:
                self._named.add(hooks.book.id)
        return hooks.book.id

    def _change(self, hooks: Hooks, target: Any, settings: Settings) -> None:
        book = hooks.book
        book.name = self._name(target, settings)
        book.long_after = min(settings.long_after, _FOR_EVER)
        book.server_view = settings.server_view
        self.apply(hooks, settings)

    def _name(self, target: Any, settings: Settings) -> str:
        # the name may be any object: a logging name is not checked, a URL may be a Mock
        return str(settings.name or self.name_of(target))

    def id_of(self, target: Any) -> str | None:
        """The id of an instrumented pool; None if it is not."""
        hooks = self._of(self.pool_of(self.unwrapped(target)))
        return None if hooks is None else hooks.book.id

    def forget(self, target: Any) -> None:
        """Take the hooks off one pool, if it has any."""
        with self._lock:
            hooks = self._of(self.pool_of(self.unwrapped(target)))
            if hooks is not None:
                self._unhook(hooks.book.id)

    def watch_every(self, settings: Settings, *, existing: bool = True) -> None:
        """Instrument all new pools, and the existing ones, which takes a search.

        Pools that were instrumented one by one keep their settings.
        """
        with self._lock:
            self._every = settings
            for kind in self.made:
                self._patches.put(kind, "__init__", self._with_watching_init)
        for each in gc.get_objects() if existing else ():
            # by type(): isinstance() would run the code of a proxy object
            if issubclass(type(each), self.made):
                self.watch_one_of_all(each, exists=True)

    def forget_every(self) -> None:
        """Take off all hooks."""
        with self._lock:
            self._every = None
            self._patches.undo()
            for pool_id in list(self._hooks):
                self._unhook(pool_id)

    def forget_parent(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._lock = threading.RLock()

    # -- new pools -----------------------------------------------------------------

    def _with_watching_init(self, below: Any) -> Any:
        return with_parameters_of(below, self._watching_init(below))

    def _watching_init(self, below: Any) -> Callable[..., None]:
        def watched_init(pool: Any, *args: Any, **kwargs: Any) -> None:
            below(pool, *args, **kwargs)
            self.watch_one_of_all(pool)

        return watched_init

    def watch_one_of_all(self, target: Any, *, exists: bool = False) -> None:
        """Instrument a pool that was not given to instrument().

        A pool that ``exists`` already was not made by the running code.
        """
        try:
            # a pool that another thread is making comes here again from its __init__
            if self._every is None or not self.is_ready(target):
                return
            self._watch(target, self._every, by_itself=False, exists=exists)
        except Exception:  # noqa: BLE001 - whatever it is, the app gets its pool
            log().exception("poolwatch could not instrument a pool")

    # -- hooks -------------------------------------------------------------------------

    def _of(self, pool: Any) -> Hooks | None:
        return next((h for h in list(self._hooks.values()) if h.has(pool)), None)

    def _hook(self, target: Any, settings: Settings) -> Hooks:
        book = self._context.ledger.open(
            name=self._name(target, settings),
            kind=type(self.pool_of(target)).__name__,
            url=self.url_of(target),
            long_after=min(settings.long_after, _FOR_EVER),
            gauges=Gauges,
        )
        book.server_connect = self.server_connect(target)
        book.server_view = settings.server_view
        hooks = self.make_hooks(target, book)
        self._hooks[book.id] = hooks
        self.apply(hooks, settings)
        self.follow(hooks)
        return hooks

    def _note_origin(self, target: Any, book: PoolLedger) -> None:
        """Count a new pool at the place that makes it: where its ``__init__`` is called
        or, if the user instruments each one himself, where he does that.
        """
        if self._counting.tripped:
            return
        try:
            if self.is_new(target):
                from poolwatch.ledger.pool_origins import fingerprint
                from poolwatch.stacks.capture import pairs_of, resolve

                codes = pairs_of(frame_at(1))
                ledger = self._context.ledger
                ledger.origins.note(
                    resolve(codes),
                    book.url,
                    (book.name, fingerprint(self.arguments_of(target))),
                    book.id,
                    codes=codes,
                    use=ledger.use_of,
                )
        except Exception as error:  # noqa: BLE001 - whatever it is, the app gets its pool
            self._counting.failed(error)

    def _gone(self, pool_id: str) -> None:
        """The pool was collected: forget it. Runs in a finalizer: no lock."""
        self._hooks.pop(pool_id, None)
        self._named.discard(pool_id)
        self._context.ledger.close(pool_id)

    def _unhook(self, pool_id: str) -> None:
        hooks = self._hooks.pop(pool_id, None)
        self._named.discard(pool_id)
        if hooks is None:  # it was collected just now
            return
        hooks.remove()
        self._context.ledger.remove(hooks.book)
