"""``unreachable``: an instrumented process that is not known to have ended is silent.

Only a viewer can find it. A process that has ended is not a fault.
"""

from __future__ import annotations

from collections.abc import Iterable

from poolwatch.model import Finding, Unreachable
from poolwatch.text.format import clock, duration, one_line

CRITICAL_AFTER_S = 10.0
"""Seconds without an answer after which a silent process is critical."""
_STOPPED = "The signal SIGCONT lets it go on, unless a debugger has stopped it."
_HELD = (
    "See what its threads are doing (py-spy dump): a call that keeps the interpreter's "
    "lock stops every other thread, poolwatch's too."
)


def silent_processes(unreachable: Iterable[Unreachable]) -> list[Finding]:
    """A finding for each process that gave no answer and has not ended."""
    return [_silent(lost) for lost in unreachable if lost.alive is not False]


def _silent(lost: Unreachable) -> Finding:
    name = f"{lost.name or 'process'} {lost.pid or '?'}"
    if lost.host is not None and lost.name is None:
        name += f" on {lost.host}"
    why = lost.why.removeprefix("it ")
    if why == lost.why:  # an error in other words
        name, why = f"{name} gives no snapshot", f"({why})"
    age = None if lost.silent_s is None else duration(lost.silent_s)
    if age is not None and "does not answer" in why:
        why = why.replace("does not answer", f"has not answered for {age}")
    elif age is not None:
        why += f"; its last answer came {age} ago"
    proof = "" if lost.since is None else f"its last sign of life: {clock(lost.since)}"
    return Finding(
        kind="unreachable",
        severity="critical" if _is_long(lost) else "warning",
        pool=None,
        text=one_line(f"{name} {why}"),
        proof=proof,
        remedy=_remedy(lost),
    )


def _is_long(lost: Unreachable) -> bool:
    """Unknown counts as long: an agent of this version always leaves its time."""
    return lost.silent_s is None or lost.silent_s >= CRITICAL_AFTER_S


def _remedy(lost: Unreachable) -> str:
    if "stopped" in lost.why:
        return _STOPPED
    return _HELD if lost.alive and "does not answer" in lost.why else ""
