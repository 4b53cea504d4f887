"""The dashboard in a browser, behind one door: the server is not imported before."""

from __future__ import annotations

from collections.abc import Sequence

from poolwatch.errors import MissingExtraError

__all__ = ["run"]

_INSTALL = "install it with: python -m pip install 'poolwatch[serve]'"
_NEEDED = ("textual_serve", "textual", "aiohttp", "sqlparse")


def run(
    dashboard: Sequence[str], *, host: str, port: int, anyone_may_look: bool
) -> None:
    """Serve the dashboard until a signal ends it.

    Args:
        dashboard: the words of ``poolwatch tui ...``; each page starts one.
        host: a name or address of this machine.
        port: 0 takes any free one.
        anyone_may_look: without it a host that others can reach is refused.

    Raises UsageError for a host or port that cannot be used.
    """
    try:
        import sqlparse  # noqa: F401 - the dashboard's own libraries, now or never
        import textual  # noqa: F401

        from poolwatch.commands.serve import serving
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDED:
            raise
        raise MissingExtraError(
            f"the dashboard in a browser needs {missing}; {_INSTALL}"
        ) from error
    serving.serve(dashboard, host=host, port=port, anyone_may_look=anyone_may_look)
