"""Records of pools: figures, call sites, and what the ledger has noted."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import CodeType
from typing import NamedTuple

from poolwatch.model.terms import VIEWERS_ONLY, Distribution, Frame


@dataclass(frozen=True, slots=True)
class Counters:
    """What happened on a pool since it was instrumented.

    ``checkouts`` is always ``checkins`` plus the holds of the same snapshot.
    """

    checkouts: int
    checkins: int
    timeouts: int
    """Waits that ended with the pool's own timeout error."""
    connects: int
    closes: int
    invalidated: int
    collected: int
    """Holds that the garbage collector ended."""
    leaked: int
    """Holds ever found leaked, the collected ones among them."""


@dataclass(frozen=True, slots=True)
class PoolStats:
    """One instrumented pool. ``None`` where this kind of pool has no such number."""

    id: str
    name: str
    kind: str
    """Class name of the pool, e.g. ``QueuePool``."""
    url: str | None
    """Database URL, the password hidden."""
    size: int | None
    max_overflow: int | None
    """Connections allowed beyond ``size``; -1 is no limit."""
    timeout_s: float | None
    checked_out: int
    idle: int | None
    overflow: int | None
    waiting: int
    counters: Counters
    wait_s: Distribution
    hold_s: Distribution
    create_s: Distribution
    long_after_s: float | None = field(default=None, metadata=VIEWERS_ONLY)
    """Seconds after which a hold counts as long."""
    gave_up: int = field(default=0, metadata=VIEWERS_ONLY)
    """Waits that the application ended: by a cancelled task or an interrupt."""
    waiting_s_per_s: float = field(default=0.0, metadata=VIEWERS_ONLY)
    """Seconds waited per second, of all requests together, over the last minute."""
    most_wanted: int = field(default=0, metadata=VIEWERS_ONLY)
    """The most connections out or wanted at once, if more than the pool has; else 0."""
    switched_off: bool = field(default=False, metadata=VIEWERS_ONLY)
    """A hook has failed: since then nothing of this pool is recorded."""
    lost_slots: int = field(default=0, metadata=VIEWERS_ONLY)
    """Slots that the pool will never lend again: their connections have no holder."""
    unrecorded: int = field(default=0, metadata=VIEWERS_ONLY)
    """Checkouts from before the pool was instrumented, or that were not seen."""
    over: tuple[str, ...] = field(default=(), metadata=VIEWERS_ONLY)
    """Ids of the pools from which this one takes its connections."""
    slotless: int = field(default=0, metadata=VIEWERS_ONLY)
    """Holds without a slot: detached, or of the pool before ``dispose()``."""
    served_s: Distribution | None = field(default=None, metadata=VIEWERS_ONLY)
    """Waits of all requests that were served, those of open holds included."""
    extends: str | None = field(default=None, metadata=VIEWERS_ONLY)
    """Name of the pool class of the library, if ``kind`` is a subclass of it."""
    made_at: Frame | None = field(default=None, metadata=VIEWERS_ONLY)
    """The line that made it; None if poolwatch was not there, or a library made it."""
    behind_pooler: bool = field(default=False, metadata=VIEWERS_ONLY)
    """A pooler such as PgBouncer is in between: no connection has a backend of its own.
    """

    @property
    def out(self) -> int:
        """Slots that are out by the pool's own count, without the lost ones."""
        return self.checked_out - self.slotless + self.unrecorded

    @property
    def slots(self) -> int | None:
        """The most connections the pool was made for; None if unlimited or unknown."""
        if self.size is None or self.max_overflow is None or self.max_overflow < 0:
            return None
        return self.size + self.max_overflow or None

    @property
    def capacity(self) -> int | None:
        """The most connections the pool can lend: its slots without the lost ones."""
        slots = self.slots
        return None if slots is None else max(0, slots - self.lost_slots)


@dataclass(frozen=True, slots=True)
class Collected:
    """A call site whose connections the garbage collector has returned."""

    site: Frame
    count: int
    callers: tuple[Frame, ...] = ()
    """The callers that dropped them, if several share the call site."""
    stack: tuple[tuple[CodeType, int], ...] = ()
    """Code and instruction of each frame of such a checkout, innermost first."""


