"""The verdict on one open hold, with its evidence: a pure function of what was seen.

Grades of certainty, never mixed up: *suspected* (over a threshold) is less than *owner
gone*, and that is less than *proven* (garbage-collected, which the ledger counts).
"""

from __future__ import annotations

from dataclasses import dataclass

from poolwatch.doing import OUTSIDE, Doing
from poolwatch.model import Verdict
from poolwatch.text import duration


@dataclass(frozen=True, slots=True)
class Keeping:
    """What was found when somebody asked who keeps the connection alive."""

    in_use: bool
    """Code that is running, or suspended and alive, has it in its hands."""
    words: str | None
    """The chain of references, from a variable to the connection."""
    in_use_by_taker: bool | None
    """Whether that is the thread or task that took it; None if not known."""
    complete: bool
    """Everybody who could have it in his hands was looked at."""


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything that is known of one hold at one moment."""

    held_s: float
    long_after: float
    ended_owner: str | None
    """Who took it, in words, if that thread or task has ended."""
    long_hold: str | None
    """The declared reason for a long hold."""
    detached: bool
    statement_s: float | None
    """How long the statement has been running that is on the connection now."""
    taken_by: int
    """User frames that were on the stack when it was taken, and ..."""
    still_there: int
    """... how many of those are on the stack of its holder now."""
    doing: Doing | None
    keeping: Keeping | None
    """None if nobody has asked yet."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict, the kind of finding it amounts to (if any), and the evidence."""

    verdict: Verdict
    kind: str | None
    evidence: tuple[str, ...]


def suspicious(seen: Seen) -> bool:
    """Whether it matters who keeps this connection alive."""
    if seen.long_hold or seen.statement_s is not None:
        return False
    if seen.ended_owner:
        return True
    return seen.held_s >= seen.long_after and seen.still_there < seen.taken_by


def judge(seen: Seen) -> Judgement:
    """Judge one hold."""
    evidence = _circumstances(seen)
    if seen.long_hold:
        return Judgement("ok", None, (*evidence, f"declared long: {seen.long_hold}"))
    return _leaked(seen, evidence) or _long(seen, evidence)


def _leaked(seen: Seen, evidence: tuple[str, ...]) -> Judgement | None:
    if not suspicious(seen) or not _nobody_has(seen.keeping):
        return None
    kept = _kept(seen.keeping)
    if seen.ended_owner:
        return Judgement("leaked", "leaked.orphaned", (*evidence, kept))
    gone = "the code that took it has returned, and nothing that runs has it"
    return Judgement("leaked", "leaked.abandoned", (_age(seen), *evidence, gone, kept))


def _long(seen: Seen, evidence: tuple[str, ...]) -> Judgement:
    if seen.held_s < seen.long_after:
        return Judgement("ok", None, evidence)
    evidence = (_age(seen), *evidence)
    if seen.keeping is not None and seen.keeping.in_use and seen.keeping.words:
        evidence = (*evidence, f"in use by {seen.keeping.words}")
    if seen.statement_s is not None and seen.statement_s >= seen.held_s / 2:
        running = f"one statement has been running for {duration(seen.statement_s)}"
        return Judgement("long", "in_sql", (*evidence, running))
    if seen.doing is None:
        return Judgement("long", "long_hold", evidence)
    outside = seen.doing.kind in OUTSIDE
    kind = "held_across_io" if outside else "long_hold"
    return Judgement("long", kind, (*evidence, f"now {seen.doing.words}"))


def _age(seen: Seen) -> str:
    return f"held {duration(seen.held_s)}, longer than {duration(seen.long_after)}"


def _circumstances(seen: Seen) -> tuple[str, ...]:
    evidence = []
    if seen.ended_owner:
        evidence.append(f"{seen.ended_owner} took it and has ended")
    if seen.detached:
        evidence.append("detached: the pool has already replaced this connection")
    return tuple(evidence)


def _nobody_has(keeping: Keeping | None) -> bool:
    return keeping is not None and keeping.complete and not keeping.in_use


def _kept(keeping: Keeping | None) -> str:
    if keeping is None or keeping.words is None:
        return "what keeps it alive was not seen"
    return f"kept alive by {keeping.words}"
