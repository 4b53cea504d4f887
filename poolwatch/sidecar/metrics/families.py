"""The metric families, and what one process says about each."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from poolwatch.model import (
    BUCKETS,
    Distribution,
    LabelStats,
    PoolStats,
    Process,
    SiteStats,
    Verdict,
)
from poolwatch.protocol.pool_metrics import INSTRUMENTS, POOL_NAME, Instrument
from poolwatch.sidecar.metrics.call_sites import OTHER, bounded, call_site, label_value

Value = tuple[float, ...]
"""One number; of a histogram the counts up to each of BUCKETS, the count, the sum."""
Labels = tuple[tuple[str, str], ...]

POOL = POOL_NAME.replace(".", "_")
CALL_SITE = "call_site"
UP = "poolwatch_up"
LEAKS = "poolwatch_leaks"
HELD = "poolwatch_held_seconds"
WAIT_CAUSED = "poolwatch_wait_caused_seconds"
LOOKS = "poolwatch_sidecar_looks"
FAILED_LOOKS = "poolwatch_sidecar_failed_looks"
LOOK_SECONDS = "poolwatch_sidecar_look_seconds"
MISSING = "poolwatch_sidecar_missing"
DROPPED = "poolwatch_sidecar_history_dropped"

_KINDS: dict[str, Literal["gauge", "counter", "histogram"]] = {
    "updowncounter": "gauge",
    "counter": "counter",
    "histogram": "histogram",
}


class Family(NamedTuple):
    """One metric, as Prometheus names it; a counter's name without ``_total``."""

    name: str
    kind: Literal["gauge", "counter", "histogram"]
    text: str
    combine: Callable[[float, float], float] = float.__add__
    """How two gauges with the same labels become one."""


def _name(instrument: Instrument) -> str:
    """The name by OpenTelemetry's rules for Prometheus."""
    name = instrument.name.replace(".", "_")
    return f"{name}_seconds" if instrument.unit == "s" else name


FAMILIES = (
    *(Family(_name(each), _KINDS[each.kind], each.description) for each in INSTRUMENTS),
    Family(UP, "gauge", "Whether the process answers: 1, or 0 while it does not."),
    Family("poolwatch_holds", "gauge", "Open holds by verdict."),
    Family(
        "poolwatch_oldest_hold_seconds",
        "gauge",
        "Age of the oldest open hold, 0 if there is none.",
        max,
    ),
    Family(LEAKS, "counter", "Holds that were found leaked."),
    Family(
        HELD,
        "counter",
        "Seconds that connections were held, those that are out included: its rate is "
        "the number of connections held.",
    ),
    Family(
        WAIT_CAUSED,
        "counter",
        "Seconds that others waited for a connection while this one had some.",
    ),
    Family("poolwatch_findings", "gauge", "What is wrong now."),
    Family(
        "poolwatch_lost_slots", "gauge", "Slots that the pool will never lend again."
    ),
    Family(
        "poolwatch_server_sessions",
        "gauge",
        "Client sessions on the server of the pool, of all programs.",
        max,
    ),
    Family(
        "poolwatch_server_max_connections",
        "gauge",
        "The limit of the server of the pool.",
        max,
    ),
    Family(LOOKS, "counter", "Looks at the processes."),
    Family(FAILED_LOOKS, "counter", "Looks that failed altogether."),
    Family(LOOK_SECONDS, "histogram", "How long a look took."),
    Family(MISSING, "gauge", "What the newest look could not get."),
    Family(DROPPED, "counter", "Looks that the history could not keep."),
)


class Gauge(NamedTuple):
    """What a process says now."""

    family: str
    pool: str | None
    """Name of the pool; None where none is meant."""
    labels: Labels
    value: float


class Count(NamedTuple):
    """What a process has counted so far."""

    family: str
    pool: str
    by: tuple[str, str] | None
    """A label of which only some values have a name."""
    value: Value
    source: Hashable
    """Who counted it: the same one counts on, another one begins at 0."""


