"""The dashboard. Textual is imported when it starts."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from poolwatch.errors import MissingExtraError, UsageError

if TYPE_CHECKING:
    from poolwatch.model import Incident, Past, Source
    from poolwatch.model.actions import Actions

__all__ = ["run", "terminal_problem"]

_UNABLE = ("dumb", "unknown")
"""Values of TERM for a terminal that cannot move its cursor."""


def run(
    source: Source,
    *,
    refresh: float = 1.0,
    empty_hint: str = "",
    theme: str | None = None,
    actions: Actions | None = None,
    saved: Sequence[Incident] | None = None,
    past: Past | None = None,
    at: float | None = None,
    on_close: Callable[[], None] | None = None,
) -> None:
    """Show ``source`` in this terminal until the user quits.

    Args:
        source: read once every ``refresh`` seconds, on a separate thread.
        refresh: seconds between two readings.
        empty_hint: instructions, shown while there is no process.
        theme: name of a theme of Textual's, or "poolwatch" (default: POOLWATCH_THEME,
            TEXTUAL_THEME, or else poolwatch's own).
        actions: cancels statements and ends sessions; None if that is not allowed.
        saved: if ``source`` is one saved moment, which is read once: its incidents.
        past: the history, for looking back; it may be ``source`` itself.
        at: the moment to begin with, in seconds since the epoch; None is now.
        on_close: called once at the end, also after an error.

    Raises UsageError without a terminal or for an unknown theme, MissingExtraError
    without Textual.
    """
    try:
        _run(
            source,
            theme,
            refresh=refresh,
            empty_hint=empty_hint,
            actions=actions,
            saved=saved,
            past=past,
            at=at,
        )
    finally:
        if on_close is not None:
            on_close()


def _run(source: Source, theme: str | None, **settings: Any) -> None:
    gc_enabled = gc.isenabled()
    gc.disable()  # collections would add a fifth to the import time
    try:
        from poolwatch.tui.app import THEMES, Dashboard
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in ("textual", "rich", "sqlparse"):
            raise
        raise MissingExtraError(f"the dashboard needs {missing}", "tui") from error
    finally:
        if gc_enabled:
            gc.enable()
    theme = theme or os.environ.get("POOLWATCH_THEME") or None
    if theme is not None and theme not in THEMES:
        raise UsageError(
            f"there is no theme {theme!r:.40}; the themes: {', '.join(THEMES)}"
        )
    problem = terminal_problem()
    if problem is not None:
        raise UsageError(f"{problem}; as text: poolwatch ps")
    Dashboard(source, theme=theme, **settings).run()


def terminal_problem() -> str | None:
    """Say why the dashboard cannot be drawn here; None if it can.

    Without this check a dashboard drawn into a file would run forever, unseen; one in a
    terminal without a cursor would be an empty screen.
    """
    if "TEXTUAL_DRIVER" in os.environ:  # in a browser
        return None
    term = os.environ.get("TERM")
    if term in _UNABLE:
        return f"the dashboard needs a terminal that can be drawn on, not TERM={term}"
    streams = sys.__stdin__, sys.__stderr__
    if not all(stream is not None and stream.isatty() for stream in streams):
        return (
            "the dashboard needs a terminal: it reads standard input and is drawn on "
            "standard error"
        )
    return None
