"""Post-import hooks: call a function right after a module was imported.

With these, an application that never loads SQLAlchemy does not load it because of us.

``sys.meta_path`` is replaced instead of modified: another thread that iterates over it
would miss a finder. The original list, to which the interpreter keeps a reference, is
restored when the last hook is removed, together with any finders added meanwhile. No
lock is used: a forking process would copy it locked.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from threading import get_ident
from types import ModuleType
from typing import Any

from poolwatch.runtime.guard import log


def when_imported(name: str, callback: Callable[[], None]) -> Callable[[], None]:
    """Call ``callback`` when the module is loaded: now, or after its first import.

    Returns a function that cancels this.
    """
    if name in sys.modules:
        callback()
        return _no_op
    return _finder.wait(name, callback)


def _no_op() -> None:
    """Nothing to cancel."""


class _Finder(importlib.abc.MetaPathFinder):
    """Asks the other finders, and wraps the loader that they return.

    There is one finder for all hooks, since finders are called at every import.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, list[Callable[[], None]]] = {}
        self._asking: set[tuple[str, int]] = set()
        """Modules that the other finders are being asked for, and the asking thread."""
        self._replaced = sys.meta_path
        """The ``sys.meta_path`` that ours replaced."""

    def wait(self, name: str, callback: Callable[[], None]) -> Callable[[], None]:
        """Register a callback; returns a function that cancels it."""
        self._waiting.setdefault(name, []).append(callback)
        self._install()

        def cancel() -> None:
            waiting = self._waiting.get(name, [])
            with suppress(ValueError):  # it was called already
                waiting.remove(callback)
            if not waiting:
                self._waiting.pop(name, None)
                self._remove_if_done()

        return cancel

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - the protocol
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the module with the other finders, and wrap its loader."""
        if fullname not in self._waiting:
            return None
        asking = fullname, get_ident()
        if asking in self._asking:  # our own find_spec() call below
            return None
        self._asking.add(asking)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking.discard(asking)
        if spec is not None and spec.loader is not None:
            # the hook stays: a caller may only check that the module exists
            spec.loader = _Loader(spec.loader, partial(self._loaded, fullname))
        return spec

    def _loaded(self, name: str) -> None:
        waiting = self._waiting.pop(name, [])
        self._remove_if_done()
        for callback in waiting:
            try:
                callback()
            except Exception:  # noqa: BLE001 - the import itself has succeeded
                log().exception("poolwatch could not instrument %s", name)

    def _install(self) -> None:
        if self not in sys.meta_path:
            self._replaced = sys.meta_path
            sys.meta_path = [self, *self._replaced]

    def _remove_if_done(self) -> None:
        if not self._waiting and self in sys.meta_path:
            # modifying this list is safe: it never had our finder
            self._replaced[:] = [each for each in sys.meta_path if each is not self]
            sys.meta_path = self._replaced
        if self._waiting:  # another thread has registered a callback meanwhile
            self._install()


class _Loader(importlib.abc.Loader):
    """Wraps another loader, and calls a function after the module was loaded."""

    def __init__(self, wrapped: Any, loaded: Callable[[], None]) -> None:
        self._wrapped = wrapped
        self._loaded = loaded

    def __getattr__(self, name: str) -> Any:
        """Delegate to the wrapped loader."""
        return getattr(self._wrapped, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Create the module with the wrapped loader."""
        module: ModuleType | None = self._wrapped.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run the module, and record the wrapped loader as its loader."""
        self._wrapped.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self._wrapped
        module.__loader__ = self._wrapped
        self._loaded()


_finder = _Finder()
