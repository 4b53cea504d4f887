"""From a hold, still open or just collected, to the record of a leak."""

from __future__ import annotations

from collections.abc import Iterable

from poolwatch.ledger.checkout import Checkout
from poolwatch.ledger.pool import PoolLedger
from poolwatch.model import Frame
from poolwatch.stacks.capture import Pairs, resolve
from poolwatch.stacks.current import task_stack, thread_stacks
from poolwatch.stacks.holder import get_ident
from poolwatch.testing.leak import Leak, LeakKind
from poolwatch.text.masking import mask_literals

_SEARCH_S = 0.3
_SEARCH_NODES = 2_000_000


def collected(book: PoolLedger, hold: Checkout, now: float) -> Leak:
    """Return the record of a hold that the garbage collector has ended."""
    return _leak(book, hold, now, kind="collected")


def open_ones(holds: Iterable[tuple[PoolLedger, Checkout]], now: float) -> list[Leak]:
    """Return the records of holds that are still out, with what keeps them alive."""
    holds = list(holds)
    if not holds:
        return []
    kept = _kept([hold for _, hold in holds])
    stacks = thread_stacks()
    return [
        _leak(
            book,
            hold,
            now,
            kind="detached" if hold in book.detached.values() else "held",
            kept=kept.get(str(number)),
            frames=_frames_now(hold, stacks),
        )
        for number, (book, hold) in enumerate(holds)
    ]


def _leak(
    book: PoolLedger,
    hold: Checkout,
    now: float,
    *,
    kind: LeakKind,
    kept: str | None = None,
    frames: tuple[Frame, ...] = (),
) -> Leak:
    statement, facts = hold.statement(), hold.facts
    return Leak(
        kind=kind,
        pool=book.name,
        site=hold.path.site(),
        stack=hold.path.frames(),
        held_s=max(0.0, now - hold.taken),
        thread=hold.holder.name,
        task=hold.task.name if hold.task is not None else None,
        kept=kept,
        now=frames,
        statement=None if statement is None else mask_literals(statement),
        backend_pid=facts.backend_pid if facts is not None else None,
    )


def _frames_now(hold: Checkout, stacks: dict[int, Pairs]) -> tuple[Frame, ...]:
    """Where its holder is; nothing for the thread that asks: it is busy asking."""
    if hold.task is not None:
        return resolve(task_stack(hold.task))
    ident = hold.holder.ident
    if ident == get_ident() or hold.holder.has_ended():
        return ()
    return resolve(stacks.get(ident, ()))


def _kept(holds: list[Checkout]) -> dict[str, str]:
    from poolwatch.diagnosis.references.search import find_paths  # only a leak needs it

    result = find_paths(
        {str(number): hold.proxy for number, hold in enumerate(holds)},
        taker={str(number): hold.taker() for number, hold in enumerate(holds)},
        budget_s=_SEARCH_S,
        nodes=_SEARCH_NODES,
        prove=False,
    )
    return {number: path.words for number, path in result.paths.items()}
