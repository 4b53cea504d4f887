"""Records of guarded actions: which backend is meant, and what came of it.

Only viewers import this module; an application does not load it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, Protocol

from poolwatch.model.requests import Connection, ServerRow

Action = Literal["cancel", "terminate"]
"""Cancel the running statement, or end the session (``pg_terminate_backend``)."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """The session that the user has selected, as the dashboard shows it."""

    pid: int
    server: str
    """Identity of its server."""
    connection: Connection
    """The facts that prove which backend is meant."""
    seen: tuple[float, float]
    """These facts were read between these times of ``time.monotonic()``."""
    xact_age_s: float | None = None
    """Seconds since the beginning of the transaction that the user has seen."""
    process: str | None = None
    """Name, pid and host of its process; None if it is not instrumented."""
    site: str | None = None
    """Its call site, and the caller."""
    sites: Mapping[int, str] = field(default_factory=dict)
    """By pid: call sites of the other sessions of that server."""


class Waiter(NamedTuple):
    """A session that waits for a lock."""

    pid: int
    application: str | None
    query_started: str | None
    """When its statement began, as the server prints it."""


@dataclass(frozen=True, slots=True)
class Target:
    """The backend of the chosen session, read afresh, and proven to be the same."""

    chosen: Chosen
    started: str
    """``backend_start`` in seconds since the epoch, to the microsecond."""
    xact_started: str | None
    query_started: str | None
    statement_hash: str | None
    row: ServerRow
    user: str | None
    database: str | None
    application: str | None
    client: str | None
    """Its IP address; None for a Unix socket."""
    frees: tuple[Waiter, ...]
    """The sessions that wait for its locks and for nobody else, transitively."""
    behind_others: tuple[Waiter, ...]
    """Those that wait for its locks and also for those of others."""

    @property
    def is_running(self) -> bool:
        """Whether it runs a statement that can be cancelled."""
        return self.row.state in ("active", "fastpath function call")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was observed after an action, or why it was not taken."""

    done: bool
    """The backend was seen to be gone, or its statement to have ended."""
    text: str
    """One or two sentences."""


class Actions(Protocol):
    """Cancels and ends sessions of one server. Both calls may take seconds."""

    def look(self, chosen: Chosen) -> Target:
        """Read the backend of a session; raises PoolwatchError if it is not proven."""
        ...

    def act(self, action: Action, target: Target) -> Outcome:
        """Act if the target is still what was read; raises PoolwatchError."""
        ...
