"""Recommendations for a pool, based on a recorded trace."""

from __future__ import annotations

from dataclasses import dataclass

from poolwatch.commands.advise import sizing
from poolwatch.diagnosis.pool_options import options_of
from poolwatch.model import PoolStats
from poolwatch.protocol.records import Trace
from poolwatch.text.format import duration, plural

ENOUGH_REQUESTS = 200
"""With fewer requests, the 99th percentile depends on one or two of them."""


_RECYCLE = "  # and pool_recycle below the server's or firewall's idle limit"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """Advice to change or to keep one setting."""

    text: str
    why: str
    line: str | None
    """The configuration line; None if there is nothing to change."""


@dataclass(frozen=True, slots=True)
class Advice:
    """The advice on one pool."""

    pool: str
    requests: int
    seconds: float
    rate: float
    """Requests a second."""
    held_s: float | None
    """Mean duration of a hold."""
    thin: str | None
    """Why the recording is insufficient for advice on the size; None if it is not."""
    size: int | None
    """Smallest size with which 99 % of requests wait no longer than the target."""
    by_replay: int | None
    by_theory: int | None
    without_deadlock: int | None
    """Smallest size that cannot deadlock, given the recorded nesting."""
    recommendations: tuple[Recommendation, ...]


def advise(trace: Trace, target_s: float) -> Advice:
    """Return the advice on the pool of a trace."""
    requests = [(each.asked_s, each.held_s) for each in trace.requests]
    rate = len(requests) / trace.seconds if trace.seconds > 0 else 0.0
    held = sum(h for _, h in requests) / len(requests) if requests else None
    thin = _too_little_data(trace)
    size = replayed = theory = None
    if thin is None and held is not None:
        size = replayed = sizing.smallest_by_replay(requests, target_s)
        variability = sizing.variability_factor(requests)
        theory = sizing.smallest_by_theory(rate, held, variability, target_s)
        if theory is not None and sizing.is_memoryless(requests):
            # a short recording misses rare bursts, which theory includes
            size = max(replayed, theory)
    safe = trace.nesting * (trace.depth - 1) + 1 if trace.depth > 1 else None
    return Advice(
        pool=trace.pool.name,
        requests=len(requests),
        seconds=trace.seconds,
        rate=rate,
        held_s=held,
        thin=thin,
        size=size,
        by_replay=replayed,
        by_theory=theory,
        without_deadlock=safe,
        recommendations=tuple(
            each
            for each in (
                _sizing(trace, size, (replayed, theory), safe, target_s),
                _deadlock(trace, safe),
                _overflow(trace),
                _pre_ping(trace),
            )
            if each is not None
        ),
    )


def _too_little_data(trace: Trace) -> str | None:
    count = len(trace.requests)
    if count < ENOUGH_REQUESTS:
        return (
            f"only {plural(count, 'request')} in {duration(trace.seconds)}: "
            f"{ENOUGH_REQUESTS} are needed for a 99th percentile. Record for longer "
            "(--seconds), or under load"
        )
    longest = max(each.held_s for each in trace.requests)
    if longest > trace.seconds / 3:
        return (
            f"a hold lasted {duration(longest)} of the {duration(trace.seconds)} "
            "recorded: record for longer (--seconds)"
        )
    return None


def _allowed(pool: PoolStats) -> str:
    """Return the pool's maximum, as the end of a sentence."""
    if pool.lost_slots:
        return f"{pool.capacity} of {pool.slots} connections are left"
    return f"{pool.capacity} are allowed"


def _sizing(
    trace: Trace,
    size: int | None,
    by_method: tuple[int | None, int | None],
    safe: int | None,
    target_s: float,
) -> Recommendation | None:
    if size is None:
        return None
    recommended = max(size, safe or 1)
    requests = [(each.asked_s, each.held_s) for each in trace.requests]
    now = trace.pool.capacity
    measured = sizing.percentile([each.waited_s for each in trace.requests], 0.99)
    replayed = sizing.percentile(sizing.replayed_waits(requests, recommended), 0.99)
    why = (
        f"replayed with {recommended}, 99 % of {len(requests)} requests wait at most "
        f"{duration(replayed)} (measured now: {duration(measured)}; target "
        f"{duration(target_s)}); the replay needs {by_method[0]}, queueing theory says "
        f"{by_method[1]}"
    )
    if trace.pool.lost_slots and now is not None:
        why += f"; {_allowed(trace.pool)}"
    options = options_of(trace.pool.extends or trace.pool.kind)
    # a driver's pool is limited by one number; pool_size does not include the overflow
    current = trace.pool.size if options.size == "pool_size" else trace.pool.slots
    if now is not None and now >= recommended and current == recommended:
        return Recommendation(f"leave {options.size} at {recommended}", why, None)
    if now is not None and now > 2 * recommended:
        text = f"{recommended} connections are enough: {_allowed(trace.pool)}"
    else:
        text = f"{options.size}={recommended} keeps the wait within the target"
    return Recommendation(text, why, options.line(f"{options.size}={recommended}"))


def _deadlock(trace: Trace, safe: int | None) -> Recommendation | None:
    now = trace.pool.capacity
    if safe is None or now is None or now >= safe:
        return None
    options = options_of(trace.pool.extends or trace.pool.kind)
    return Recommendation(
        f"{safe} connections are the minimum that cannot deadlock; "
        f"{_allowed(trace.pool)}",
        f"up to {trace.nesting} holders at once wanted {trace.depth} connections "
        f"each: {trace.nesting} x {trace.depth - 1} + 1",
        options.line(f"{options.size}={safe}") + "  # or pass the connection on",
    )


def _overflow(trace: Trace) -> Recommendation | None:
    count = len(trace.requests)
    if count < ENOUGH_REQUESTS or trace.connects < count * 0.05:
        return None
    create_s = trace.pool.create_s.p50
    cost = f", {duration(create_s)} each" if create_s is not None else ""
    options = options_of(trace.pool.extends or trace.pool.kind)
    if not trace.pool.max_overflow or options.keep_options is None:
        return None
    instead = " rather than max_overflow" if options.size == "pool_size" else ""
    return Recommendation(
        f"raise {options.keep_options.partition('=')[0]}{instead}",
        f"{trace.connects} connections were opened for {count} requests{cost}: "
        f"{options.closing_rule}",
        options.line(options.keep_options),
    )


def _pre_ping(trace: Trace) -> Recommendation | None:
    invalidated = trace.pool.counters.invalidated
    options = options_of(trace.pool.extends or trace.pool.kind)
    if not invalidated or options.test is None:
        return None
    return Recommendation(
        "test each connection when it is checked out",
        f"{plural(invalidated, 'connection')} broke while checked out; the test "
        "costs one round trip per checkout",
        options.line(options.test) + _RECYCLE * (options.size == "pool_size"),
    )
