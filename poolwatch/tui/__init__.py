"""The dashboard, behind one door: nothing here imports Textual before it is run."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

from poolwatch.errors import MissingExtraError

if TYPE_CHECKING:
    from poolwatch.model import Source

__all__ = ["run"]

_INSTALL = "install it with: python -m pip install 'poolwatch[tui]'"


def run(
    source: Source,
    *,
    refresh: float = 1.0,
    empty_hint: str = "",
    on_close: Callable[[], None] | None = None,
) -> None:
    """Show ``source`` in this terminal until the user quits.

    Args:
        source: asked once every ``refresh`` seconds, on a thread of its own.
        refresh: seconds between two questions.
        empty_hint: what to say when there is no process: how to begin.
        on_close: called once when the dashboard is left, however that comes about.
    """
    try:
        _run(source, refresh, empty_hint)
    finally:
        if on_close is not None:
            on_close()


def _run(source: Source, refresh: float, empty_hint: str) -> None:
    collecting = gc.isenabled()
    gc.disable()  # imports make only what stays; collecting in between costs a fifth
    try:
        from poolwatch.tui.app import Dashboard
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("textual", "rich", "sqlparse"):
            raise
        raise MissingExtraError(f"the dashboard needs {missing}; {_INSTALL}") from error
    finally:
        if collecting:
            gc.enable()
    Dashboard(source, refresh=refresh, empty_hint=empty_hint).run()
