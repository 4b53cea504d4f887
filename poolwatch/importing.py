"""Does something as soon as a module has been imported, and nothing before.

So an application that never loads SQLAlchemy does not load it because of us.

``sys.meta_path`` is replaced rather than changed: another thread may be going through
it, and would miss a finder.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

from poolwatch.guard import log


def when_imported(name: str, do: Callable[[], None]) -> Callable[[], None]:
    """Call ``do`` once the module is there: now, or right after its first import.

    Returns the call by which nobody waits for it any more; an import that is under way
    ends with ``do`` all the same.
    """
    if name in sys.modules:
        do()
        return _nothing
    finder = _Finder(name, do)
    sys.meta_path = [finder, *sys.meta_path]
    return finder.leave


def _nothing() -> None:
    """Nobody waits."""


class _Finder(importlib.abc.MetaPathFinder):
    """Finds nothing itself: asks the others, and wraps the loader they give."""

    def __init__(self, name: str, do: Callable[[], None]) -> None:
        self._name = name
        self._do = do

    def find_spec(
        self,
        fullname: str,
        path: Sequence[str] | None,  # noqa: ARG002 - as it is called
        target: ModuleType | None = None,  # noqa: ARG002
    ) -> importlib.machinery.ModuleSpec | None:
        """Step aside, and see to it that we hear when it has been loaded."""
        if fullname != self._name or self not in sys.meta_path:
            return None
        self.leave()
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader, self._do)
        return spec

    def leave(self) -> None:
        """Be asked no more."""
        sys.meta_path = [each for each in sys.meta_path if each is not self]


class _Loader(importlib.abc.Loader):
    """Loads as the other one does, then calls."""

    def __init__(self, other: Any, do: Callable[[], None]) -> None:
        self._other = other
        self._do = do

    def __getattr__(self, name: str) -> Any:
        """Everything else a loader can do is the other's."""
        return getattr(self._other, name)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        """As the other one."""
        module: ModuleType | None = self._other.create_module(spec)
        return module

    def exec_module(self, module: ModuleType) -> None:
        """As the other one; then the module is told who has loaded it."""
        self._other.exec_module(module)
        if module.__spec__ is not None:
            module.__spec__.loader = self._other
        module.__loader__ = self._other
        try:
            self._do()
        except Exception:  # noqa: BLE001 - whatever it is, the import has worked
            log().exception("poolwatch could not instrument %s", module.__name__)
