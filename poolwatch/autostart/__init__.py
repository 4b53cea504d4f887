"""Instruments a program that knows nothing of poolwatch.

``poolwatch run -- CMD`` puts ``site/`` in front of PYTHONPATH. Every Python that CMD
starts, its children included, then runs ``site/sitecustomize.py`` before anything else,
which calls :func:`begin`.
"""

from __future__ import annotations

from pathlib import Path

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
    """Instrument every engine, from the moment that SQLAlchemy is imported."""
    from poolwatch.importing import when_imported
    from poolwatch.settings import disabled

    if disabled():
        return

    def instrument() -> None:
        from poolwatch.agent import instrument as every

        every()

    when_imported("sqlalchemy", instrument)
