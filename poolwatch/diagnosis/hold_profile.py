"""The hold profile: connection-seconds by stack.

The application counts how long each call site has held connections; that is exact. How
this time divides among the stacks that led to a call site is known only for the holds
that a look has seen. Such a hold counts with the time by which it was seen to grow.
When it has ended, it also stands for others that ended unseen, for at most the time
until the next look. The rest of the time stands under the call site alone, with the
caller if its statistics are known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from poolwatch.model import Frame, Hold, Process, Snapshot
from poolwatch.text.naming import with_names

Stack = tuple[Frame, ...]
"""Outermost first: the process and the pool as frames without a file, the callers, and
the call site."""
Profile = dict[Stack, float]

_ROUNDING_S = 0.001
"""Holds and call sites are not read at exactly the same time."""
_MAX_DIFFERENCE = 0.01
"""Share by which the callers of a call site may differ from it, for the same reason."""


class Group(NamedTuple):
    """Holds whose exact time is known: of one call site, or of one caller there."""

    process: str
    pool: str
    site: Frame
    caller: Frame | None = None

    def stack(self, frames: Iterable[Frame]) -> Stack:
        """Frames of the application below its process and pool."""
        return (Frame("", 0, self.process), Frame("", 0, f"pool {self.pool}"), *frames)


@dataclass(slots=True)
class _Share:
    """The share that the holds of one stack have in the time of their group."""

    seen_s: float = 0.0
    unseen_s: float = 0.0
    """Between the last look at each hold and the next one, which did not find it."""


class _SeenHold(NamedTuple):
    group: Group
    stack: Stack
    held_s: float


_Site = tuple[str, Frame]
"""The id of a pool, and a call site."""


@dataclass(slots=True)
class _Seen:
    """One process at the last look at it."""

    at: float
    holds: Mapping[str, _SeenHold] = field(default_factory=dict)
    sites: Mapping[_Site, float] = field(default_factory=dict)
    callers: Mapping[_Site, Mapping[Frame | None, float]] = field(default_factory=dict)


class HoldProfile:
    """Adds up connection-seconds, look by look."""

    def __init__(self) -> None:
        self._exact: dict[Group, float] = defaultdict(float)
        self._shares: dict[Group, dict[Stack, _Share]] = defaultdict(dict)
        self._processes: dict[object, _Seen] = {}
        self._last: tuple[float, Snapshot] | None = None

    def look(self, at: float, snapshot: Snapshot) -> None:
        """Add what has happened since the look before; the first one adds nothing.

        ``at`` is in seconds, on any clock.
        """
        for process in snapshot.processes:
            before = self._processes.get(_identity(process))
            now = _Seen(at, sites=_sites(process), callers=_callers(process))
            split: Mapping[_Site, Mapping[Frame | None, float]] = now.callers
            if before is None and not self._is_new(process):
                self.see(at, process, unseen_s=0.0, split=split)
            else:
                split = self._add_growth(process, before or _Seen(at), now)
                self.see(at, process, split=split)
            seen = self._processes[_identity(process)]
            seen.sites, seen.callers = now.sites, now.callers
        self._last = at, snapshot

    def see(
        self,
        at: float,
        process: Process,
        *,
        unseen_s: float = float("inf"),
        split: Mapping[_Site, Mapping[Frame | None, float]] | None = None,
    ) -> None:
        """Note the holds of a process; count() says how long they were in all.

        ``unseen_s``: what counts at most of a hold in a process that is seen for the
        first time. ``split``: call sites that are counted caller by caller.
        """
        who = _identity(process)
        before = self._processes.get(who)
        names = _pool_names(process)
        holds: dict[str, _SeenHold] = {}
        for hold in process.holds:
            if hold.site is None or hold.pool not in names:
                continue
            callers = (split or {}).get((hold.pool, hold.site), ())
            caller = hold.caller if hold.caller in callers else None
            group = Group(_name(process), names[hold.pool], hold.site, caller)
            seen = holds[hold.id] = _SeenHold(group, _stack_of(hold), hold.known_s)
            if before is None:
                grown = min(hold.known_s, unseen_s)
            else:
                known = before.holds.get(hold.id)
                grown = hold.known_s - (known.held_s if known else 0.0)
            self._share(seen).seen_s += max(0.0, grown)
        if before is not None:
            self._end_holds(before, at, holds)
        self._processes[who] = _Seen(at, holds)

    def end(self, at: float) -> None:
        """Nobody has looked since the last look at each process, until ``at``."""
        for seen in self._processes.values():
            self._end_holds(seen, at)

    def count(self, group: Group, seconds: float) -> None:
        """Add exact seconds."""
        self._exact[group] += seconds

    def by_stack(self) -> Profile:
        """Return the seconds of each stack; their sum is the sum of all that counts."""
        found: Profile = defaultdict(float)
        for group, exact in self._exact.items():
            shares = self._shares.get(group, {})
            seen = sum(each.seen_s for each in shares.values())
            unseen = sum(each.unseen_s for each in shares.values())
            known = 1.0
            if seen > 0 and exact < seen + _ROUNDING_S:
                known = exact / seen
            rest = exact - seen * known
            part = min(1.0, rest / unseen) if unseen > 0 else 0.0
            for stack, share in shares.items():
                found[stack] += share.seen_s * known + share.unseen_s * part
            alone = (group.caller, group.site) if group.caller else (group.site,)
            found[group.stack(alone)] += rest - unseen * part
        return {stack: seconds for stack, seconds in found.items() if seconds > 1e-9}

    def _is_new(self, process: Process) -> bool:
        """Whether a process was not there at the look before."""
        if self._last is None:
            return False
        listed = self._last[1].unreachable
        return not any(each.may_be(process) for each in listed)

    def _add_growth(
        self, process: Process, before: _Seen, now: _Seen
    ) -> dict[_Site, Mapping[Frame | None, float]]:
        """Count what each call site has grown by.

        Returns the callers of those sites that were counted caller by caller.
        """
        names = _pool_names(process)
        split: dict[_Site, Mapping[Frame | None, float]] = {}
        holders: dict[_Site, set[Frame | None]] = defaultdict(set)
        for hold in process.holds:
            if hold.site is not None:
                holders[hold.pool, hold.site].add(hold.caller)
        for key, held in now.sites.items():
            grown = held - before.sites.get(key, 0.0)
            if grown <= 0 or key[0] not in names:
                continue
            group = Group(_name(process), names[key[0]], key[1])
            parts = _parts(now.callers.get(key, {}), before.callers.get(key, {}))
            total = sum(parts.values())
            if abs(total - grown) > grown * _MAX_DIFFERENCE or holders[key] - set(
                parts
            ):
                self.count(group, grown)
                continue
            split[key] = parts
            for caller, part in parts.items():
                self.count(group._replace(caller=caller), part * grown / total)
        return split

    def _end_holds(
        self,
        before: _Seen,
        at: float,
        open_holds: Mapping[str, _SeenHold] | None = None,
    ) -> None:
        for each in before.holds.keys() - (open_holds or {}).keys():
            share = self._share(before.holds[each])
            share.unseen_s += max(0.0, at - before.at)

    def _share(self, seen: _SeenHold) -> _Share:
        shares = self._shares[seen.group]
        return shares.setdefault(seen.group.stack(seen.stack), _Share())


def hold_profile(looks: Iterable[tuple[float, Snapshot]]) -> Profile:
    """Return the profile of the time between the first look and the last."""
    found = HoldProfile()
    for at, snapshot in looks:
        found.look(at, snapshot)
    return found.by_stack()


def _identity(process: Process) -> object:
    return process.host, process.pid, process.started_at


def _name(process: Process) -> str:
    """Without the number of a worker: equal stacks of all workers are one."""
    return process.name or process.program


def _pool_names(process: Process) -> dict[str, str]:
    return {pool.id: pool.name for pool in with_names(process).pools}


def _stack_of(hold: Hold) -> Stack:
    """The stack from outside to the call site, without the library frames inside."""
    assert hold.site is not None
    stack = hold.stack
    if hold.site not in stack:
        return (*reversed(stack), hold.site)
    return tuple(reversed(stack[stack.index(hold.site) :]))


def _sites(process: Process) -> dict[_Site, float]:
    return {(each.pool, each.site): each.held_s for each in process.sites}


def _callers(process: Process) -> dict[_Site, dict[Frame | None, float]]:
    found: dict[_Site, dict[Frame | None, float]] = defaultdict(dict)
    for each in process.callers:
        found[each.pool, each.site][each.caller] = each.held_s
    return found


def _parts(
    now: Mapping[Frame | None, float], before: Mapping[Frame | None, float]
) -> dict[Frame | None, float]:
    """How much each caller has grown by."""
    grown = {caller: held - before.get(caller, 0.0) for caller, held in now.items()}
    return {caller: max(0.0, seconds) for caller, seconds in grown.items()}
