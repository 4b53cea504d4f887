"""Instruments a program without changing its code.

``poolwatch run -- CMD`` puts ``site/`` in front of PYTHONPATH. Every Python that CMD
starts, child processes included, then first runs ``site/sitecustomize.py``, which calls
:func:`begin`.
"""

from __future__ import annotations

from pathlib import Path

TYPE_CHECKING = False  # importing typing would slow every Python start
if TYPE_CHECKING:
    from collections.abc import Callable

SITE = Path(__file__).parent / "site"
"""The directory that is put first in PYTHONPATH."""


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

    cancels: list[Callable[[], None]] = []

    def instrument_all() -> None:
        from poolwatch.agent.instrument import instrument

        while cancels:  # instrument() installs its own import hooks
            cancels.pop()()
        instrument()

    for library in with_pools():
        cancels.append(when_imported(library, instrument_all))  # noqa: PERF401 - may call instrument_all
