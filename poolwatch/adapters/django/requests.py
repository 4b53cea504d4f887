"""The requests that Django is serving, by thread."""

from __future__ import annotations

from typing import Any

from django.core.signals import request_finished, request_started

from poolwatch.adapters.base import AdapterContext
from poolwatch.ledger.checkout import FrameworkWork
from poolwatch.runtime.guard import Guard


class Requests:
    """Notes which requests are being served, by Django's signals.

    They are sent in the thread of the request, under ASGI as well.
    """

    def __init__(self, context: AdapterContext) -> None:
        self._context = context
        self._guard = Guard("Django's requests")
        self._connected = False

    def follow(self) -> None:
        """Receive the signals."""
        if not self._connected:
            self._connected = True
            request_started.connect(self._started, weak=False)
            request_finished.connect(self._finished, weak=False)

    def leave(self) -> None:
        """Receive the signals no more."""
        if self._connected:
            self._connected = False
            request_started.disconnect(self._started)
            request_finished.disconnect(self._finished)

    def _started(self, **_: Any) -> None:
        self._note(FrameworkWork(is_request=True))

    def _finished(self, **_: Any) -> None:
        self._note(None)

    def _note(self, request: FrameworkWork | None) -> None:
        if self._guard.tripped:
            return
        try:
            context = self._context
            holder = context.per_thread.holder or context.register_thread()
            if holder.request is not None:
                holder.request.is_request = False
            holder.request = request
        except Exception as error:  # noqa: BLE001 - the application must go on
            self._guard.failed(error)
