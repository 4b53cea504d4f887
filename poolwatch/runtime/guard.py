"""Keeps our exceptions from the application: a hook that fails is switched off."""

from __future__ import annotations

import logging


def log() -> logging.Logger:
    """Our logger, made when there is something to log.

    An existing logger has a cost: pytest goes through all loggers six times a test.
    """
    return logging.getLogger("poolwatch")


class Guard:
    """Switches off one set of hooks when one of them has failed."""

    __slots__ = ("tripped", "what")

    def __init__(self, what: str) -> None:
        self.what = what
        self.tripped = False
        """The hooks are switched off."""

    def failed(self, error: BaseException) -> None:
        """Switch off, and log the first exception with its traceback.

        Call it from the ``except`` block. MemoryError and RecursionError are trouble of
        the application: they switch nothing off.
        """
        if isinstance(error, MemoryError | RecursionError):
            return
        if not self.tripped:
            self.tripped = True
            log().exception(
                "poolwatch failed on %s and is now off there; the pool goes on",
                self.what,
            )
