"""Ends a dashboard once nobody can see it: it would ask the applications for ever.

Textual goes on when a terminal is hung up and SIGHUP ignored, as under nohup. Its
driver for browsers goes on when its server is killed; and when a page goes whose
picture is just being sent, it waits for a reader.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from textual.app import App

EVERY_S = 2.0
PATIENCE_S = 30.0
"""Seconds for which a page may stand still: a busy machine is slow."""
_STDIN, _STDOUT = 0, 1
_GONE = select.POLLHUP | select.POLLERR
"""Not POLLNVAL: macOS says it of every terminal."""


def end_unseen(
    app: App[None],
    *,
    every_s: float = EVERY_S,
    patience_s: float = PATIENCE_S,
    seen_by: int | None = None,
    end: Callable[[int], object] = os._exit,
) -> threading.Thread:
    """Watch an app on a thread that ends the program; a blocked app cannot itself.

    ``seen_by``: a descriptor whose other end is the server of a page, or a terminal.
    """
    if seen_by is None:
        seen_by = _STDOUT if app.is_web else _STDIN
    other_end, pause = select.poll(), threading.Event()
    other_end.register(seen_by, 0)  # only whether it is gone

    def stands_still() -> bool:
        if not app.is_web:  # a terminal may stop for hours, such as that of a laptop
            return False
        answered = threading.Event()
        app.call_later(answered.set)
        # twice: after SIGSTOP the first limit is over already
        return not (answered.wait(patience_s) or answered.wait(patience_s))

    def run() -> None:
        while app.is_running:
            gone = any(event & _GONE for _, event in other_end.poll(0))
            if gone or stands_still():
                end(0)
                return
            pause.wait(every_s)

    thread = threading.Thread(target=run, name="poolwatch-unseen", daemon=True)
    thread.start()
    return thread
