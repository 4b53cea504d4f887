"""Evidence: the observed state of a hold, a pool or a server at one moment.

The agent and the viewer collect it. Verdicts and findings are pure functions of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple

from poolwatch.diagnosis.circumstances import Circumstance
from poolwatch.model import (
    Backend,
    ClosedConnection,
    Collected,
    ConcurrentStatements,
    FindingKind,
    Frame,
    Hold,
    InheritedUse,
    MostlyOutsideSql,
    NestedRequests,
    PoolSetup,
    PoolStats,
    Process,
    Wait,
)
from poolwatch.stacks.classify import Activity

if TYPE_CHECKING:
    from poolwatch.diagnosis.references.path import ReferencePath
    from poolwatch.diagnosis.wait_graph import Groups, Node


class Search(NamedTuple):
    """The result of a search for reference paths to one held connection."""

    path: ReferencePath | None
    """The path to report; None if no reference was found."""
    unseen: str | None = None
    """The threads and tasks that were not searched to the end, in words."""
    hidden: bool = False
    """A running frame may have the connection in no variable: see
    :mod:`poolwatch.diagnosis.references.hidden`."""
    pending: bool = False
    """A second search has to confirm the result before the hold is called leaked."""
    complete: bool = True
    """No root was left out, not even one that proves no use, such as a module."""

    @property
    def in_use(self) -> bool:
        """Whether a running or suspended frame has the connection."""
        return self.path is not None and self.path.in_use

    @property
    def proves_unused(self) -> bool:
        """Whether no code that runs, or will run, has the connection."""
        if self.in_use or self.pending or self.hidden:
            return False
        return self.unseen is None

    @property
    def used_by_holder(self) -> bool | None:
        """Whether the holder itself has the connection; None if unknown."""
        return None if self.path is None else self.path.same_holder


@dataclass(slots=True)
class HoldEvidence:
    """All evidence about one hold at one moment."""

    held_s: float
    """Seconds since the checkout; of an adopted hold, since its adoption."""
    long_after: float
    """Seconds after which a hold of this pool counts as long."""
    adopted: bool = False
    """It was out before it was seen: call site, holder and age are unknown. What is
    known of a holder (``now``, ``activity``) is then of the user of the connection."""
    user: str | None = None
    """That user, a thread or task, or else what keeps the connection, in words."""
    used_at: Frame | None = None
    """Where its frame is now that has the connection."""
    ended_owner: str | None = None
    """The thread or task that is the holder, in words, if it has ended."""
    long_hold: str | None = None
    """The declared reason for a long hold."""
    kept: str | None = None
    """The work for which a framework keeps the connection of its thread, in words."""
    framework: Literal["thread", "persistent"] | None = None
    """A framework has checked it out for its thread, or has kept it open for further
    work of that thread."""
    own_connection: bool = False
    """It is the thread's own connection, idle between requests and transactions."""
    detached: bool = False
    """The application has detached the connection from the pool."""
    dropped: bool = False
    """Only the pool itself still refers to the connection."""
    statement_s: float | None = None
    """Seconds that the current statement has been running; None between statements."""
    unused_s: float | None = None
    """Seconds since the last statement ended; None before the first statement."""
    used: tuple[Frame, ...] = ()
    """The stack that sent the last statement; only set for a long hold."""
    known_use: str | None = None
    """What shows that code uses the connection, whatever refers to it, in words."""
    by_others: bool = False
    """A thread or task that did not check the connection out has used it."""
    inherited: bool = False
    """The connection was opened by the parent process, before a fork."""
    stack: tuple[Frame, ...] = ()
    """The stack that checked the connection out, innermost frame first."""
    now: tuple[Frame, ...] = ()
    """The holder's stack now, innermost frame first."""
    frames_at_checkout: int = 0
    """Number of the application's frames in ``stack``; 0 unless the hold is long."""
    frames_left: int = 0
    """How many of these frames are still in ``now``; 0 unless the hold is long."""
    activity: Activity | None = None
    """The holder's current activity; only set for a long hold."""
    site: Frame | None = None
    """The call site."""
    owner: object = None
    """The thread or task that is the holder: equal for all its requests."""
    one_of_several: bool = False
    """The owner has other holds or waits on the same pool."""
    called_again: bool = False
    """The function on the stack is in a later call: it has requested another connection
    since, or its callers or variables show it. So the stack does not show who uses this
    connection."""
    loop_stopped: bool = False
    """The holder is a task of an event loop that is stopped at the moment."""
    stack_changed: bool = False
    """The number of frames left has changed while the evidence was collected."""
    nested: bool = False
    """The ledger has noted this hold as the outer or inner one of nested requests."""
    at_standstill: bool = False
    """All connections of its pool are out, and nothing has moved in it lately."""
    users: tuple[Node, ...] | None = None
    """Users of the connection, as nodes of the wait graph; empty if no variable
    was found that refers to it, None if it is not known."""
    search: Search | None = None
    """None if there was no search."""
    circumstances: tuple[Circumstance, ...] = ()
    """Facts that decide the remedy; only set for a hold that a finding is about."""
    no_statement: bool = False
    """No statement was sent over the connection, where statements are recorded."""


