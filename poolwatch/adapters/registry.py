"""The adapters of all libraries. Each is loaded when the application loads its library.

An adapter imports its library, so it must not be loaded earlier.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from poolwatch.adapters.base import AdapterContext
from poolwatch.ledger.pool_over_pool import find_lent
from poolwatch.ledger.settings import Settings
from poolwatch.runtime.gc_pause import undisturbed
from poolwatch.runtime.guard import log
from poolwatch.runtime.import_hooks import when_imported
from poolwatch.runtime.libraries import with_pools

if TYPE_CHECKING:
    from poolwatch.adapters.base import LibraryPools


class InstrumentedPools:
    """The instrumented pools of this process, of all libraries."""

    def __init__(self, context: AdapterContext) -> None:
        self._context = context
        self._adapters: dict[str, LibraryPools | None] = {}
        """By the module of the library; None if the adapter failed to load."""
        self._settings_for_all: Settings | None = None
        self._looks_again = False
        self._pending_imports: dict[str, Callable[[], None]] = {}
        """By the module that is not loaded yet: the function that cancels its import
        hook.
        """

    def accepts(self, target: Any) -> bool:
        """Whether ``target`` can be instrumented; loads no library."""
        return self._adapter_for(target) is not None

    def check(self, target: Any, settings: Settings) -> None:
        """Raise TypeError if ``target`` cannot be instrumented with these settings."""
        adapter = self._adapter_for(target)
        if adapter is None:
            raise TypeError(unsupported_message(target))
        if settings.comment and not adapter.can_comment(target):
            raise TypeError(
                "comment=True needs an engine of SQLAlchemy: "
                f"{type(target).__qualname__} sends no statements through one"
            )

    def watch(self, target: Any, settings: Settings) -> str:
        """Instrument a pool, or change its settings; returns the id of the pool.

        Raises TypeError if ``target`` cannot be instrumented.
        """
        adapter, target = self._resolved(target)
        if adapter is None:
            raise TypeError(unsupported_message(target))
        return adapter.watch(target, settings)

    def id_of(self, target: Any) -> str | None:
        """The id of an instrumented pool; None if the pool is not instrumented."""
        adapter, target = self._resolved(target)
        return None if adapter is None else adapter.id_of(target)

    def unwatch(self, target: Any) -> None:
        """Remove the hooks of one pool, if it has any.

        Raises TypeError if ``target`` cannot be instrumented.
        """
        outer, (adapter, pool) = self._adapter_for(target), self._resolved(target)
        if outer is None:
            raise TypeError(unsupported_message(target))
        if adapter is not None:
            adapter.unwatch(pool)
        if outer is not adapter:
            outer.unwatch(target)

    def watch_all(self, settings: Settings) -> None:
        """Instrument all pools of every library, existing ones and new ones.

        Includes libraries that the application loads later. Pools that were
        instrumented one by one keep their settings.
        """
        self._settings_for_all = settings
        for name in with_pools():
            if name in sys.modules:
                self._library_loaded(name, existing=True)
            elif name not in self._pending_imports:
                loaded = partial(self._library_loaded, name, existing=False)
                self._pending_imports[name] = when_imported(name, loaded)

    def adopt(self) -> None:
        """Make holds of the connections that were out before the pools were hooked."""
        self._looks_again = True
        for adapter in self._loaded_adapters():
            adapter.adopt()
        find_lent(dict(self._context.ledger.pools))

    def look_again(self) -> None:
        """After adopt(): look for what was on its way then, and took its time."""
        if self._looks_again:
            self.adopt()
            self._looks_again = False

    def unwatch_all(self) -> None:
        """Remove all hooks, including the import hooks."""
        self._settings_for_all = None
        while self._pending_imports:
            _, cancel = self._pending_imports.popitem()
            cancel()
        for adapter in self._loaded_adapters():
            adapter.unwatch_all()

    @property
    def watches_all(self) -> bool:
        """Whether new pools will be instrumented."""
        return self._settings_for_all is not None

    def forget_parent(self) -> None:
        """In a forked child, replace the locks: a thread of the parent may hold one."""
        for adapter in self._loaded_adapters():
            adapter.forget_parent()

    def _library_loaded(self, name: str, *, existing: bool) -> None:
        self._pending_imports.pop(name, None)
        adapter, settings = self._adapter(name), self._settings_for_all
        if adapter is None or settings is None:  # unwatched while it was loading
            return
        try:
            adapter.watch_all(settings, existing=existing)
        except Exception:  # noqa: BLE001 - the application must go on
            log().exception("poolwatch could not instrument the pools of %s", name)

    def _resolved(self, target: Any) -> tuple[LibraryPools | None, Any]:
        """The adapter that instruments a target, and the pool that it instruments."""
        adapter = self._adapter_for(target)
        inner = None if adapter is None else adapter.inner_pool(target)
        return (adapter, target) if inner is None else self._resolved(inner)

    def _adapter_for(self, target: Any) -> LibraryPools | None:
        loaded = (self._adapter(name) for name in with_pools() if name in sys.modules)
        return next((each for each in loaded if each and each.accepts(target)), None)

    def _loaded_adapters(self) -> Iterator[LibraryPools]:
        return (each for each in list(self._adapters.values()) if each is not None)

    def _adapter(self, name: str) -> LibraryPools | None:
        """The adapter of a loaded library."""
        if name not in self._adapters:
            self._adapters.setdefault(name, self._load_adapter(name))
        return self._adapters[name]

    def _load_adapter(self, name: str) -> LibraryPools | None:
        module, _, kind = str(with_pools()[name].adapter).partition(":")
        try:
            load = partial(import_module, f"poolwatch.adapters.{module}")
            adapter: LibraryPools = getattr(undisturbed(load), kind)(self._context)
        except Exception:  # noqa: BLE001 - e.g. a version that lacks what we need
            log().exception("poolwatch cannot watch the pools of %s", name)
            return None
        return adapter


def unsupported_message(target: Any) -> str:
    """The error message for a target that cannot be instrumented."""
    kind = f"{type(target).__module__}.{type(target).__qualname__}"
    *most, last = [each.instrumentable for each in with_pools().values()]
    accepted = f"{', '.join(most)} or {last}, or no argument for all of them"
    return f"cannot instrument {kind}: poolwatch accepts {accepted}"