def gauges(process: Process) -> Iterator[Gauge]:
    """What a process says now."""
    names = _names(process)
    for pool in process.pools:
        yield from _pool_gauges(process, pool, names[pool.id])
    found = Counter(
        (names.get(f.pool or ""), f.kind, f.severity) for f in process.findings
    )
    for (name, kind, severity), count in found.items():
        labels = ("kind", bounded(kind)), ("severity", severity)
        yield Gauge("poolwatch_findings", name, labels, count)
    for server in process.servers:
        # a server has one limit, however many of the pools use it
        for name in {names[pool] for pool in server.pools if pool in names}:
            for family, value in (
                ("poolwatch_server_sessions", server.sessions),
                ("poolwatch_server_max_connections", server.max_connections),
            ):
                if value is not None:
                    yield Gauge(family, name, (), value)


def _pool_gauges(process: Process, pool: PoolStats, name: str) -> Iterator[Gauge]:
    for instrument in INSTRUMENTS:
        if instrument.kind == "updowncounter":
            for labels, value in instrument.points(pool):
                assert not isinstance(value, Distribution)
                pairs = tuple((k.replace(".", "_"), v) for k, v in labels.items())
                yield Gauge(_name(instrument), name, pairs, value)
    holds = [hold for hold in process.holds if hold.pool == pool.id]
    verdicts = Counter(hold.verdict for hold in holds)
    for verdict in get_args(Verdict):
        yield Gauge("poolwatch_holds", name, (("verdict", verdict),), verdicts[verdict])
    oldest = max((hold.known_s for hold in holds), default=0.0)
    yield Gauge("poolwatch_oldest_hold_seconds", name, (), oldest)
    yield Gauge("poolwatch_lost_slots", name, (), pool.lost_slots)


def counts(process: Process, by_label: Iterable[str]) -> Iterator[Count]:
    """What a process has counted so far."""
    names = _names(process)
    for pool in process.pools:
        yield from _pool_counts(pool, names[pool.id])
    yield from _leaks_elsewhere(process, names)
    for site in process.sites:
        name, source = names.get(site.pool), (site.pool, site.site)
        if name is not None:
            by = CALL_SITE, call_site(site)
            yield Count(LEAKS, name, by, (site.leaked,), source)
            yield from _usage(site, name, by, source)
    wanted = {label: label_name(label) for label in by_label}
    for each in process.labels:
        name = names.get(each.pool)
        if name is not None and each.label in wanted:
            by = wanted[each.label], label_value(each)
            yield from _usage(each, name, by, (each.pool, each.label, each.value))


def sources(process: Process) -> set[Hashable]:
    """Who counts in a process."""
    return {
        *(pool.id for pool in process.pools),
        *((site.pool, site.site) for site in process.sites),
        *((each.pool, each.label, each.value) for each in process.labels),
    }


def _pool_counts(pool: PoolStats, name: str) -> Iterator[Count]:
    for instrument in INSTRUMENTS:
        if instrument.kind == "updowncounter":
            continue
        for _, value in instrument.points(pool):
            counted: Value | None
            if isinstance(value, Distribution):
                counted = distribution_value(value)
            else:
                counted = (value,)
            if counted is not None:
                yield Count(_name(instrument), name, None, counted, pool.id)


def _usage(
    stats: SiteStats | LabelStats, name: str, by: tuple[str, str], source: Hashable
) -> Iterator[Count]:
    yield Count(HELD, name, by, (stats.held_s,), source)
    yield Count(WAIT_CAUSED, name, by, (stats.wait_caused_s,), source)


def _leaks_elsewhere(process: Process, names: dict[str, str]) -> Iterator[Count]:
    """The leaks of each pool that no call site has: their stacks had no user code."""
    at_sites: Counter[str] = Counter()
    for site in process.sites:
        at_sites[site.pool] += site.leaked
    for pool in process.pools:
        rest = max(0, pool.counters.leaked - at_sites[pool.id])
        yield Count(LEAKS, names[pool.id], (CALL_SITE, OTHER), (rest,), pool.id)


def label_name(label: str) -> str:
    """The name that a label of the application has in Prometheus."""
    return "label_" + re.sub(r"[^a-zA-Z0-9_]", "_", label)


def distribution_value(durations: Distribution) -> Value | None:
    """Return None if the counts of its buckets are unknown: an older agent."""
    up_to: Sequence[int] = durations.up_to
    if not durations.count:
        up_to = (0,) * len(BUCKETS)
    if len(up_to) != len(BUCKETS):
        return None
    return (*up_to, durations.count, durations.sum)


def _names(process: Process) -> dict[str, str]:
    """The name of each pool. Pools that share one share their series, added up."""
    return {pool.id: bounded(pool.name) for pool in process.pools}