class JudgedHold(NamedTuple):
    """A hold with its verdict, and the evidence for it."""

    hold: Hold
    kind: FindingKind | None
    """The finding that the verdict amounts to, if any."""
    evidence: HoldEvidence


class FailedCall(NamedTuple):
    """A request for a connection, or a return, that ended with an exception."""

    site: Frame | None
    error: str | None
    """The class of the exception; None for a return that was not completed."""
    ago_s: float


class MissingSlot(NamedTuple):
    """A lost slot that was found by the pool's own count."""

    since_s: float
    failed: tuple[FailedCall, ...]
    """All that failed when it was lost. If it is one call, that one lost it."""


class OpenWait(NamedTuple):
    """A wait, and the thread or task that waits."""

    wait: Wait
    owner: object


BlockedKind = Literal["thread", "task", "event loop", "limiter", "executor", "lock"]


class Blocked(NamedTuple):
    """What a thread, a task or the like waits for: a node of the wait graph."""

    kind: BlockedKind
    needs: Groups
    """It goes on when one node of each group has."""
    name: str = ""
    at: Frame | None = None
    """Where it waits."""
    size: int = 0
    """How many threads a limiter or an executor allows."""


@dataclass(frozen=True, slots=True)
class PoolEvidence:
    """All evidence about one pool at one moment."""

    stats: PoolStats
    holds: Sequence[JudgedHold] = ()
    waits: Sequence[OpenWait] = ()
    collected: Sequence[Collected] = ()
    collected_in: Mapping[Frame, tuple[Circumstance, ...]] = field(default_factory=dict)
    """The circumstances of each call site in ``collected``."""
    outside: Sequence[MostlyOutsideSql] = ()
    inherited: Sequence[InheritedUse] = ()
    nested: Sequence[NestedRequests] = ()
    """Nested requests that the ledger has noted so far."""
    concurrent: Sequence[ConcurrentStatements] = ()
    """Concurrent statements that the ledger has noted so far."""
    missing: Sequence[MissingSlot] = ()
    lent: Sequence[Hold] = ()
    """Holds of a pool over this one, whose connections are of this one."""
    lent_idle: int = 0
    """Connections of this one that are idle in a pool over it."""
    shared: bool = False
    """All requests get the same connection, so none waits for another."""
    setup: PoolSetup | None = None
    blocked: Mapping[Node, Blocked] = field(default_factory=dict)
    """What the threads and tasks of the process wait for, as far as it is known."""
    per_thread: bool = False
    """Every thread opens a connection of its own, as it is meant to."""


@dataclass(frozen=True, slots=True)
class ServerEvidence:
    """One process whose holds are joined with the rows of their servers."""

    process: Process
    stray_sessions: Sequence[tuple[ClosedConnection, Backend]] = ()
    """Connections that the application has closed, with their remaining backends."""
    missing: frozenset[str] = frozenset()
    """Ids of holds without a backend on the server."""
