"""Collects the circumstances of the holds that a finding is about."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Iterator
from typing import Any

from poolwatch.diagnosis.circumstances import Circumstance
from poolwatch.diagnosis.common import still_running
from poolwatch.diagnosis.evidence import HoldEvidence
from poolwatch.diagnosis.pool_options import options_of
from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.pool import PoolLedger
from poolwatch.model import Collected, Frame
from poolwatch.stacks.capture import Pairs, resolve
from poolwatch.stacks.source import read_site

_GENERATOR = inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


def of_hold(
    pool: PoolLedger, checkout: Checkout, evidence: HoldEvidence
) -> tuple[Circumstance, ...]:
    """What was seen around one hold."""
    found = list(_of_search(evidence))
    stack = checkout.stack.pairs()
    returned = not still_running(evidence) and not evidence.detached
    found += _of_code(pool, stack, evidence.site, returned=returned)
    if _was_cancelled(checkout):
        found.append(Circumstance("task cancelled"))
    return tuple(found)


def of_collected(pool: PoolLedger, each: Collected) -> tuple[Circumstance, ...]:
    """What was seen around the connections that one call site has dropped."""
    return tuple(_of_code(pool, each.stack, each.site, returned=False))


def sees_statements(pool: PoolLedger, checkout: Checkout) -> bool:
    """Whether the statements on a held connection are recorded.

    SQLAlchemy's raw connections send theirs through the driver's cursors.
    """
    names = [code.co_name for code, _ in checkout.stack.pairs()]
    return pool.records_statements and "raw_connection" not in names


def _of_search(evidence: HoldEvidence) -> Iterator[Circumstance]:
    search = evidence.search
    if search is None:
        return
    if search.path is not None:
        yield from search.path.circumstances
    elif search.proves_unused:
        yield Circumstance("garbage")


def _was_cancelled(checkout: Checkout) -> bool:
    """Whether the holder's task is known to have been cancelled."""
    task: Any = checkout.task and checkout.task.reference()
    cancelled = getattr(asyncio.Task, "cancelled")  # noqa: B009 - not a subclass's
    return isinstance(task, asyncio.Task) and bool(cancelled(task))


def _of_code(
    pool: PoolLedger, stack: Pairs, site: Frame | None, *, returned: bool
) -> Iterator[Circumstance]:
    """What the stack of a checkout and the source of its call site show.

    ``returned``: the function of the call site is known to have ended.
    """
    if site is None:
        return
    attribute = pool.loaded_attribute(stack) if pool.loaded_attribute else None
    if attribute is not None:
        yield Circumstance("lazy load", site, attribute)
    source, give_back = read_site(site), options_of(pool.kind).give_back
    is_session = give_back == "close()"  # SQLAlchemy: with closes what it is on

    def at(line: int) -> Frame:
        return Frame(site.file, line, site.function)

    if source.closed_before is not None and is_session:
        yield Circumstance("used after close", at(source.closed_before))
    block, inner = source.block, source.inner_block
    if source.on_connection and is_session:
        block, inner = inner, None
    if inner is not None:
        yield Circumstance("only commits", at(inner), give_back)
    returns = is_session or f"{source.cleanup_by}()" == give_back
    cleanup = (source.cleanup if returns else None) or block
    if cleanup is not None and returned and not _in_generator(stack, site):
        yield Circumstance("cleanup without effect", at(cleanup))
    elif block is not None:
        yield Circumstance("with block", at(block))


def _in_generator(stack: Pairs, site: Frame) -> bool:
    """Whether the call site is in a generator: it may be suspended, not ended."""
    for pair in stack:
        if resolve((pair,))[0] == site:
            return bool(pair[0].co_flags & _GENERATOR)
    return True
