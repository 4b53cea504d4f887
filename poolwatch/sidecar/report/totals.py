"""Sums of the minutes of a history: by pool, by call site, by label, over time.

However long the history and however large the fleet, the outcome is small: minutes are
added up as they are read, and the time line has a limited number of steps.
"""

from __future__ import annotations

import math
from array import array
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from poolwatch.model import BUCKETS, Frame

if TYPE_CHECKING:
    from poolwatch.sidecar.history.reading import LabelMinute, PoolMinute, SiteMinute

T = TypeVar("T")

MINUTE_S = 60
MAX_STEPS = 480
"""As many as a plot has room for."""
_STEPS_MIN = (1, 2, 5, 10, 15, 30, 60, 120, 240, 480, 1440)


class TimeLine(NamedTuple):
    """A stretch of time in equal steps, each of whole minutes."""

    since: int
    """The first second of the first step."""
    step_s: int
    steps: int
    begin: float
    """The first moment of the stretch, within the first minute."""
    end: float

    def part_of(self, minute: int) -> float:
        """Return which part of a minute belongs to the stretch."""
        seconds = min(minute + MINUTE_S, self.end) - max(minute, self.begin)
        return max(seconds, 1.0) / MINUTE_S

    def step_of(self, minute: int) -> int | None:
        """Return the number of the step that has a minute; None if it is outside."""
        step = (minute - self.since) // self.step_s
        return step if 0 <= step < self.steps else None


def time_line(since: float, until: float) -> TimeLine:
    """Divide a stretch of time."""
    first = math.floor(since / MINUTE_S) * MINUTE_S
    minutes = max(1, math.ceil((until - first) / MINUTE_S))
    wanted = minutes / MAX_STEPS
    step = next((each for each in _STEPS_MIN if each >= wanted), math.ceil(wanted))
    steps = math.ceil(minutes / step)
    return TimeLine(first, step * MINUTE_S, steps, since, until)


@dataclass(slots=True)
class Durations:
    """A histogram of waits or of holds."""

    count: int = 0
    up_to: list[int] = field(default_factory=lambda: [0] * len(BUCKETS))

    def add(self, count: int, up_to: Sequence[int] | None) -> None:
        """Add those of a minute."""
        if up_to and len(up_to) == len(BUCKETS):
            self.count += count
            self.up_to = [a + b for a, b in zip(self.up_to, up_to, strict=True)]

    def within(self, share: float) -> float | None:
        """Return the bound that this share of them did not exceed.

        Infinite if it is beyond the last bound, None without samples.
        """
        if not self.count:
            return None
        pairs = zip(BUCKETS, self.up_to, strict=True)
        return next((b for b, n in pairs if n >= share * self.count), math.inf)

    @property
    def parts(self) -> list[int]:
        """How many were in each bucket, those beyond the last bound at the end."""
        edges = [0, *self.up_to, self.count]
        return [high - low for low, high in pairwise(edges)]


class PoolKey(NamedTuple):
    """The pools of one name in all processes of one service."""

    service: str
    pool: str


class PoolTotals:
    """The pools of one name, added up over their processes."""

    def __init__(self, steps: int) -> None:
        self.out = array("d", [0.0] * steps)
        """Mean number of connections out, summed over the minutes of each step."""
        self.waiting = array("d", [0.0] * steps)
        self.out_peak = array("q", [0] * steps)
        """The most in a minute of each step, the peaks of the processes added up."""
        self.waiting_peak = array("q", [0] * steps)
        self.limit: int | None = 0
        """The most connections that they could lend at once; None if unlimited."""
        self.checkouts = self.timeouts = self.leaked = 0
        self.waits = Durations()
        self.holds = Durations()

    def add(self, minute: PoolMinute) -> None:
        """Add what happened in a minute of one process."""
        self.checkouts += minute.checkouts
        self.timeouts += minute.timeouts
        self.leaked += minute.leaked
        self.waits.add(minute.wait_count, minute.wait_up_to)
        self.holds.add(minute.hold_count, minute.hold_up_to)

    def merge(self, other: PoolTotals) -> None:
        """Add the time lines and durations of another pool."""
        for name in ("out", "waiting", "out_peak", "waiting_peak"):
            mine = getattr(self, name)
            for step, value in enumerate(getattr(other, name)):
                mine[step] += value
        for mine, theirs in ((self.waits, other.waits), (self.holds, other.holds)):
            mine.add(theirs.count, theirs.up_to)


