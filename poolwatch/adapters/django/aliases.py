"""The database aliases of Django, each of which counts as a pool.

Its connections are per thread. If the alias has a pool (``OPTIONS["pool"]``), that pool
is instrumented by its own library's adapter, in place of the alias.
"""

from __future__ import annotations

from functools import wraps
from typing import Any

from django.db.backends.base.base import NO_DB_ALIAS, BaseDatabaseWrapper
from django.db.backends.utils import CursorWrapper
from django.db.utils import ConnectionHandler
from django.utils.connection import ConnectionProxy

from poolwatch.adapters.base import AdapterContext, LibraryPools
from poolwatch.adapters.django import KIND, wrappers
from poolwatch.adapters.django.hooks import AliasHooks, PooledAliasHooks
from poolwatch.adapters.django.requests import Requests
from poolwatch.adapters.django.settings import alias_name, alias_url, server_connect
from poolwatch.ledger.pool import PoolLedger
from poolwatch.ledger.settings import Settings

_OF_CONNECTIONS = {
    "connect": wrappers.connect,
    "_cursor": wrappers.cursor,
    "close": wrappers.close,
    "close_if_unusable_or_obsolete": wrappers.close_if_obsolete,
    "commit": wrappers.end_transaction,
    "rollback": wrappers.end_transaction,
}
_OF_CURSORS = ("execute", "executemany", "callproc")


class DjangoAliases(LibraryPools):
    """The instrumented database aliases of this process."""

    target_classes = (BaseDatabaseWrapper,)
    patched_classes = (BaseDatabaseWrapper,)
    name_of = staticmethod(alias_name)
    url_of = staticmethod(alias_url)
    server_connect = staticmethod(server_connect)

    def __init__(self, context: AdapterContext) -> None:
        super().__init__(context)
        self._by_alias: dict[str, AliasHooks | PooledAliasHooks] = {}
        """Keeps the hooks alive: an alias lasts as long as the process."""
        self._requests = Requests(context)
        self._left_alone: set[str] = set()
        """Aliases that were uninstrumented, while all others are instrumented."""

    def kind_of(self, target: Any) -> str:
        """The same for every backend of Django."""
        return KIND

    def unwrapped(self, target: Any) -> Any:
        """The wrapper of this thread for ``django.db.connection``, which is a proxy."""
        if type(target) is ConnectionProxy:
            handler, alias = vars(target)["_connections"], vars(target)["_alias"]
            return handler[alias] if isinstance(handler, ConnectionHandler) else target
        return target

    def pool_of(self, target: Any) -> Any:
        """The alias."""
        return target.alias

    def inner_pool(self, target: Any) -> Any:
        """The pool that Django takes the connections of this alias from, if any."""
        wrapper = self.unwrapped(target)
        if not _has_pool(wrapper):
            return None
        self._follow_pooled(wrapper.alias)
        return wrapper.pool

    def watch_discovered(self, target: Any, *, exists: bool = False) -> None:
        """Instrument the alias of a wrapper, unless it is known or has a pool."""
        if self._settings_for_all is None or not self.is_ready(target):
            return
        if target.alias in self._left_alone:
            return
        if _has_pool(target):
            self._follow_pooled(target.alias)
        elif exists or target.alias not in self._by_alias:
            super().watch_discovered(target, exists=exists)

    def _follow_pooled(self, alias: str) -> None:
        if alias not in self._by_alias:
            self._by_alias[alias] = PooledAliasHooks(alias, self._context)
            self._patch()

    def is_new(self, target: Any) -> bool:
        """Aliases are made by the settings, not by the code that runs."""
        return False

    def is_ready(self, target: Any) -> bool:
        """Whether it is a database of the settings, and knows its alias."""
        return bool(target.__dict__.get("alias", NO_DB_ALIAS) != NO_DB_ALIAS)

    def make_hooks(self, target: Any, ledger: PoolLedger) -> AliasHooks:
        """Hook the alias: all its connections, in all threads."""
        hooks = AliasHooks(target.alias, ledger, self._context)
        self._by_alias[target.alias] = hooks
        self._patch()
        return hooks

    def track_collection(self, hooks: Any) -> None:
        """An alias lasts as long as the process."""

    def watch_all(self, settings: Settings, *, existing: bool = True) -> None:
        """Instrument all aliases, and note requests from now on."""
        self._left_alone.clear()
        self._patch()
        super().watch_all(settings, existing=existing)

    def unwatch_all(self) -> None:
        """Remove all hooks."""
        super().unwatch_all()
        self._by_alias.clear()
        self._requests.leave()

    def watch(self, target: Any, settings: Settings) -> str:
        """Instrument an alias, or change its settings."""
        self._left_alone.discard(self.pool_of(self.unwrapped(target)))
        return super().watch(target, settings)

    def unwatch(self, target: Any) -> None:
        """Remove the hooks of one alias, and all wrappers with the last one."""
        super().unwatch(target)
        alias = self.pool_of(self.unwrapped(target))
        with self._lock:
            self._left_alone.add(alias)
            self._by_alias.pop(alias, None)
            if not self._by_alias and self._settings_for_all is None:
                self._patches.undo()
                self._requests.leave()

    def forget_parent(self) -> None:
        """In a forked child, begin anew."""
        super().forget_parent()
        for hooks in self._by_alias.values():
            hooks.forget_parent()

    def _patch(self) -> None:
        hooks_of = self._by_alias.get
        for name, make in _OF_CONNECTIONS.items():
            self._replace(BaseDatabaseWrapper, name, make, hooks_of)
        for name in _OF_CURSORS:
            self._replace(CursorWrapper, name, wrappers.statement, hooks_of)
        self._requests.follow()

    def _replace(self, cls: type, name: str, make: Any, hooks_of: Any) -> None:
        def wrapper(original: Any) -> Any:
            return wraps(original)(make(original, hooks_of))

        self._patches.replace(cls, name, wrapper)


def _has_pool(wrapper: Any) -> bool:
    """Whether Django takes the connections of this alias from a pool of its own."""
    options = wrapper.settings_dict.get("OPTIONS") or {}
    return bool(options.get("pool")) and hasattr(type(wrapper), "pool")
