"""Signals that end a command."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP end a command as Ctrl-C does, so that it cleans up.

    Ignored signals remain ignored, such as SIGHUP under nohup. SIGINT may be ignored
    too: in the background jobs of a shell script.
    """

    def interrupt(_signum: int, _frame: object) -> None:
        if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
            raise KeyboardInterrupt
        signal.raise_signal(signal.SIGINT)  # the dashboard's event loop handles it

    with handled(interrupt, *not_ignored(signal.SIGTERM, signal.SIGHUP)):
        yield


def not_ignored(*numbers: signal.Signals) -> list[signal.Signals]:
    """Return those of the signals that are not ignored."""
    return [each for each in numbers if signal.getsignal(each) is not signal.SIG_IGN]


@contextmanager
def handled(
    handler: Callable[[int, object], None] | signal.Handlers, *numbers: signal.Signals
) -> Iterator[None]:
    """Handle these signals with ``handler`` inside the block."""
    before = {each: signal.signal(each, handler) for each in numbers}
    try:
        yield
    finally:
        for each, previous in before.items():
            signal.signal(each, previous)