@dataclass(slots=True)
class _Moment:
    """A minute of the pools of one name, over their processes."""

    out: float = 0.0
    waiting: float = 0.0
    out_peak: int = 0
    waiting_peak: int = 0
    slots: float = 0.0
    """Infinite if a pool has no limit."""

    def add(self, minute: PoolMinute) -> None:
        looks = minute.looks or 1
        self.out += minute.out_sum / looks
        self.waiting += minute.waiting_sum / looks
        self.out_peak += minute.out_max
        self.waiting_peak += minute.waiting_max
        size, overflow = minute.size, minute.max_overflow
        limited = size is not None and overflow is not None and overflow >= 0
        self.slots += (size or 0) + (overflow or 0) if limited else math.inf

    def add_to(self, pool: PoolTotals, step: int, part: float) -> None:
        pool.out[step] += self.out * part
        pool.waiting[step] += self.waiting * part
        pool.out_peak[step] = max(pool.out_peak[step], self.out_peak)
        pool.waiting_peak[step] = max(pool.waiting_peak[step], self.waiting_peak)
        if pool.limit is not None:
            slots = self.slots
            pool.limit = None if math.isinf(slots) else max(pool.limit, int(slots))


@dataclass(slots=True)
class Usage:
    """The part of one call site, or of one value of a label."""

    held: array[float]
    """Connection-seconds in each step; of a label in one sum."""
    count: int = 0
    wait_caused_s: float = 0.0
    leaked: int = 0

    @property
    def held_s(self) -> float:
        """Connection-seconds in all."""
        return sum(self.held)

    def add(self, minute: SiteMinute | LabelMinute, step: int) -> None:
        """Add a minute of one process."""
        self.held[step] += minute.held_s
        self.count += minute.count
        self.wait_caused_s += minute.wait_caused_s
        self.leaked += minute.leaked


class Totals:
    """What a stretch of history adds up to."""

    def __init__(self, line: TimeLine) -> None:
        self.line = line
        self.covered = [0.0] * line.steps
        """Minutes of each step in which somebody looked."""
        self.pools: dict[PoolKey, PoolTotals] = {}
        self.sites: dict[Frame, Usage] = {}
        """By call site; its file is relative to the ``sys.path``, where that is known,
        so that it is the same on all hosts."""
        self.labels: dict[str, dict[str, Usage]] = defaultdict(dict)
        self.processes: set[tuple[str, int, float]] = set()

    def mean(self, sums: Sequence[float]) -> list[float | None]:
        """Return the means of a pool's steps; None where nobody looked."""
        pairs = zip(sums, self.covered, strict=True)
        return [round(value / n, 2) if n else None for value, n in pairs]

    def seen(self, values: Sequence[int]) -> list[int | None]:
        """Return the values of steps; None where nobody looked."""
        pairs = zip(values, self.covered, strict=True)
        return [value if n else None for value, n in pairs]

    def add_pools(self, minutes: Iterable[PoolMinute]) -> None:
        """Add minutes of pools: all those of a minute in one call."""
        moments: dict[tuple[PoolKey, int], _Moment] = defaultdict(_Moment)
        seen: set[int] = set()
        for each in minutes:
            step = self.line.step_of(each.minute)
            if step is None:
                continue
            if each.minute not in seen:
                seen.add(each.minute)
                self.covered[step] += self.line.part_of(each.minute)
            self.processes.add((each.host, each.pid, each.started_at))
            key = PoolKey(each.service, each.pool)
            moments[key, each.minute].add(each)
            self._pool(key).add(each)
        for (key, minute), moment in moments.items():
            step = (minute - self.line.since) // self.line.step_s
            moment.add_to(self._pool(key), step, self.line.part_of(minute))

    def add_sites(self, minutes: Iterable[SiteMinute]) -> None:
        """Add minutes of call sites."""
        for each in minutes:
            step = self.line.step_of(each.minute)
            if step is not None:
                site = Frame(each.path or each.file, each.line, each.function)
                self._usage(self.sites, site, self.line.steps).add(each, step)

    def add_labels(self, minutes: Iterable[LabelMinute]) -> None:
        """Add minutes of labels."""
        for each in minutes:
            if self.line.step_of(each.minute) is not None:
                self._usage(self.labels[each.label], each.value, 1).add(each, 0)

    def _pool(self, key: PoolKey) -> PoolTotals:
        found = self.pools.get(key)
        if found is None:
            found = self.pools[key] = PoolTotals(self.line.steps)
        return found

    def _usage(self, known: dict[T, Usage], key: T, steps: int) -> Usage:
        found = known.get(key)
        if found is None:
            found = known[key] = Usage(array("d", [0.0] * steps))
        return found
