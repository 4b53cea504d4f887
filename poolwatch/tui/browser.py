"""Ends a dashboard in a browser once nobody can see it.

Textual's driver for browsers would stay for ever: when its server is killed, and when a
page goes whose picture is just being sent, because the driver then waits for a reader.
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
PATIENCE_S = 60.0
"""Seconds for which a screen may stand still: a busy machine is slow."""
_STDOUT = 1
"""The pipe to the server."""


def end_unseen(
    app: App[None],
    *,
    every_s: float = EVERY_S,
    patience_s: float = PATIENCE_S,
    pipe: int = _STDOUT,
    end: Callable[[int], object] = os._exit,
) -> threading.Thread:
    """Watch an app on a thread that ends the program; a blocked app cannot itself."""
    reader, pause = select.poll(), threading.Event()
    reader.register(pipe, 0)  # only that nobody reads it any more

    def run() -> None:
        while app.is_running:
            answered = threading.Event()
            app.call_later(answered.set)
            if reader.poll(0) or not answered.wait(patience_s):
                end(0)
                return
            pause.wait(every_s)

    thread = threading.Thread(target=run, name="poolwatch-unseen", daemon=True)
    thread.start()
    return thread
