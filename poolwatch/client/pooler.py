"""Reads PgBouncer's console before and after the server, for the holds behind it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

from poolwatch.client.calls import Calls
from poolwatch.client.view import View, error_of
from poolwatch.postgres.pgbouncer import (
    SILENT_CONSOLE,
    Clients,
    Console,
    links_of,
    with_queue,
)
from poolwatch.protocol.sockets import Address

_NO_LINK = "its console proves no server session of this pool's holds now"


class Pooler:
    """The server sessions of holds behind PgBouncer, according to its console."""

    def __init__(self, dsn: str, calls: Calls) -> None:
        self._console = Console(dsn)
        self._calls = calls

    def with_links(
        self, views: Mapping[Address, View], limit: float
    ) -> dict[Address, View]:
        """The views with the links of their holds, or the console's error."""
        if not any(p.behind_pooler for v in views.values() for p in v.process.pools):
            return dict(views)
        began = time.monotonic()
        clients, error = self._read(limit)
        ended = time.monotonic()
        found = {}
        for address, view in views.items():
            window = began - view.ended, ended - view.began
            found[address] = replace(
                view,
                process=with_queue(view.process, clients, window),
                links=links_of(view.process, clients, window),
                linked_at=began,
                pooler_hint=error or _NO_LINK,
            )
        return found

    def confirmed(
        self, views: Mapping[Address, View], limit: float
    ) -> dict[Address, View]:
        """The views without the session-mode links that have ended meanwhile."""
        if not any(link.session for v in views.values() for link in v.links.values()):
            return dict(views)
        clients, _ = self._read(limit)
        now = time.monotonic()
        found = {}
        for address, view in views.items():
            window = (view.linked_at - view.ended, now - view.began)
            again = links_of(view.process, clients, window)
            links = {
                hold: link
                for hold, link in view.links.items()
                if not link.session or link.is_same(again.get(hold))
            }
            found[address] = replace(view, links=links)
        return found

    def _read(self, limit: float) -> tuple[Clients, str | None]:
        outcome = self._calls.run({"pooler": self._console.read}, limit)["pooler"]
        error = error_of(outcome, SILENT_CONSOLE)
        return ({}, error) if error is not None else (outcome.value, None)

    def close(self) -> None:
        """Close the connection, unless it waits for a PgBouncer that hangs."""
        if not self._calls.is_running("pooler"):
            self._console.close()
