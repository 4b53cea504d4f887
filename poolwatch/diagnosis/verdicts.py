"""The verdict on one open hold: a pure function of its evidence.

There are three grades of certainty: *suspected* (over a threshold), *orphaned* (the
owner has ended), and *proven* (garbage-collected, which the ledger counts; or dropped,
for a pool that keeps references to its checked-out connections).
"""

from __future__ import annotations

from typing import NamedTuple

from poolwatch.diagnosis.evidence import HoldEvidence, Search
from poolwatch.model import FindingKind, Frame, Verdict
from poolwatch.stacks.classify import OUTSIDE, Activity, activity_of
from poolwatch.text.format import activity, duration


class Judgement(NamedTuple):
    """A verdict, the kind of finding it amounts to (if any), and its reasons."""

    verdict: Verdict
    kind: FindingKind | None
    reasons: tuple[str, ...]


_ADOPTED = "was out when poolwatch attached: call site, holder and age unknown"
_DROPPED = "only the pool refers to it: no code can return it any more"


def suspicious(hold: HoldEvidence) -> bool:
    """Whether the verdict depends on what refers to the connection."""
    if hold.dropped or hold.long_hold or hold.statement_s is not None:
        return False
    if hold.known_use:
        return False
    if hold.ended_owner:
        return True
    if hold.kept:
        return False
    if hold.held_s < hold.long_after or _used_recently(hold):
        return False
    return hold.adopted or hold.frames_left < hold.frames_at_checkout


def proven_unused(hold: HoldEvidence, search: Search | None) -> bool:
    """Whether a search shows that a suspicious hold is not in use."""
    if search is None or not suspicious(hold) or not search.proves_unused:
        return False
    if hold.ended_owner and hold.held_s < hold.long_after:
        # what a task opens at the start-up, a running function may keep far away
        return search.path is None or not search.path.by_attributes
    return True


def _used_recently(hold: HoldEvidence) -> bool:
    """Whether a statement has run on the connection within the threshold.

    A daemon may have its connection in a global variable, and none of its functions on
    the stack between two rounds. A connection in regular use is not abandoned.
    """
    return hold.unused_s is not None and hold.unused_s < hold.long_after


def judge(hold: HoldEvidence) -> Judgement:
    """Judge one hold."""
    reasons = _circumstances(hold)
    if hold.dropped:  # proven: a declared long hold does not matter
        return Judgement("leaked", "leaked.collected", (*reasons, _DROPPED))
    if hold.long_hold:
        return Judgement("ok", None, (*reasons, f"declared long: {hold.long_hold}"))
    if hold.own_connection and hold.kept and not hold.ended_owner:
        return Judgement("ok", None, (*reasons, hold.kept))
    if hold.search is not None and hold.search.pending:
        long = hold.held_s >= hold.long_after
        return Judgement("long" if long else "ok", None, reasons)
    if proven_unused(hold, hold.search):
        return _leaked(hold, reasons)
    return _not_leaked(hold, reasons)


def _leaked(hold: HoldEvidence, reasons: tuple[str, ...]) -> Judgement:
    path = hold.search.path if hold.search is not None else None
    kept_alive = (
        f"kept alive by {path.words}" if path else "no reference to it was found"
    )
    if hold.ended_owner:
        return Judgement("leaked", "leaked.orphaned", (*reasons, kept_alive))
    returned = "the code that checked it out has returned, and no running code has it"
    if hold.loop_stopped or hold.adopted:
        returned = "no running code has it"
    return Judgement(
        "leaked", "leaked.abandoned", (_age(hold), *reasons, returned, kept_alive)
    )


def _not_leaked(hold: HoldEvidence, reasons: tuple[str, ...]) -> Judgement:
    if hold.held_s < hold.long_after:
        return Judgement("ok", None, reasons + (_use(hold) if hold.adopted else ()))
    moved_on = hold.adopted or hold.frames_left < hold.frames_at_checkout
    if moved_on and _used_recently(hold):
        used_s = hold.held_s - (hold.unused_s or 0.0)
        if used_s < hold.long_after:  # its known use did not last long
            return Judgement("ok", None, reasons)
    reasons = (_age(hold), *reasons, *_use(hold))
    if hold.statement_s is not None and hold.statement_s >= hold.held_s / 2:
        running = f"one statement has been running for {duration(hold.statement_s)}"
        return Judgement("long", None, (*reasons, running))  # see slow_query
    now = _activity_of_user(hold)
    if now is None:
        return Judgement("long", "long_hold", reasons)
    outside = now.kind in OUTSIDE and hold.statement_s is None
    kind: FindingKind = "held_across_io" if outside else "long_hold"
    return Judgement("long", kind, (*reasons, f"now {activity(now.frame, now.kind)}"))


def _use(hold: HoldEvidence) -> tuple[str, ...]:
    """The result of the search, in words, for a hold that is not leaked."""
    search = hold.search
    known = hold.known_use or (None if hold.ended_owner else hold.kept)
    if known:
        return (known,)
    if search is None:
        return ()
    if search.path is not None and search.in_use:
        user = search.path.user if hold.adopted else None
        who = "" if user is None else f", {user.words}"
        return (f"in use by {search.path.words}{who}",)
    if search.path is not None and hold.adopted:
        return (f"kept alive by {search.path.words}",)
    if search.unseen and suspicious(hold):
        return (f"not known whether it is in use: {search.unseen}",)
    return ()


def _activity_of_user(hold: HoldEvidence) -> Activity | None:
    """The current activity of the code that uses the connection; None if unknown.

    The recorded stack is that of the holder. If another thread or task has the
    connection, only one of its frames is known, or only its statements.
    """
    path = hold.search.path if hold.search is not None else None
    if hold.loop_stopped or hold.known_use:
        return None
    if path is not None and path.in_use:
        if path.same_holder is False and path.frame is not None:
            if not (path.direct or _sent_last_statement(hold, path.frame)):
                return None  # another method may be the user
            now = activity_of((path.frame,))
            return None if now is not None and now.is_ambiguous() else now
    elif hold.by_others and _used_recently(hold):
        return None
    elif _is_open(hold):
        return None  # the holder may have gone on to other work
    return hold.activity


def _is_open(hold: HoldEvidence) -> bool:
    """Whether no complete search has said yet who uses the connection."""
    if hold.search is None:
        return suspicious(hold)
    return hold.search.unseen is not None and not hold.search.hidden


def _sent_last_statement(hold: HoldEvidence, frame: Frame) -> bool:
    """Whether the function of that frame sent the last statement."""
    return any(
        (each.file, each.function) == (frame.file, frame.function) for each in hold.used
    )


def _age(hold: HoldEvidence) -> str:
    least = "at least " if hold.adopted else ""
    held, limit = duration(hold.held_s), duration(hold.long_after)
    return f"held {least}{held}; long_after is {limit}"


def _circumstances(hold: HoldEvidence) -> tuple[str, ...]:
    reasons = [_ADOPTED] if hold.adopted else []
    if hold.ended_owner:
        reasons.append(f"{hold.ended_owner} checked it out and has ended")
    if hold.loop_stopped:
        reasons.append("its task cannot go on: nobody runs the event loop")
    if hold.detached:
        reasons.append("detached: the pool has already replaced this connection")
    return tuple(reasons)
