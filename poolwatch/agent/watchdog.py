"""The watchdog: logs each leak, and the first time a pool is full, once.

It runs in the agent's thread, every second. In an application without leaks it only
reads a few numbers. It takes a snapshot only if a hold is over its threshold, or if the
thread or task that checked it out has ended.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from weakref import WeakKeyDictionary, WeakSet

from poolwatch.agent.records import missing_slot
from poolwatch.agent.snapshots import LedgerSource
from poolwatch.diagnosis.pools import lost_slot
from poolwatch.ledger import site_costs
from poolwatch.ledger.checkout import Checkout, Gauges
from poolwatch.ledger.inherited import InheritedCheckouts
from poolwatch.ledger.ledger import Ledger
from poolwatch.ledger.nesting import Nesting
from poolwatch.ledger.pool import PoolLedger
from poolwatch.model import Frame, Hold
from poolwatch.runtime.guard import log
from poolwatch.stacks.capture import CapturedStack
from poolwatch.text.format import (
    duration,
    lasts,
    one_line,
    place,
    plural,
    site_and_callers,
)

PERIOD_S = 1.0
_RECHECK_S = 5.0
"""Minimum time before the same suspects are examined again."""
_PAUSE_PER_COST = 50
"""The pause is at least this many times the CPU cost: 2 % of a core."""
_MAX_REPORTED = 1000
_MAX_FRAMES = 12
"""Frames of a stack in the log."""


@dataclass(frozen=True, slots=True)
class _Reported:
    pool: str
    site: Frame | None
    checked_out_at: float


class Watchdog:
    """Logs each leak once, and again when the connection is returned."""

    def __init__(self, source: LedgerSource, ledger: Ledger) -> None:
        self._source = source
        self._ledger = ledger
        self._reported: dict[int, _Reported] = {}
        self._collected: dict[tuple[str, Frame], int] = {}
        self._nestings: set[tuple[str, Frame | None, Frame | None]] = set()
        self._shared: set[tuple[str, Frame | None]] = set()
        self._full: WeakSet[PoolLedger] = WeakSet()
        """Pools that have been logged as full."""
        self._lost: WeakKeyDictionary[PoolLedger, int] = WeakKeyDictionary()
        """The lost slots of each pool that were logged."""
        self._suspects: frozenset[int] = frozenset()
        self._next_check = 0.0
        self._next_incident_snapshot = 0.0

    def tick(self) -> None:
        """Check all pools once."""
        now = time.monotonic()
        pools = list(self._ledger.pools.values())
        self._log_returned(pools, now)
        self._log_collected(pools)
        for pool in pools:
            pool.find_dropped()
            pool.mark(now)
            if not pool.switched_off():  # else holds are not recorded any more
                self._log_full(pool, _compared(pool, now))
            self._log_lost(pool, now)
            self._log_nested(pool)
            self._log_fork_shared(pool)
        if now >= self._next_incident_snapshot and any(
            self._needs_incident_snapshot(each, now) for each in pools
        ):
            began = time.thread_time()
            self._source.process()  # also takes the incident snapshot
            self._next_incident_snapshot = now + _PAUSE_PER_COST * (
                time.thread_time() - began
            )
        suspects = frozenset(
            id(hold)
            for pool in pools
            for hold in pool.recorded_holds()
            if _is_suspicious(hold, pool, now)
            if hold.number not in self._reported
        )
        if suspects and (suspects != self._suspects or now >= self._next_check):
            began = time.thread_time()
            self._log_leaked(now)
            cost = time.thread_time() - began
            unconfirmed = self._source.awaits_confirmation()
            pause = 0.0 if unconfirmed else max(_RECHECK_S, _PAUSE_PER_COST * cost)
            self._suspects, self._next_check = suspects, now + pause

    def _needs_incident_snapshot(self, pool: PoolLedger, now: float) -> bool:
        """Whether requests are waiting and an incident snapshot of that is missing."""
        has = self._source.incident_snapshots.has
        if has(pool.id, "exhausted") and has(pool.id, "pool_deadlock"):
            return False
        return bool(pool.open_waits(now))

    def _log_leaked(self, now: float) -> None:
        """Log new leaks that the ledger has counted."""
        process = self._source.process()
        names = {pool.id: pool.name for pool in process.pools}
        by_site: dict[tuple[str, Frame | None], list[Hold]] = defaultdict(list)
        counted = {
            hold.number
            for pool in list(self._ledger.pools.values())
            for hold in pool.recorded_holds()
            if hold.leaked
        }
        for hold in process.holds:
            number = int(hold.id[1:])
            if hold.verdict != "leaked" or number not in counted:
                continue
            if number in self._reported:
                continue
            self._reported[number] = _Reported(hold.pool, hold.site, now - hold.known_s)
            by_site[hold.pool, hold.site].append(hold)
        for (pool_id, _), holds in by_site.items():
            log().warning("%s", _leak_text(holds, names.get(pool_id, "?")))

    def _log_returned(self, pools: list[PoolLedger], now: float) -> None:
        if not self._reported:
            return
        out = {hold.number for pool in pools for hold in pool.recorded_holds()}
        by_site: dict[tuple[str, Frame | None], list[_Reported]] = defaultdict(list)
        for number in [each for each in self._reported if each not in out]:
            leak = self._reported.pop(number)
            by_site[leak.pool, leak.site].append(leak)
        for (_, site), returned in by_site.items():
            log().info(
                "%s leaked at %s returned after %s",
                "the connection"
                if len(returned) == 1
                else f"{len(returned)} connections",
                place(site),
                duration(now - min(leak.checked_out_at for leak in returned)),
            )

    def _log_full(self, pool: PoolLedger, gauges: Gauges) -> None:
        """Log once when a pool first becomes full, with the holders by call site."""
        if pool in self._full:
            return
        stacks, more = pool.first_full, "and another one was requested"
        if stacks is None:
            size, overflow = gauges.size or 0, gauges.max_overflow or 0
            if not size or overflow <= 0:
                return
            if len(pool.holds) < size + overflow:
                return
            stacks = [hold.stack for hold in list(pool.holds.values())]
            more = "the overflow included"
        self._full.add(pool)
        log().warning("%s", _full_text(pool.name, stacks, more))

    def _log_nested(self, pool: PoolLedger) -> None:
        """Log each pair of call sites once, with both stacks."""
        for nesting in list(pool.nestings.seen.values()):
            if nesting.logged:
                continue
            nesting.logged = True
            pair = pool.id, nesting.outer.site(), nesting.inner.site()
            if pair not in self._nestings and len(self._nestings) < _MAX_REPORTED:
                self._nestings.add(pair)
                log().info("%s", _nested_text(nesting, pool.name))

    def _log_fork_shared(self, pool: PoolLedger) -> None:
        """Log once each call site that checks out connections of the parent process."""
        for use in list(pool.inherited.values()):
            if use.logged:
                continue
            use.logged = True
            site = pool.id, use.stack.site()
            if site not in self._shared and len(self._shared) < _MAX_REPORTED:
                self._shared.add(site)
                log().warning("%s", _fork_shared_text(use, pool.name))

    def _log_lost(self, pool: PoolLedger, now: float) -> None:
        """Log each lost slot once. Those of dropped connections are logged as leaks."""
        missing = list(pool.slots.missing)
        if len(missing) > self._lost.get(pool, 0):
            evidence = [missing_slot(now, slot) for slot in missing]
            for finding in lost_slot(pool.stats(0, 0), evidence):
                log().warning("%s", one_line(f"{finding.text}. {finding.remedy}"))
        if missing or pool in self._lost:
            self._lost[pool] = len(missing)

    def _log_collected(self, pools: list[PoolLedger]) -> None:
        for pool in pools:
            for collected in site_costs.collected(pool.by_site()):
                site, count = collected.site, collected.count
                new = count - self._collected.get((pool.id, site), 0)
                if new <= 0:
                    continue
                if len(self._collected) >= _MAX_REPORTED:
                    self._collected.clear()
                self._collected[pool.id, site] = count
                log().warning(
                    "leak on pool %s: %s checked out at %s %s",
                    one_line(repr(pool.name)),
                    plural(new, "connection"),
                    site_and_callers(site, *collected.callers),
                    _dropped_text(pool),
                )


def _compared(pool: PoolLedger, now: float) -> Gauges:
    """Read the gauges of a pool, once per tick, and compare its slots with them."""
    with suppress(Exception):  # a pool class of the application
        gauges = pool.gauges()
        pool.slots.compare(now, gauges)
        return gauges
    return Gauges()


def _dropped_text(pool: PoolLedger) -> str:
    """Describe what happened to dropped connections."""
    if pool.slots.dropped:
        lost = plural(pool.slots.dropped, "slot")
        return f"dropped: the pool does not replace them, {lost} lost so far"
    return "returned by garbage collection only: no close() reached the pool"


def _is_suspicious(hold: Checkout, pool: PoolLedger, now: float) -> bool:
    if hold.is_dropped():
        return True
    if hold.context.long_hold:
        return False
    return (
        now - hold.checked_out_at >= pool.long_after or hold.ended_owner() is not None
    )


def _leak_text(holds: Sequence[Hold], pool: str) -> str:
    """Return the log entry for the new leaks of one call site, with the oldest one."""
    hold = max(holds, key=lambda each: each.known_s)
    function = f" in {hold.site.function}" if hold.site else ""
    if len(holds) > 1:
        function += f" (and {len(holds) - 1} more there)"
    where = site_and_callers(hold.site, *(each.caller for each in holds))
    lines = [
        one_line(
            f"leak on pool {pool!r}: connection checked out at {where}{function}, "
            f"{lasts(hold)} ago, is still not returned"
        ),
        *(f"  {one_line(each)}" for each in hold.evidence),
        *_stack_lines("checked out here", hold.stack),
    ]
    if hold.used and hold.used[:1] != hold.stack[:1]:
        lines += _stack_lines("last used here", hold.used)
    return "\n  ".join(lines)


def _nested_text(nesting: Nesting, pool: str) -> str:
    outer, inner = nesting.callers
    lines = [
        one_line(
            f"nested on pool {pool!r}: {nesting.who} checks out a connection "
            f"at {site_and_callers(nesting.inner.site(), inner)} while it holds one "
            f"checked out at {site_and_callers(nesting.outer.site(), outer)}; once "
            "such callers hold every connection of the pool, they deadlock"
        ),
        *_stack_lines("the first", nesting.outer.frames()),
        *_stack_lines("the second", nesting.inner.frames()),
    ]
    return "\n  ".join(lines)


def _full_text(pool: str, stacks: Sequence[CapturedStack], more: str) -> str:
    """Return the log entry for a pool without a free connection."""
    sites = Counter(place(stack.site()) for stack in stacks).most_common()
    held = ", ".join(f"{site} ({count})" for site, count in sites[:_MAX_FRAMES])
    rest = sum(count for _, count in sites[_MAX_FRAMES:])
    if rest:
        held += f", and {rest} more"
    out = f"{plural(len(stacks), 'connection')} out"
    return one_line(
        f"pool {pool!r} is full for the first time: {out}, {more}; held by {held} "
        "(logged once; poolwatch ps shows the holders)"
    )


def _fork_shared_text(use: InheritedCheckouts, pool: str) -> str:
    lines = [
        one_line(
            f"fork_shared on pool {pool!r}: a connection that was opened before the "
            f"process forked was checked out at {place(use.stack.site())}; "
            "parent and child share one session of the server"
        ),
        *_stack_lines("checked out here", use.stack.frames()),
    ]
    return "\n  ".join(lines)


def _stack_lines(title: str, stack: Sequence[Frame]) -> list[str]:
    return [
        f"  {title}:",
        *(
            "  "
            + one_line(f'File "{frame.file}", line {frame.line}, in {frame.function}')
            for frame in stack[:_MAX_FRAMES]
        ),
    ]
