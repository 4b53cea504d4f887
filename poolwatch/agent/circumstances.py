"""Collects the circumstances of the holds that a finding is about."""

from __future__ import annotations

import gc
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress

from poolwatch.diagnosis.circumstances import Circumstance, CircumstanceKind
from poolwatch.diagnosis.evidence import HoldEvidence, JudgedHold
from poolwatch.diagnosis.pool_options import options_of
from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.pool import PoolLedger
from poolwatch.model import Collected, Frame
from poolwatch.stacks.capture import CapturedStack, Pairs, resolve
from poolwatch.stacks.compare import user_frames

_GENERATOR = 0x20 | 0x200
"""``inspect.CO_GENERATOR`` and ``CO_ASYNC_GENERATOR``."""


def add_circumstances(
    pool: PoolLedger, judged: Iterable[tuple[Checkout, JudgedHold]]
) -> None:
    """Add the circumstances to the oldest hold of each kind and call site.

    The finding about that call site takes its remedy from the oldest hold.
    """
    oldest: dict[object, tuple[Checkout, JudgedHold]] = {}
    for checkout, each in judged:
        if each.kind is not None:
            key = each.kind, each.hold.site
            known = oldest.setdefault(key, (checkout, each))
            if each.hold.known_s > known[1].hold.known_s:
                oldest[key] = checkout, each
    for checkout, each in oldest.values():
        each.evidence.circumstances = _of_hold(pool, checkout, each.evidence)


def _of_hold(
    pool: PoolLedger, checkout: Checkout, evidence: HoldEvidence
) -> tuple[Circumstance, ...]:
    stack = checkout.stack.pairs()
    with suppress(Exception):  # only the words of a remedy depend on it
        return (
            *_of_search(evidence),
            *_of_task(checkout),
            *_of_load(pool, stack),
            *_of_source(pool, stack, evidence.now),
        )
    return ()


def of_collected(pool: PoolLedger, each: Collected) -> tuple[Circumstance, ...]:
    """The circumstances of the connections that one call site has dropped."""
    with suppress(Exception):
        return *_of_load(pool, each.stack), *_of_source(pool, each.stack, ())
    return ()


def sees_statements(pool: PoolLedger, stack: CapturedStack) -> bool:
    """Whether the statements on a connection that was checked out there are recorded.

    SQLAlchemy's raw connections send theirs through the driver's cursors.
    """
    if not pool.records_statements:
        return False
    return all(code.co_name != "raw_connection" for code, _ in stack.pairs())


def _of_search(evidence: HoldEvidence) -> Iterator[Circumstance]:
    search = evidence.search
    if search is None:
        return
    if search.path is not None:
        yield from search.path.circumstances
    elif search.proves_unused and search.complete:
        collector = "" if gc.isenabled() else ", which is switched off"
        yield Circumstance("no reference", name=collector)


def _of_task(checkout: Checkout) -> Iterator[Circumstance]:
    """Whether the holder's task is known to have been cancelled."""
    if checkout.task is None:
        return
    task, kind = checkout.task.reference(), sys.modules["asyncio"].Task
    if issubclass(type(task), kind) and kind.cancelled(task):
        yield Circumstance("task cancelled")


def _of_load(pool: PoolLedger, stack: Pairs) -> Iterator[Circumstance]:
    """The attribute whose load made the checkout."""
    loaded = pool.loaded_attribute(stack) if pool.loaded_attribute else None
    if loaded is not None:
        name, related = loaded
        yield Circumstance("lazy load" if related else "refresh", name=name)


def _of_source(
    pool: PoolLedger, stack: Pairs, now: tuple[Frame, ...]
) -> Iterator[Circumstance]:
    """Circumstances that the source shows; ``now`` is the holder's stack."""
    from poolwatch.stacks.source import read_source  # loaded by the first finding

    frames = resolve(stack)
    own = user_frames(frames)
    called = frames[: frames.index(own[0])] if own else ()
    source = read_source(own[:4], called[-1].function if called else "")
    give_back = options_of(pool.extends or pool.kind).give_back
    closes = give_back == "close()"
    """As in SQLAlchemy: the end of a ``with`` on the connection returns it."""
    block, inner = source.block, source.inner_block
    if source.on_connection and closes:
        block, inner = inner, None
    cleanup = source.cleanup if f"{source.cleanup_by}()" == give_back else None
    cleanup = cleanup or (source.cleanup if closes else None) or block
    ended = cleanup is not None and _has_ended(cleanup, stack, now)
    if source.ended_before is not None and closes:
        by = "its with block" if source.ended_by == "with" else f"{source.ended_by}()"
        yield Circumstance("used after close", source.ended_before, by)
    places: dict[CircumstanceKind, Frame | None] = {
        "only commits": inner,
        "cleanup without effect": cleanup if ended else None,
        "with block": None if ended else block,
    }
    for kind, where in places.items():
        if where is not None:
            yield Circumstance(kind, where, give_back)
    if not closes:
        yield Circumstance("own return", name=give_back)


def _has_ended(place: Frame, stack: Pairs, now: tuple[Frame, ...]) -> bool:
    """Whether the function at that place has ended; a generator may be suspended."""
    name = place.file, place.function
    if name in [(frame.file, frame.function) for frame in now]:
        return False
    codes = [code for code, _ in stack if (code.co_filename, code.co_name) == name]
    return bool(codes) and not any(code.co_flags & _GENERATOR for code in codes)