@dataclass(frozen=True, slots=True)
class MostlyOutsideSql:
    """A call site whose held time is mostly spent outside SQL."""

    site: Frame
    count: int
    """Holds that have ended."""
    held_s: float
    in_sql_s: float
    in_transaction_idle_s: float
    pool_wait_s: float = 0.0
    """Seconds of the held time in which the holder waited for another connection."""
    callers: tuple[Frame, ...] = ()
    """The callers that do so, if several share the call site."""


class NestedRequests(NamedTuple):
    """Nested requests at one pair of call sites, as the ledger has noted them."""

    outer: Frame | None
    """Call site of the connection that the holder already had."""
    inner: Frame | None
    callers: tuple[Frame | None, Frame | None]
    """Callers of both, where they share a call site."""
    who: str
    """The first such holder, e.g. ``thread MainThread``."""
    ago_s: float
    """Since the last of these requests."""
    times: int
    depth: int
    """The most connections that one such holder wanted at once."""
    outer_unused: bool = False
    """No statement had been sent over the outer one at any of these requests."""


class ConcurrentStatements(NamedTuple):
    """Statements that began on a connection while another one was running on it."""

    running: Frame | None
    """Where the one that was running had been sent."""
    begun: Frame | None
    callers: tuple[Frame | None, Frame | None]
    """Callers of both, where they share a call site."""
    checkout: Frame | None
    """Call site of the connection."""
    tasks: bool
    """Whether two tasks, not two threads, sent them."""
    ago_s: float
    """Since the last of them."""
    times: int


class InheritedUse(NamedTuple):
    """A call site that checked out a connection which the parent process had opened."""

    site: Frame | None
    backend_pid: int | None
    """Backend of the first such connection."""
    ago_s: float
    """Since the last such checkout."""


LATEST = 8
"""Calls whose times are in ``PoolOrigin.latest_s``."""


class PoolOrigin(NamedTuple):
    """The pools that one line has made for one database."""

    site: Frame
    url: str
    """The password hidden."""
    made: int
    pools: tuple[str, ...]
    """Ids of the pools that are alive, the newest last."""
    most_alive: int
    """The most pools that were alive at once."""
    latest_s: tuple[float, ...]
    """Seconds since each of the latest calls, the newest last."""
    together: int = 0
    """Pools that were made in the same call as an earlier one: a fixed set."""


class PoolSetup(NamedTuple):
    """How one pool is set up, and since when it is used."""

    purpose: object
    """Equal for pools that are set up alike; None if unknown."""
    own_creator: bool
    """Whether a function of the application provides the connections."""
    age_s: float
    """Since the pool was instrumented."""
    used_s: float | None
    """Since the last checkout, at most; None if there was none."""


@dataclass(frozen=True, slots=True)
class SiteStats:
    """Statistics of one call site on one pool since the pool was instrumented."""

    pool: str
    site: Frame
    count: int
    connections: float
    """Average number held at once: held time per elapsed time (Little's law)."""
    hold_s: Distribution
    wait_s: Distribution
    leaked: int
    in_sql_s: float | None = field(default=None, metadata=VIEWERS_ONLY)
    """Seconds that its ended holds spent in statements; None if none was seen."""
    in_transaction_idle_s: float | None = field(default=None, metadata=VIEWERS_ONLY)
    """Seconds that they spent in a transaction without a statement; None likewise."""
    wait_caused_s: float = field(default=0.0, metadata=VIEWERS_ONLY)
    """Seconds of others' waits while this call site had connections; each wait is
    divided among all call sites that had one when it began."""
    caller: Frame | None = field(default=None, metadata=VIEWERS_ONLY)
    """If set, the statistics are of this caller alone."""
    held_s: float = field(default=0.0, metadata=VIEWERS_ONLY)
    """Seconds held in all, open holds included."""
    path: str | None = field(default=None, metadata=VIEWERS_ONLY)
    """File of the call site, relative to the entry of ``sys.path`` it was found by."""


@dataclass(frozen=True, slots=True)
class LabelStats:
    """Statistics of one value of a label on one pool, like SiteStats."""

    pool: str
    label: str
    value: str
    count: int
    connections: float
    hold_s: Distribution
    wait_s: Distribution
    leaked: int
    in_sql_s: float | None
    in_transaction_idle_s: float | None
    wait_caused_s: float
    held_s: float = 0.0
