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


def find_ours_first() -> Callable[[], None]:
    """Have our own modules found before any other finder is asked; returns the undo.

    pytest's finder comes before Python's: it examines every name, and parses the
    modules of a plugin to rewrite their assertions. Our modules have none.
    """
    finder = _Ours()
    _come(finder)
    return partial(_go, finder)


_before: list[Any] = sys.meta_path
"""``sys.meta_path`` as it was before our first finder."""


def _come(finder: _Ours | _Finder) -> None:
    """Put a finder of ours before all others."""
    global _before  # noqa: PLW0603 - as sys.meta_path is the process's
    there = sys.meta_path
    if not _has_ours(there):
        _before = there
    sys.meta_path = [finder, *there]


def _go(finder: _Ours | _Finder) -> None:
    """Take a finder of ours away."""
    if finder not in sys.meta_path:
        return
    left = [each for each in sys.meta_path if each is not finder]
    if not _has_ours(left):
        # no iteration over it misses a finder: ours have never been in it
        _before[:] = left
        left = _before
    sys.meta_path = left


def _has_ours(finders: list[Any]) -> bool:
    return any(isinstance(each, _Ours | _Finder) for each in finders)


class _Ours(importlib.abc.MetaPathFinder):
    """Finds the modules of our package in Python's own way."""

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> importlib.machinery.ModuleSpec | None:
        """Search the path of the package."""
        if not fullname.startswith("poolwatch."):
            return None
        return importlib.machinery.PathFinder.find_spec(fullname, path, target)


class _Finder(importlib.abc.MetaPathFinder):
    """Asks the other finders, and wraps the loader that they return.

    There is one for all awaited modules, since it is asked at every import.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, list[Callable[[], None]]] = {}
        self._asking: set[tuple[str, int]] = set()
        """Modules that the other finders are asked for now, and the asking thread."""

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
            _come(self)

    def _leave_if_done(self) -> None:
        if not self._waiting:
            _go(self)
        if self._waiting:  # or another thread has come meanwhile
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
