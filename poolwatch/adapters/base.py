"""What an adapter derives from: the pools of one library that are instrumented."""

from __future__ import annotations

import gc
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
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
    from types import CodeType

    from poolwatch.adapters.cut_short import Hooks
    from poolwatch.ledger.pool import PoolBook
    from poolwatch.stacks.capture import CallSites

_FOR_EVER = 1e9
"""Seconds. ``long_after=math.inf`` is fine, but JSON has no word for it."""


class AdapterContext:
    """Handed to each adapter by the agent."""

    def __init__(
        self,
        *,
        ledger: Ledger,
        sites: Callable[[], CallSites],
        bottoms: Mapping[int, CodeType],
        per_thread: PerThread,
        meet_thread: Callable[[], Holder],
        explain: Callable[[str], str],
        look_soon: Callable[[str], None],
        refused: Callable[[PoolBook, BaseException], None],
    ) -> None:
        self.ledger = ledger
        self._sites = sites
        self.bottoms = bottoms
        """By id: code that no stack goes beyond."""
        self.per_thread = per_thread
        self.meet_thread = meet_thread
        """Makes the record of the thread that calls, at its first checkout."""
        self.explain = explain
        """Tells, for a pool's id, who holds its connections."""
        self.look_soon = look_soon
        """Called with a pool's id when a request for a connection may have to wait."""
        self.refused = refused
        """Called with the books and the exception of a failed checkout; no timeouts."""

    @property
    def sites(self) -> CallSites:
        """Where stacks are kept."""
        return self._sites()


