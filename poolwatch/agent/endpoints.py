"""The endpoints of the agent's HTTP server."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from threading import Event

from poolwatch.agent.recording import record
from poolwatch.agent.server import Server
from poolwatch.agent.server_view import ServerView
from poolwatch.agent.snapshots import LedgerSource
from poolwatch.agent.watchdog import PERIOD_S
from poolwatch.ledger.ledger import Ledger
from poolwatch.protocol import document, sockets
from poolwatch.runtime.gc_pause import undisturbed


def open_server(
    directory: Path | None,
    *,
    ledger: Ledger,
    source: LedgerSource,
    servers: ServerView,
    tick: Callable[[], None],
    unreachable: Callable[[Exception], None],
    stop: Event,
) -> Server:
    """Listen in ``directory``; ``stop`` ends a recording early.

    Raises UsageError if no path there can be used.
    """

    def snapshot(*, viewers: bool, compact: bool = False) -> str:
        """Free the snapshot's records before garbage collection resumes."""
        return undisturbed(
            lambda: document.to_json(
                source.snapshot(), viewers=viewers, compact=compact
            )
        )

    def trace(query: Mapping[str, str]) -> str:
        seconds = _seconds(query.get("seconds"))
        return document.list_to_json(record(ledger, seconds, stop), "traces")

    def readings(query: Mapping[str, str]) -> str:
        linger = _seconds(query.get("linger"))
        found = servers.readings(linger, everyone="sessions" in query)
        return document.list_to_json(found, "servers")

    return Server(
        sockets.new_path(sockets.runtime_directory(directory)),
        quick={
            "/snapshot": lambda _: snapshot(viewers=False),
            "/frozen": lambda _: source.incident_snapshots.document(),
            "/view": lambda query: snapshot(viewers=True, compact="compact" in query),
        },
        slow={"/trace": trace, "/servers": readings},
        idle=servers.close_idle,
        tick=tick,
        unreachable=unreachable,
        period_s=PERIOD_S,
    )


def _seconds(text: str | None) -> float:
    try:
        return float(text or 0)
    except ValueError:
        return 0.0
