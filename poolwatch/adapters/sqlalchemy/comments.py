"""Names the call site and the labels in each statement, for whoever reads the server.

The format is sqlcommenter's: ``/*call_site='shop%2Forders.py%3A42',tenant='acme'*/``.
Values are URL-encoded, so no label can end its quotes or the comment.

The dialect's methods append it rather than SQLAlchemy's ``before_cursor_execute``: that
event slows every statement of an engine, misses the connections that are out, and comes
before the comments of other tools, of which there may be only one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from pathlib import PurePath
from sys import _getframe as frame_at
from typing import Any
from urllib.parse import quote

from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.labels import current_context
from poolwatch.model import Frame
from poolwatch.runtime.guard import Guard
from poolwatch.runtime.installation import import_path
from poolwatch.stacks.capture import CapturedStack
from poolwatch.stacks.code_owner import home_of

MAX_LENGTH = 512
"""Longest comment. PostgreSQL shows 1,024 bytes of a statement by default."""
_MAX_PATH = 200
_OUTER_FRAMES = 7
"""Minimum number of frames between the application and ours."""


class Comments:
    """Appends a comment to the statements of one dialect."""

    def __init__(
        self,
        capture: Callable[[Any], CapturedStack],
        hold_of: Callable[[Any], Checkout | None],
        doubles_percents: bool,
    ) -> None:
        """``hold_of``: takes the connection of SQLAlchemy that sends a statement.

        ``doubles_percents``: the driver takes ``%`` for a placeholder.
        """
        self._capture = capture
        self._hold_of = hold_of
        self._doubles_percents = doubles_percents
        self._guard = Guard("the comments of statements")

    def sender(self, send: Callable[..., None], bare: bool) -> Callable[..., None]:
        """Return ``send``, a method of the dialect, with a comment added.

        ``bare``: without parameters, so the driver looks for no placeholders.
        """
        guard, doubled = self._guard, self._doubles_percents and not bare

        def send_with_comment(
            cursor: Any, statement: Any, parameters: Any, context: Any
        ) -> None:
            if isinstance(statement, str) and not guard.tripped:
                try:
                    statement = self._with_comment(statement, context, doubled)
                except Exception as error:  # noqa: BLE001 - the application must go on
                    guard.failed(error)
            send(cursor, statement, parameters, context)

        return send_with_comment

    def _with_comment(self, statement: str, context: Any, doubled: bool) -> str:
        body = statement.rstrip()
        # sqlcommenter: a statement with a comment stays as it is
        if not body or "/*" in statement or "--" in statement:
            return statement
        site = _own(self._capture(_caller()))
        if site is None:  # sent by a worker thread that runs SQLAlchemy's own code
            hold = context and self._hold_of(context.root_connection)
            site = None if hold is None else _own(hold.stack)
        comment = comment_of(site, tuple(current_context.get().labels.items()))
        if not comment:
            return statement
        if doubled:
            comment = comment.replace("%", "%%")
        end = ";" if body.endswith(";") else ""
        return f"{body.removesuffix(';').rstrip()} {comment}{end}"


@lru_cache(maxsize=256)
def comment_of(site: Frame | None, labels: tuple[tuple[str, str], ...]) -> str:
    """The comment with a call site and, sorted by name, the labels that have room."""
    pairs = {} if site is None else {"call_site": _place(site)}
    room = MAX_LENGTH - sum(len(f"/*{key}='{pairs[key]}'*/") for key in pairs)
    for name, value in sorted((_encoded(n), _encoded(v)) for n, v in labels):
        needed = len(f",{name}='{value}'")
        if needed <= room and name not in pairs:
            pairs[name] = value
            room -= needed
    found = ",".join(f"{name}='{pairs[name]}'" for name in sorted(pairs))
    return f"/*{found}*/" if found else ""


def _own(stack: CapturedStack) -> Frame | None:
    """The call site, unless only libraries are on the stack."""
    site = stack.site()
    if site is None or home_of(site.file, site.function) is None:
        return None
    return site


def _place(site: Frame) -> str:
    path = import_path(site.file)
    if len(path) > _MAX_PATH:
        path = PurePath(path).name[-_MAX_PATH:]
    return _encoded(f"{path}:{site.line}")


def _encoded(text: str) -> str:
    return quote(text, safe="", errors="replace")


def _caller() -> Any:
    """The frame to begin with: close to the application, never above its own."""
    try:
        return frame_at(_OUTER_FRAMES)
    except ValueError:  # called by something other than SQLAlchemy
        return frame_at(1)
