"""Instruments a program that knows nothing of poolwatch.

``poolwatch run -- CMD`` puts ``site/`` in front of PYTHONPATH. Every Python that CMD
starts, its children included, then runs ``site/sitecustomize.py`` before anything else,
which calls :func:`begin`.
"""

from __future__ import annotations

from pathlib import Path

TYPE_CHECKING = False  # importing typing would cost every Python that is started
if TYPE_CHECKING:
    from collections.abc import Callable

SITE = Path(__file__).parent / "site"
"""The directory that must come first in PYTHONPATH."""


def environment(inherited: dict[str, str]) -> dict[str, str]:
    """Return the environment in which every Python is instrumented."""
    import os

    others = [
        path
        for path in inherited.get("PYTHONPATH", "").split(os.pathsep)
        if path and path != str(SITE)
    ]
    return {**inherited, "PYTHONPATH": os.pathsep.join([str(SITE), *others])}


def begin() -> None:
    """Instrument every pool, from the moment that a pool library is imported."""
    from poolwatch.ledger.settings import disabled

    if disabled():
        return
    from poolwatch.runtime.import_hooks import when_imported
    from poolwatch.runtime.libraries import with_pools

    waiting: list[Callable[[], None]] = []

    def instrument_all() -> None:
        from poolwatch.agent.instrument import instrument

        while waiting:  # it waits for the others itself
            waiting.pop()()
        instrument()

    for library in with_pools():
        waiting.append(when_imported(library, instrument_all))  # noqa: PERF401 - it may be called at once
