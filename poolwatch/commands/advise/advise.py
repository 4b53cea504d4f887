"""From the trace of a pool to recommendations, each with its numbers and its line."""

from __future__ import annotations

from dataclasses import dataclass

from poolwatch.commands.advise import sizing
from poolwatch.diagnosis.pool_options import options_of
from poolwatch.model import PoolStats
from poolwatch.protocol.records import Trace
from poolwatch.text.format import duration, plural

ENOUGH_REQUESTS = 200
"""With fewer, the 99th percentile depends on one or two of them."""


_RECYCLE = "  # and pool_recycle below the server's or firewall's idle limit"


@dataclass(frozen=True, slots=True)
class Recommendation:
    """One change to make, or one setting to keep."""

    text: str
    why: str
    line: str | None
    """The line of configuration; None if there is nothing to change."""


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
    """Why the record is too thin for advice on the size; None if it is not."""
    size: int | None
    """Smallest size with which 99 % of requests wait no longer than the target."""
    by_replay: int | None
    by_theory: int | None
    without_deadlock: int | None
    """Smallest size that cannot deadlock, given the recorded nesting."""
    recommendations: tuple[Recommendation, ...]


def advise(trace: Trace, target_s: float) -> Advice:
    """Return the advice on one pool."""
    requests = [(each.asked_s, each.held_s) for each in trace.requests]
    rate = len(requests) / trace.seconds if trace.seconds > 0 else 0.0
    held = sum(h for _, h in requests) / len(requests) if requests else None
    thin = _thin(trace)
    size = replayed = theory = None
    if thin is None and held is not None:
        size = replayed = sizing.smallest_by_replay(requests, target_s)
        uneven = sizing.unevenness(requests)
        theory = sizing.smallest_by_theory(rate, held, uneven, target_s)
        if theory is not None and sizing.is_memoryless(requests):
            # a short record misses rare bursts, which theory accounts for
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


def _thin(trace: Trace) -> str | None:
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
    """The number of connections the pool can lend, as the end of a sentence."""
    if pool.lost_slots:
        return f"{pool.capacity} of {pool.slots} connections are left"
    return f"{pool.capacity} are allowed"


def _sizing(
    trace: Trace,
    size: int | None,
    found: tuple[int | None, int | None],
    safe: int | None,
    target_s: float,
) -> Recommendation | None:
    if size is None:
        return None
    wanted = max(size, safe or 1)
    requests = [(each.asked_s, each.held_s) for each in trace.requests]
    now = trace.pool.capacity
    measured = sizing.percentile([each.waited_s for each in trace.requests], 0.99)
    then = sizing.percentile(sizing.replayed_waits(requests, wanted), 0.99)
    why = (
        f"replayed with {wanted}, 99 % of {len(requests)} requests wait at most "
        f"{duration(then)} (measured now: {duration(measured)}; target "
        f"{duration(target_s)}); the replay needs {found[0]}, queueing theory says "
        f"{found[1]}"
    )
    if trace.pool.lost_slots and now is not None:
        why += f"; {_allowed(trace.pool)}"
    options = options_of(trace.pool.kind)
    # a driver's pool is limited by one number; pool_size does not include the overflow
    current = trace.pool.size if options.size == "pool_size" else trace.pool.slots
    if now is not None and now >= wanted and current == wanted:
        return Recommendation(f"leave {options.size} at {wanted}", why, None)
    if now is not None and now > 2 * wanted:
        text = f"{wanted} connections are enough: {_allowed(trace.pool)}"
    else:
        text = f"{options.size}={wanted} keeps the wait within the target"
    return Recommendation(text, why, options.line(f"{options.size}={wanted}"))


def _deadlock(trace: Trace, safe: int | None) -> Recommendation | None:
    now = trace.pool.capacity
    if safe is None or now is None or now >= safe:
        return None
    options = options_of(trace.pool.kind)
    return Recommendation(
        f"{safe} connections are the fewest that cannot lock up; "
        f"{_allowed(trace.pool)}",
        f"up to {trace.nesting} holders at once wanted {trace.depth} connections "
        f"each: {trace.nesting} x {trace.depth - 1} + 1",
        options.line(f"{options.size}={safe}") + "  # or pass the connection on",
    )


def _overflow(trace: Trace) -> Recommendation | None:
    count = len(trace.requests)
    if count < ENOUGH_REQUESTS or trace.connects < count * 0.05:
        return None
    made = trace.pool.create_s.p50
    cost = f", {duration(made)} each" if made is not None else ""
    options = options_of(trace.pool.kind)
    if not trace.pool.max_overflow or options.keep is None:
        return None
    instead = " rather than max_overflow" if options.size == "pool_size" else ""
    return Recommendation(
        f"raise {options.keep.partition('=')[0]}{instead}",
        f"{trace.connects} connections were opened for {count} requests{cost}: "
        f"{options.kept}",
        options.line(options.keep),
    )


def _pre_ping(trace: Trace) -> Recommendation | None:
    invalidated = trace.pool.counters.invalidated
    options = options_of(trace.pool.kind)
    if not invalidated or options.test is None:
        return None
    return Recommendation(
        "let the pool test connections before it lends them",
        f"{plural(invalidated, 'connection')} broke while in use since the start; a "
        "test costs one round trip at each checkout",
        options.line(options.test) + _RECYCLE * (options.size == "pool_size"),
    )