class LibraryPools(ABC):
    """The instrumented pools of one library. They are not kept alive.

    A target is what the user gives; usually it is the pool itself.
    """

    accepted: tuple[type, ...]
    """What may be given."""
    made: tuple[type, ...]
    """What is met when it is made, if every pool is watched: classes with an
    ``__init__`` of their own, which their subclasses call."""

    def __init__(self, context: AdapterContext) -> None:
        self._context = context
        self._named: set[str] = set()
        """Ids of pools that were instrumented by themselves."""
        self._hooks: WeakValueDictionary[str, Hooks] = WeakValueDictionary()
        """By the id of the pool. The pools keep them: what is alive from here when
        they are collected would live on till a full collection.
        """
        self._seen: WeakSet[Any] = WeakSet()
        """Pools that were instrumented once: they are not new."""
        self._counting = Guard("counting the pools that are made")
        self._lock = threading.RLock()  # a finalizer may come in between
        self._every: Settings | None = None
        self._patches = Patches()
        """The methods of the library's classes that are replaced by ours."""

    # -- what each library says of its pools -------------------------------------------

    @abstractmethod
    def make_hooks(self, target: Any, book: PoolBook) -> Hooks:
        """Hook a pool, and let its book know whatever it shall know but settings."""

    @abstractmethod
    def name_of(self, target: Any) -> str:
        """A name when the user gave none: often the database."""

    @abstractmethod
    def url_of(self, target: Any) -> str | None:
        """Where its connections go, with the password hidden."""

    @abstractmethod
    def server_connect(self, target: Any) -> Callable[[], Any] | None:
        """The call that opens one synchronous connection like the pool's, outside of
        it; None if there is no PostgreSQL. It keeps nothing alive, sets a connect
        timeout, and raises ServerViewError when there is no such way.
        """

    def unwrapped(self, target: Any) -> Any:
        """What stands for the pool, behind whatever it is wrapped in."""
        return target

    def pool_of(self, target: Any) -> Any:
        """The pool of a target."""
        return target

    def arguments_of(self, target: Any) -> Any:
        """What it connects with beside what the URL tells; only compared."""
        return None

    def is_new(self, target: Any) -> bool:
        """Whether it was made just now, as far as can be told, and keeps connections.

        Then the code that is running is what makes pools of this kind.
        """
        if target in self._seen:
            return False
        self._seen.add(target)
        return True

    def is_ready(self, target: Any) -> bool:
        """Whether it is made so far that it can be hooked."""
        return True

    def is_bare(self, pool: Any) -> bool:
        """Whether it can be seen that it has no hooks, without a search."""
        return False

    def can_wait(self, target: Any) -> bool:
        """Whether it need not be hooked before it is used."""
        return False

    def follow(self, hooks: Any) -> None:
        """See to it that _gone() is called once the pool of these hooks is gone."""
        hooks.on_gone = self._gone

    def met_again(self, hooks: Any, target: Any) -> None:  # noqa: B027 - if at all
        """A pool that is hooked was given once more."""

    def apply(self, hooks: Any, settings: Settings) -> None:  # noqa: B027 - if at all
        """Let settings take effect that the book alone does not give effect to."""

    # -- the registry's side -----------------------------------------------------------

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
                    self._note_making(target, hooks.book)
            else:
                self.met_again(hooks, target)
                # its own settings are the closer ones
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
        # anything may be given for a logging name, a Mock for a pool's URL
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
        """Instrument all pools to come, and the existing ones, which takes a search.

        Pools that were instrumented by themselves keep their settings.
        """
        with self._lock:
            self._every = settings
            for kind in self.made:
                self._patches.put(kind, "__init__", self._with_watching_init)
        for each in gc.get_objects() if existing else ():
            # by type(): what isinstance() asks of a proxy object runs foreign code
            if issubclass(type(each), self.made):
                self.watch_one_of_all(each, exists=True)

    def admit_viewers(self) -> None:  # noqa: B027 - if at all
        """From now on somebody may look, and before nobody could."""

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

    # -- pools to come -----------------------------------------------------------------

    def _with_watching_init(self, below: Any) -> Any:
        return with_parameters_of(below, self._watching_init(below))

    def _watching_init(self, below: Any) -> Callable[..., None]:
        def watched_init(pool: Any, *args: Any, **kwargs: Any) -> None:
            below(pool, *args, **kwargs)
            self.watch_one_of_all(pool)

        return watched_init

    def watch_one_of_all(self, target: Any, *, exists: bool = False) -> None:
        """Instrument a pool that nobody has named; one that ``exists`` since before was
        not made by the code that is running.
        """
        try:
            # one that another thread is making is not ready: it comes by __init__
            if self._every is None or not self.is_ready(target):
                return
            if not self.can_wait(target):
                self._watch(target, self._every, by_itself=False, exists=exists)
        except Exception:  # noqa: BLE001 - whatever it is, the app gets its pool
            log().exception("poolwatch could not instrument a pool")

    # -- hooks -------------------------------------------------------------------------

    def _of(self, pool: Any) -> Hooks | None:
        if self.is_bare(pool):
            return None
        return next((h for h in list(self._hooks.values()) if h.has(pool)), None)

    def _hook(
        self,
        target: Any,
        settings: Settings,
        make: Callable[[Any, PoolBook], Hooks] | None = None,
    ) -> Hooks:
        book = self._context.ledger.open(
            name=self._name(target, settings),
            kind=type(self.pool_of(target)).__name__,
            url=self.url_of(target),
            long_after=min(settings.long_after, _FOR_EVER),
            gauges=Gauges,
        )
        book.server_connect = self.server_connect(target)
        book.server_view = settings.server_view
        hooks = (make or self.make_hooks)(target, book)
        self._hooks[book.id] = hooks
        self.apply(hooks, settings)
        self.follow(hooks)
        return hooks

    def _note_making(self, target: Any, book: PoolBook) -> None:
        """Count a new pool at the place that makes it: where its ``__init__`` is called
        or, if the user instruments each one himself, where he does that.

        Not in a run that nobody can look at: a suite may make one for each test.
        """
        if self._counting.tripped or not self._context.ledger.observers.watched:
            return
        try:
            if self.is_new(target):
                from poolwatch.ledger.pool_origins import fingerprint
                from poolwatch.stacks.capture import pairs_of, resolve

                codes = pairs_of(frame_at(1))
                ledger = self._context.ledger
                ledger.makings.note(
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
        self._context.ledger.take_away(hooks.book)
