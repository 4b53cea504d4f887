"""Makes the record of a leak from a hold that is open or was garbage-collected."""

from __future__ import annotations

import asyncio
from asyncio.events import _get_running_loop as running_loop
from collections.abc import Iterable

from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.pool import PoolLedger
from poolwatch.model import Frame
from poolwatch.stacks.capture import Pairs, resolve
from poolwatch.stacks.current import task_stack, thread_stacks
from poolwatch.stacks.holder import get_ident
from poolwatch.testing.leak import Leak, LeakKind

_SEARCH_S = 0.3
_SEARCH_NODES = 2_000_000


def from_collected_hold(pool: PoolLedger, hold: Checkout, now: float) -> Leak:
    """Return the leak of a hold whose connection was garbage-collected."""
    return _leak(pool, hold, now, kind="collected")


def from_open_holds(
    holds: Iterable[tuple[PoolLedger, Checkout]], now: float
) -> list[Leak]:
    """Return the leaks of open holds, with the reference path to each connection."""
    holds = list(holds)
    if not holds:
        return []
    reference_paths = _reference_paths([hold for _, hold in holds])
    stacks = thread_stacks()
    return [
        _leak(
            pool,
            hold,
            now,
            kind="detached" if hold in pool.detached.values() else "held",
            kept=reference_paths.get(str(number)),
            frames=_current_frames(hold, stacks),
        )
        for number, (pool, hold) in enumerate(holds)
    ]


def _leak(
    pool: PoolLedger,
    hold: Checkout,
    now: float,
    *,
    kind: LeakKind,
    kept: str | None = None,
    frames: tuple[Frame, ...] = (),
) -> Leak:
    facts = hold.facts
    return Leak(
        kind=kind,
        pool=pool.name,
        site=hold.stack.site(),
        stack=hold.stack.frames(),
        held_s=max(0.0, now - hold.checked_out_at),
        thread=hold.holder.name,
        task=hold.task.name if hold.task is not None else None,
        kept=kept,
        now=frames,
        statement=hold.masked_statement(pool.server_connect),
        backend_pid=facts.backend_pid if facts is not None else None,
    )


def _current_frames(hold: Checkout, stacks: dict[int, Pairs]) -> tuple[Frame, ...]:
    """The current stack of the holder; empty if that is the calling code."""
    if hold.task is not None:
        loop = running_loop()
        if loop is not None and hold.task.is_of(asyncio.current_task(loop)):
            return ()
        return resolve(task_stack(hold.task))
    ident = hold.holder.ident
    if ident == get_ident() or hold.holder.has_ended():
        return ()
    return resolve(stacks.get(ident, ()))


def _reference_paths(holds: list[Checkout]) -> dict[str, str]:
    from poolwatch.diagnosis.references.search import (
        find_paths,
    )  # loaded for the first leak

    result = find_paths(
        {str(number): hold.proxy for number, hold in enumerate(holds)},
        holders={
            str(number): hold.stack_key_and_task() for number, hold in enumerate(holds)
        },
        budget_s=_SEARCH_S,
        nodes=_SEARCH_NODES,
        prove=False,
    )
    return {number: path.words for number, path in result.paths.items()}
