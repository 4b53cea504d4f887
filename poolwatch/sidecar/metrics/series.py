"""The series of all processes: which exist, and what they stand at.

Processes with the same labels share their series, added up: those of one service with
``--no-pid-label``, and two containers with one host name, service and pid.
Counters are added up by their growth, so none falls when a pool, a call site or one of
several processes goes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import (
    Callable,
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from functools import partial
from operator import add, sub

from poolwatch.model import Process, Unreachable
from poolwatch.sidecar.looks import Look
from poolwatch.sidecar.metrics.call_sites import OTHER, Named, bounded
from poolwatch.sidecar.metrics.families import (
    FAMILIES,
    HELD,
    POOL,
    UP,
    Count,
    Labels,
    Value,
    counts,
    gauges,
    sources,
)

GONE_AFTER = 3
"""Looks in a row without a trace of a process, until its series end."""
MAX_FORMER = 16
"""Pools that are no more, by name, whose counters stay while their process lives."""
MAX_POOLS = 128
"""Names of pools of a process; a program that makes pools without end has no more."""

Values = dict[str, dict[Labels, Value]]
"""By family and labels."""

_COMBINE = {family.name: family.combine for family in FAMILIES}


class _Member:
    """One process as it last was."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.answers = True
        self.missed = 0
        """Looks in a row without a trace of it."""
        self.counted: dict[tuple[str, Hashable], Value] = {}
        """What has been added up of each of its counters."""
        self.places: set[tuple[str, str, str]] = set()
        """Pool, label and value of each counter that the process has now."""

    def growth(self, by_label: Iterable[str]) -> list[tuple[Count, Value]]:
        """What it has counted since the last call."""
        found, counted = [], {}
        self.places.clear()
        for each in counts(self.process, by_label):
            if each.by is not None:
                self.places.add((each.pool, *each.by))
            key = each.family, each.source
            before = self.counted.get(key)
            if before is None:
                counted[key] = each.value
                found.append((each, each.value))
            elif each.value == before:
                counted[key] = before
            else:
                # readings without a lock may differ by a hold that ends meanwhile
                counted[key] = now = tuple(map(max, before, each.value))
                found.append((each, tuple(map(sub, now, before))))
        self.counted = counted
        return found


class _Pool:
    """The counters of all pools of one name."""

    def __init__(self) -> None:
        self.named: defaultdict[str, Named] = defaultdict(Named)
        """By label."""
        self.totals: dict[tuple[str, Labels], Value] = {}

    def fill(
        self,
        label: str,
        held: Mapping[str, float],
        living: Callable[[], Collection[str]],
    ) -> None:
        """Give values of a label names of their own."""
        former = self.named[label].fill(held, living)
        gone = {(label, value) for value in former}
        for key in [key for key in self.totals if gone.intersection(key[1])]:
            del self.totals[key]

    def add(self, count: Count, grown: Value) -> None:
        labels: Labels = ()
        if count.by is not None:
            label, value = count.by
            labels = ((label, self.named[label].name(value)),)
        key = count.family, labels
        total = self.totals.get(key)
        if total is not None:
            grown = tuple(map(add, total, grown))
        self.totals[key] = grown


class _Group:
    """The processes that have the same labels."""

    def __init__(self) -> None:
        self.members: dict[Hashable, _Member] = {}
        self._pools: dict[str, _Pool] = {}
        self.pool_names = Named(MAX_POOLS)

    def count(self, members: Sequence[_Member], by_label: Iterable[str]) -> None:
        """Add up what these members have counted since the last time."""
        grown = [each for member in members for each in member.growth(by_label)]
        living = self._living()
        self.pool_names.fill(living)
        seconds: defaultdict[tuple[str, str], dict[str, float]] = defaultdict(dict)
        for count, _ in grown:
            if count.family == HELD and count.by is not None:
                label, value = count.by
                held = seconds[self.pool_names.name(count.pool), label]
                held[value] = held.get(value, 0.0) + count.value[0]
        for (pool, label), held in seconds.items():
            self._pool(pool).fill(label, held, partial(self._values, pool, label))
        for count, growth in grown:
            self._pool(self.pool_names.name(count.pool)).add(count, growth)
        former = [n for n in self._pools if n not in living and n != OTHER]
        for name in former[:-MAX_FORMER]:
            del self._pools[name]
            self.pool_names.forget(name)

    def _values(self, pool: str, label: str) -> set[str]:
        """The values of a label that a process has."""
        return {
            value
            for member in self.members.values()
            for name, of_label, value in member.places
            if of_label == label and self.pool_names.name(name) == pool
        }

    def _pool(self, name: str) -> _Pool:
        return self._pools.setdefault(name, _Pool())

    def _living(self) -> Counter[str]:
        """The names of its pools, with the connections that are out."""
        living: Counter[str] = Counter()
        for member in self.members.values():
            for pool in member.process.pools:
                living[bounded(pool.name)] += pool.checked_out
        return living

    def totals(self) -> Iterator[tuple[str, str, Labels, Value]]:
        """All counters: family, pool, labels, value."""
        for name, pool in self._pools.items():
            for (family, labels), value in pool.totals.items():
                yield family, name, labels, value


