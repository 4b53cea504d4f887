"""The verdict on one open hold, with its evidence: a pure function of what was seen.

Grades of certainty, never mixed up: *suspected* (over a threshold) is less than *owner
gone*, and that is less than *proven* (garbage-collected, which the ledger counts, or
dropped where the pool itself keeps what it has lent).
"""

from __future__ import annotations

from dataclasses import dataclass

from poolwatch.model import Frame, Verdict
from poolwatch.stacks.classify import OUTSIDE, Doing, doing
from poolwatch.text.format import activity, duration


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
    unseen: str | None = None
    """What was not looked at, in words."""
    at: Frame | None = None
    """Where the frame is now that the chain begins in."""
    direct: bool = False
    """A variable of that frame is the session or connection itself."""
    pending: bool = False
    """A second search has to agree before anything is said of the hold."""
    hidden: bool = False
    """A frame that is running may have it where nobody can look: see
    :mod:`poolwatch.diagnosis.references.hidden`."""


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
    unused_s: float | None = None
    """How long ago its last statement ended; None if there was none."""
    used: tuple[Frame, ...] = ()
    """Where its last statement was sent from; looked up once the hold is long."""
    by_others: bool = False
    """A thread or task that did not take it has used it."""
    dropped: bool = False
    """Nothing but its pool refers to the connection."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """The verdict, the kind of finding it amounts to (if any), and the evidence."""

    verdict: Verdict
    kind: str | None
    evidence: tuple[str, ...]


_DROPPED = "nothing but the pool refers to it: nobody can return it any more"


def suspicious(seen: Seen) -> bool:
    """Whether it matters who keeps this connection alive."""
    if seen.dropped or seen.long_hold or seen.statement_s is not None:
        return False
    if seen.ended_owner:
        return True
    if seen.held_s < seen.long_after or _used_of_late(seen):
        return False
    return seen.still_there < seen.taken_by


def _used_of_late(seen: Seen) -> bool:
    """Whether somebody uses it now and then, whoever that is and wherever he has it.

    A daemon may keep its connection in a global, and nothing on its stack between two
    rounds: what is used again and again is not abandoned.
    """
    return seen.unused_s is not None and seen.unused_s < seen.long_after


def judge(seen: Seen) -> Judgement:
    """Judge one hold."""
    evidence = _circumstances(seen)
    if seen.dropped:  # proven: no declaration makes it come back
        return Judgement("leaked", "leaked.collected", (*evidence, _DROPPED))
    if seen.long_hold:
        return Judgement("ok", None, (*evidence, f"declared long: {seen.long_hold}"))
    if seen.keeping is not None and seen.keeping.pending:
        long = seen.held_s >= seen.long_after
        return Judgement("long" if long else "ok", None, evidence)
    return _leaked(seen, evidence) or _long(seen, evidence)


def _leaked(seen: Seen, evidence: tuple[str, ...]) -> Judgement | None:
    if not suspicious(seen) or not is_unused(seen.keeping):
        return None
    kept = _kept(seen.keeping)
    if seen.ended_owner:
        return Judgement("leaked", "leaked.orphaned", (*evidence, kept))
    gone = "the code that took it has returned, and nothing that runs has it"
    return Judgement("leaked", "leaked.abandoned", (_age(seen), *evidence, gone, kept))


def _long(seen: Seen, evidence: tuple[str, ...]) -> Judgement:
    if seen.held_s < seen.long_after:
        return Judgement("ok", None, evidence)
    if seen.still_there < seen.taken_by and _used_of_late(seen):
        used_s = seen.held_s - (seen.unused_s or 0.0)
        if used_s < seen.long_after:  # the last that was seen of it: that was not long
            return Judgement("ok", None, evidence)
    evidence = (_age(seen), *evidence)
    if seen.keeping is not None and seen.keeping.in_use and seen.keeping.words:
        evidence = (*evidence, f"in use by {seen.keeping.words}")
    elif seen.keeping is not None and seen.keeping.unseen and suspicious(seen):
        unknown = f"not known whether it is in use: {seen.keeping.unseen}"
        evidence = (*evidence, unknown)
    if seen.statement_s is not None and seen.statement_s >= seen.held_s / 2:
        running = f"one statement has been running for {duration(seen.statement_s)}"
        return Judgement("long", "in_sql", (*evidence, running))
    now = _users_doing(seen)
    if now is None:
        return Judgement("long", "long_hold", evidence)
    outside = now.kind in OUTSIDE and seen.statement_s is None
    kind = "held_across_io" if outside else "long_hold"
    return Judgement("long", kind, (*evidence, f"now {activity(now.frame, now.kind)}"))


def _users_doing(seen: Seen) -> Doing | None:
    """What the one does now who uses it, if that can be told from his stack.

    The stack that was looked at is the taker's. It says nothing if somebody else has
    the connection; of him we know a single frame, or nothing but his statements.
    """
    if seen.keeping is not None and seen.keeping.in_use:
        if seen.keeping.in_use_by_taker is False and seen.keeping.at is not None:
            now = doing((seen.keeping.at,)) if _is_user(seen, seen.keeping) else None
            return None if now is not None and now.is_ambiguous() else now
    elif seen.by_others and _used_of_late(seen):
        return None
    elif seen.keeping is not None and not (
        seen.keeping.complete or seen.keeping.hidden
    ):
        return None  # the taker may have gone on to other work
    return seen.doing


def _is_user(seen: Seen, keeping: Keeping) -> bool:
    """Whether the frame that was found is the one that uses the connection.

    Behind an attribute of ``self`` it may be for another method to use.
    """
    at = keeping.at
    return keeping.direct or any(
        at is not None and (frame.file, frame.function) == (at.file, at.function)
        for frame in seen.used
    )


def _age(seen: Seen) -> str:
    return f"held {duration(seen.held_s)}, longer than {duration(seen.long_after)}"


def _circumstances(seen: Seen) -> tuple[str, ...]:
    evidence = []
    if seen.ended_owner:
        evidence.append(f"{seen.ended_owner} took it and has ended")
    if seen.detached:
        evidence.append("detached: the pool has already replaced this connection")
    return tuple(evidence)


def is_unused(keeping: Keeping | None) -> bool:
    """Whether a search has shown that no code that runs, or will run, uses it."""
    if keeping is None or keeping.in_use or keeping.pending or not keeping.complete:
        return False
    return not keeping.hidden


def _kept(keeping: Keeping | None) -> str:
    if keeping is None or keeping.words is None:
        return "what keeps it alive was not seen"
    return f"kept alive by {keeping.words}"
