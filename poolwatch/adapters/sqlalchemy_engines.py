"""Which engines and pools of SQLAlchemy are instrumented, and how to reach them all."""

from __future__ import annotations

import gc
import threading
from typing import Any

from sqlalchemy.engine import Engine
from sqlalchemy.engine.base import OptionEngineMixin
from sqlalchemy.pool import Pool

from poolwatch.adapters.context import AdapterContext
from poolwatch.adapters.sqlalchemy import PoolHooks, pool_name, pool_url
from poolwatch.adapters.sqlalchemy_connect import server_connect
from poolwatch.checkout import Gauges
from poolwatch.guard import log
from poolwatch.settings import Settings

_FOR_EVER = 1e9
"""Seconds. ``long_after=math.inf`` is fine, but JSON has no word for it."""


def accepts(target: Any) -> bool:
    """Whether ``target`` is an engine or a pool."""
    return isinstance(_unwrapped(target), Engine | Pool)


def _unwrapped(target: Any) -> Any:
    """The engine behind an AsyncEngine or an engine with options; else the target."""
    target = getattr(target, "sync_engine", target)
    while isinstance(target, Engine) and hasattr(target, "_proxied"):
        target = target._proxied  # options may be set upon options
    return target


class Engines:
    """The instrumented pools of this process. They are not kept alive."""

    def __init__(self, context: AdapterContext) -> None:
        self._context = context
        self._named: set[str] = set()
        """Ids of pools that were instrumented by themselves."""
        self._hooks: dict[str, PoolHooks] = {}
        self._lock = threading.RLock()  # a finalizer may come in between
        self._every: Settings | None = None
        self._original_init: Any = None

    def watch(self, target: Any, settings: Settings) -> str:
        """Instrument a pool, or change its settings; returns the id of the pool."""
        return self._watch(_unwrapped(target), settings, by_itself=True)

    def _watch(
        self, target: Engine | Pool, settings: Settings, *, by_itself: bool
    ) -> str:
        pool = target.pool if isinstance(target, Engine) else target
        with self._lock:
            hooks = self._of(pool)
            if hooks is None:
                hooks = self._hook(target, settings)
            elif isinstance(target, Engine):
                hooks.note_statements(target)
            book = hooks.book
            if by_itself:
                self._named.add(book.id)
            elif book.id in self._named:  # its own settings are the closer ones
                return book.id
        book.name = str(settings.name or pool_name(target))
        book.long_after = min(settings.long_after, _FOR_EVER)
        book.server_view = settings.server_view
        return book.id

    def id_of(self, target: Any) -> str | None:
        """The id of an instrumented pool; None if it is not."""
        target = _unwrapped(target)
        hooks = self._of(target.pool if isinstance(target, Engine) else target)
        return None if hooks is None else hooks.book.id

    def forget(self, target: Any) -> None:
        """Take the hooks off one pool, if it has any."""
        target = _unwrapped(target)
        pool = target.pool if isinstance(target, Engine) else target
        with self._lock:
            hooks = self._of(pool)
            if hooks is not None:
                self._unhook(hooks.book.id)

    def watch_every(self, settings: Settings) -> None:
        """Instrument all engines there are, and those to come.

        Engines that were instrumented by themselves keep their settings.
        """
        with self._lock:
            self._every = settings
            if self._original_init is None:
                self._original_init = Engine.__init__
                Engine.__init__ = self._watching_init(Engine.__init__)  # type: ignore[method-assign]
        for each in gc.get_objects():
            # by type(): what isinstance() asks of a proxy object runs foreign code
            kind = type(each)
            if issubclass(kind, Engine) and not issubclass(kind, OptionEngineMixin):
                self._watch_one_of_all(each)

    def forget_every(self) -> None:
        """Take off all hooks."""
        with self._lock:
            self._every = None
            if self._original_init is not None:
                Engine.__init__ = self._original_init  # type: ignore[method-assign]
                self._original_init = None
            for pool_id in list(self._hooks):
                self._unhook(pool_id)

    @property
    def watches_every(self) -> bool:
        """Whether engines to come will be instrumented."""
        return self._every is not None

    def forget_parent(self) -> None:
        """In a forked child: another thread of the parent may have held the lock."""
        self._lock = threading.RLock()

    def _watching_init(self, original: Any) -> Any:
        def watched_init(engine: Engine, *args: Any, **kwargs: Any) -> None:
            original(engine, *args, **kwargs)
            self._watch_one_of_all(engine)

        return watched_init

    def _watch_one_of_all(self, engine: Engine) -> None:
        try:
            # one that another thread is making has no pool yet: it comes by __init__
            if self._every is not None and "pool" in engine.__dict__:
                self._watch(engine, self._every, by_itself=False)
        except Exception:  # noqa: BLE001 - whatever it is, the app gets its engine
            log.exception("poolwatch could not instrument an engine")

    def _of(self, pool: Pool) -> PoolHooks | None:
        return next((h for h in list(self._hooks.values()) if h.has(pool)), None)

    def _hook(self, target: Engine | Pool, settings: Settings) -> PoolHooks:
        pool = target.pool if isinstance(target, Engine) else target
        book = self._context.ledger.open(
            name=settings.name or pool_name(target),
            kind=type(pool).__name__,
            url=pool_url(target),
            long_after=min(settings.long_after, _FOR_EVER),
            gauges=Gauges,
        )
        book.server_connect = server_connect(target)
        hooks = PoolHooks(
            target,
            book,
            self._context,
        )
        hooks.on_gone = self._gone
        self._hooks[book.id] = hooks
        return hooks

    def _gone(self, pool_id: str) -> None:
        """The pool was collected: forget it. Runs in a finalizer: no lock."""
        hooks = self._hooks.pop(pool_id, None)
        self._named.discard(pool_id)
        if hooks is not None:
            self._context.ledger.close(hooks.book)

    def _unhook(self, pool_id: str) -> None:
        hooks = self._hooks.pop(pool_id, None)
        self._named.discard(pool_id)
        if hooks is None:  # it was collected just now
            return
        hooks.remove()
        self._context.ledger.close(hooks.book)
