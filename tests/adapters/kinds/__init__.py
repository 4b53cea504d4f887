"""The kinds of pool that the contract is about: one file each, found by themselves.

A file defines ``KINDS``, a list of what is made once per test: see ``Kind``.
"""

from __future__ import annotations

import importlib
import pkgutil

from adapters.kinds.kind import Kind


def every_kind() -> list[type[Kind]]:
    """All kinds of all files here."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    modules = [importlib.import_module(f"{__name__}.{name}") for name in names]
    return [kind for module in modules for kind in getattr(module, "KINDS", ())]
