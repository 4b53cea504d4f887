"""Calls a function right after a module was imported.

So an application that never loads SQLAlchemy does not load it because of us.

``sys.meta_path`` is replaced and not changed: another thread may be iterating over it,
and would miss a finder. The original list is restored with our last finder, including
the finders that others have added: the interpreter keeps a reference to that list. No
lock is held: a process that forks would copy it locked.
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


def when_imported(name: str, do: Callable[[], None]) -> Callable[[], None]:
    """Call ``do`` when the module is loaded: now, or right after its first import.

    Returns the call that cancels this.
    """
    if name in sys.modules:
        do()
        return _nothing
    return _finder.wait(name, do)


def _nothing() -> None:
    """There is nothing to cancel."""


class _Finder(importlib.abc.MetaPathFinder):
    """Asks the other finders, and wraps the loader that they return.

    There is one for all awaited modules, since it is asked at every import.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, list[Callable[[], None]]] = {}
        self._asking: set[tuple[str, int]] = set()
        """Modules that the other finders are asked for now, and the asking thread."""
        self._replaced = sys.meta_path
        """``sys.meta_path`` before ours took its place."""

    def wait(self, name: str, do: Callable[[], None]) -> Callable[[], None]:
        """Call ``do`` when the module has been loaded; returns the call to cancel."""
        self._waiting.setdefault(name, []).append(do)
        self._stay()

        def give_up() -> None:
            waiting = self._waiting.get(name, [])
            with suppress(ValueError):  # it has come
                waiting.remove(do)
            if not waiting:
                self._waiting.pop(name, None)
                self._leave_if_done()

        return give_up

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - as it is called
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """Find the module by the other finders, with a loader that reports the load."""
        if fullname not in self._waiting:
            return None
        asking = fullname, get_ident()
        if asking in self._asking:  # by ourselves, just below
            return None
        self._asking.add(asking)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self._asking.discard(asking)
        if spec is not None and spec.loader is not None:
            # a caller that only checks for the module does not load it: we wait on
            spec.loader = _Loader(spec.loader, partial(self._loaded, fullname))
        return spec

    def _loaded(self, name: str) -> None:
        waiting = self._waiting.pop(name, [])
        self._leave_if_done()
        for do in waiting:
            try:
                do()
            except Exception:  # noqa: BLE001 - whatever it is, the import has worked
                log().exception("poolwatch could not instrument %s", name)

    def _stay(self) -> None:
        if self not in sys.meta_path:
            self._replaced = sys.meta_path
            sys.meta_path = [self, *self._replaced]

    def _leave_if_done(self) -> None:
        if not self._waiting and self in sys.meta_path:
            # a thread that goes through it misses no finder: we were never in it
            self._replaced[:] = [each for each in sys.meta_path if each is not self]
            sys.meta_path = self._replaced
        if self._waiting:  # another thread has come meanwhile
            self._stay()


class _Loader(importlib.abc.Loader):
    """Loads by another loader, and then calls a function."""

    def __init__(self, other: Any, loaded: Callable[[], None]) -> None:
        self._other = other
        self._loaded = loaded

    def __getattr__(self, name: str) -> Any:
        """Everything else is the other loader's."""
        return getattr(self._other, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """Create it by the other loader."""
        module: ModuleType | None = self._other.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """Run it by the other loader, and name that one in the module."""
        self._other.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self._other
        module.__loader__ = self._other
        self._loaded()


_finder = _Finder()
