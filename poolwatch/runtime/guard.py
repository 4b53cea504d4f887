"""Keeps our exceptions from the application: hooks are switched off after a failure."""

from __future__ import annotations

import errno
import logging

_EXHAUSTED = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


def log() -> logging.Logger:
    """Our logger, created on first use.

    An existing logger has a cost: pytest visits all loggers six times per test.
    """
    return logging.getLogger("poolwatch")


class Guard:
    """Switches off a set of hooks after the first failure of one of them."""

    __slots__ = ("tripped", "what")

    def __init__(self, what: str) -> None:
        self.what = what
        self.tripped = False
        """The hooks are switched off."""

    def failed(self, error: BaseException) -> None:
        """Switch off, and log the first exception with its traceback.

        Must be called from the ``except`` block. A lack of memory, stack or file
        descriptors is a problem of the application: it switches nothing off.
        """
        if isinstance(error, MemoryError | RecursionError):
            return
        if isinstance(error, OSError) and error.errno in _EXHAUSTED:
            return  # a module could not be read
        if not self.tripped:
            self.tripped = True
            log().exception(
                "poolwatch failed on %s and is switched off for it; the pool goes on",
                self.what,
            )
