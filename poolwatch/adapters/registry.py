"""The adapters of all libraries, each loaded once the application has its library.

An adapter imports its library. So it is loaded after the application has loaded the
library itself, and not before.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any

from poolwatch.adapters.base import AdapterContext
from poolwatch.ledger.settings import Settings
from poolwatch.runtime.gc_pause import undisturbed
from poolwatch.runtime.guard import log
from poolwatch.runtime.import_hooks import when_imported
from poolwatch.runtime.libraries import with_pools

if TYPE_CHECKING:
    from poolwatch.adapters.base import LibraryPools


class EveryLibrary:
    """The instrumented pools of this process, whatever library they are from."""

    def __init__(self, context: AdapterContext) -> None:
        self._context = context
        self._adapters: dict[str, LibraryPools | None] = {}
        """By the module of the library; None for an adapter that cannot be loaded."""
        self._every: Settings | None = None
        self._awaited: dict[str, Callable[[], None]] = {}
        """By a module that is not loaded yet: the call that ends the wait for it."""

    def accepts(self, target: Any) -> bool:
        """Whether an adapter takes ``target``; loads no library."""
        return self._library_of(target) is not None

    def watch(self, target: Any, settings: Settings) -> str:
        """Instrument a pool, or change its settings; returns the id of the pool.

        Raises TypeError for anything else.
        """
        library = self._library_of(target)
        if library is None:
            raise TypeError(unknown(target))
        return library.watch(target, settings)

    def id_of(self, target: Any) -> str | None:
        """The id of an instrumented pool; None if it is not."""
        library = self._library_of(target)
        return None if library is None else library.id_of(target)

    def forget(self, target: Any) -> None:
        """Take the hooks off one pool, if it has any."""
        library = self._library_of(target)
        if library is not None:
            library.forget(target)

    def watch_every(self, settings: Settings) -> None:
        """Instrument all pools of every library, existing ones and new ones.

        This includes libraries that the application loads later. Pools that were
        instrumented one by one keep their settings.
        """
        self._every = settings
        for name in with_pools():
            if name in sys.modules:
                self._arrived(name, existing=True)
            elif name not in self._awaited:
                arrived = partial(self._arrived, name, existing=False)
                self._awaited[name] = when_imported(name, arrived)

    def forget_every(self) -> None:
        """Take off all hooks, and stop waiting for libraries."""
        self._every = None
        while self._awaited:
            _, give_up = self._awaited.popitem()
            give_up()
        for library in self._used():
            library.forget_every()

    @property
    def watches_every(self) -> bool:
        """Whether new pools will be instrumented."""
        return self._every is not None

    def forget_parent(self) -> None:
        """In a forked child: another thread of the parent may have held a lock."""
        for library in self._used():
            library.forget_parent()

    def _arrived(self, name: str, *, existing: bool) -> None:
        self._awaited.pop(name, None)
        library, settings = self._adapter(name), self._every
        if library is None or settings is None:  # forgotten while it was loading
            return
        try:
            library.watch_every(settings, existing=existing)
        except Exception:  # noqa: BLE001 - whatever it is, the app goes on
            log().exception("poolwatch could not instrument the pools of %s", name)

    def _library_of(self, target: Any) -> LibraryPools | None:
        loaded = (self._adapter(name) for name in with_pools() if name in sys.modules)
        return next((each for each in loaded if each and each.accepts(target)), None)

    def _used(self) -> Iterator[LibraryPools]:
        return (each for each in list(self._adapters.values()) if each is not None)

    def _adapter(self, name: str) -> LibraryPools | None:
        """The adapter of a library that is loaded."""
        if name not in self._adapters:
            self._adapters[name] = self._made(name)
        return self._adapters[name]

    def _made(self, name: str) -> LibraryPools | None:
        module, _, kind = str(with_pools()[name].adapter).partition(":")
        try:
            load = partial(import_module, f"poolwatch.adapters.{module}")
            adapter: LibraryPools = getattr(undisturbed(load), kind)(self._context)
        except Exception:  # noqa: BLE001 - e.g. a version that lacks what we need
            log().exception("poolwatch cannot watch the pools of %s", name)
            return None
        return adapter


def unknown(target: Any) -> str:
    """The message for a target that no adapter takes."""
    kind = f"{type(target).__module__}.{type(target).__qualname__}"
    *most, last = [each.takes for each in with_pools().values()]
    takes = f"{', '.join(most)} or {last}, or no argument for all of them"
    return f"cannot instrument {kind}: poolwatch takes {takes}"