class Series:
    """The series of all processes, look by look. Not thread-safe."""

    def __init__(self, by_label: Sequence[str], *, pid_label: bool) -> None:
        self._by_label = by_label
        self._pid_label = pid_label
        self._groups: dict[Labels, _Group] = {}
        self._strangers: tuple[int, ...] = ()
        """Silent processes that have never answered, by pid."""

    def take(self, look: Look) -> None:
        """Take note of who answers; figures are computed when somebody asks."""
        answered = {_key(each): each for each in look.snapshot.processes}
        for key, process in answered.items():
            self._answered(key, process, answered)
        if look.error is not None:  # the look knows nothing of anybody
            for group in self._groups.values():
                for member in group.members.values():
                    member.answers = False
            return
        silent = [u for u in look.snapshot.unreachable if u.alive is not False]
        known = {
            m.process.pid for g in self._groups.values() for m in g.members.values()
        }
        pids = {each.pid for each in silent if each.pid is not None}
        self._strangers = tuple(pids - known)
        for labels, group in list(self._groups.items()):
            for key in group.members.keys() - answered:
                self._did_not_answer(group, key, silent)
            if not group.members:
                del self._groups[labels]

    def _did_not_answer(
        self, group: _Group, key: Hashable, silent: Iterable[Unreachable]
    ) -> None:
        member = group.members[key]
        member.answers = False
        is_silent = any(each.may_be(member.process) for each in silent)
        member.missed = 0 if is_silent else member.missed + 1
        if member.missed >= GONE_AFTER:
            group.count([member], self._by_label)
            del group.members[key]

    def _answered(
        self, key: Hashable, process: Process, answered: Collection[Hashable]
    ) -> None:
        labels = self._labels(process)
        group = self._groups.setdefault(labels, _Group())
        member = group.members.get(key)
        if member is None:
            if self._pid_label and not any(each in answered for each in group.members):
                group = self._groups[labels] = _Group()  # a pid is used again: from 0
            group.members[key] = _Member(process)
            return
        if sources(member.process) - sources(process):
            group.count([member], self._by_label)  # the last figures of those that went
        member.process, member.answers, member.missed = process, True, 0

    def _pid(self, pid: int) -> Labels:
        return (("process_pid", str(pid)),) if self._pid_label else ()

    def _labels(self, process: Process) -> Labels:
        return (
            *self._pid(process.pid),
            ("service_name", bounded(process.name or process.program)),
            ("host_name", bounded(process.host)),
        )

    def values(self) -> Values:
        """What all series stand at."""
        found: Values = {family.name: {} for family in FAMILIES}
        for pid in self._strangers:
            found[UP][self._pid(pid)] = (0.0,)
        for labels, group in self._groups.items():
            members = list(group.members.values())
            group.count(members, self._by_label)
            for family, pool, own, value in group.totals():
                found[family][((POOL, pool), *labels, *own)] = value
            answering = [each for each in members if each.answers]
            found[UP][labels] = (float(len(answering)),)
            for member in answering:
                _add_gauges(found, labels, member.process, group.pool_names)
        return found


def _add_gauges(
    found: Values, labels: Labels, process: Process, pool_names: Named
) -> None:
    for gauge in gauges(process):
        pool: Labels = ()
        if gauge.pool is not None:
            pool = ((POOL, pool_names.name(gauge.pool)),)
        key = (*pool, *labels, *gauge.labels)
        series = found[gauge.family]
        value = float(gauge.value)
        if key in series:
            value = _COMBINE[gauge.family](series[key][0], value)
        series[key] = (value,)


def _key(process: Process) -> Hashable:
    return process.host, process.pid, process.started_at
