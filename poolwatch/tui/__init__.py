"""The dashboard. Textual is imported when it starts."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from poolwatch.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from poolwatch.model import Past, Source

__all__ = ["has_terminal", "run"]

_INSTALL = "install it with: python -m pip install 'poolwatch[tui]'"


def run(
    source: Source,
    *,
    refresh: float = 1.0,
    empty_hint: str = "",
    saved: bool = False,
    past: Past | None = None,
    at: float | None = None,
    on_close: Callable[[], None] | None = None,
) -> None:
    """Show ``source`` in this terminal until the user quits.

    Args:
        source: read once every ``refresh`` seconds, on a separate thread.
        refresh: seconds between two readings.
        empty_hint: instructions, shown while there is no process.
        saved: whether ``source`` is one saved moment, which is read once.
        past: the history, for looking back; it may be ``source`` itself.
        at: the moment to begin with, in seconds since the epoch; None is now.
        on_close: called once at the end, also after an error.

    Raises UsageError without a terminal, MissingExtraError without Textual.
    """
    try:
        _run(
            source,
            refresh=refresh,
            empty_hint=empty_hint,
            saved=saved,
            past=past,
            at=at,
        )
    finally:
        if on_close is not None:
            on_close()


def _run(source: Source, **options: Any) -> None:
    gc_enabled = gc.isenabled()
    gc.disable()  # collections would add a fifth to the import time
    try:
        from poolwatch.tui.app import Dashboard
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("textual", "rich", "sqlparse"):
            raise
        raise MissingExtraError(f"the dashboard needs {missing}; {_INSTALL}") from error
    finally:
        if gc_enabled:
            gc.enable()
    if not has_terminal():
        raise UsageError(
            "the dashboard needs a terminal: it reads standard input and is drawn on "
            "standard error; as text: poolwatch ps"
        )
    Dashboard(source, **options).run()


def has_terminal() -> bool:
    """Whether Textual has a terminal to read from and draw on, or needs none.

    Without this check a dashboard drawn into a file would run forever, unseen.
    """
    if "TEXTUAL_DRIVER" in os.environ:  # in a browser
        return True
    streams = sys.__stdin__, sys.__stderr__
    return all(stream is not None and stream.isatty() for stream in streams)
