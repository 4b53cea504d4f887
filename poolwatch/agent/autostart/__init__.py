"""Instruments a program without a change to its code.

``poolwatch run -- CMD`` puts ``site/`` in front of PYTHONPATH. Every Python that CMD
starts, child processes included, then first runs ``site/sitecustomize.py``, which calls
:func:`begin`.
"""

from __future__ import annotations

from pathlib import Path

TYPE_CHECKING = False  # importing typing would cost every Python that is started
if TYPE_CHECKING:
    from collections.abc import Callable

SITE = Path(__file__).parent / "site"
"""The directory that comes first in PYTHONPATH."""


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
    """Instrument every pool as soon as a pool library is imported."""
    from poolwatch.ledger.settings import disabled

    if disabled():
        return
    from poolwatch.runtime.import_hooks import when_imported
    from poolwatch.runtime.libraries import with_pools

    waiting: list[Callable[[], None]] = []

    def instrument_all() -> None:
        from poolwatch.agent.instrument import instrument

        while waiting:  # instrument() waits for the other libraries itself
            waiting.pop()()
        instrument()

    for library in with_pools():
        waiting.append(when_imported(library, instrument_all))  # noqa: PERF401 - may call it at once
