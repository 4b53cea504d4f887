"""The note for a pool's own TimeoutError: the holders, the waits, and the finding.

It is added to the exception, whose type and message stay as they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence

from poolwatch.model import Finding, Frame, Hold, PoolStats, Process, Wait
from poolwatch.stacks.classify import activity_of
from poolwatch.text.format import (
    activity,
    call_site,
    lasts,
    one_line,
    place,
    plural,
)
from poolwatch.text.naming import task_name

_MAX_SITES = 8
"""Most call sites that are named, so that the note fits on a screen."""


def note(process: Process, pool_id: str) -> str:
    """Return the note for a timeout of this pool: holders, waiters and the finding."""
    pool = next(each for each in process.pools if each.id == pool_id)
    holds = [hold for hold in process.holds if hold.pool == pool_id]
    waits = [wait for wait in process.waits if wait.pool == pool_id]
    findings = [each for each in process.findings if each.pool == pool_id]
    lines = [
        f"poolwatch: {_head(pool, holds)}",
        *_holders(holds),
        *_waiters(waits),
        *_finding(findings),
    ]
    return "\n".join(lines)


def _head(pool: PoolStats, holds: Sequence[Hold]) -> str:
    size = "" if pool.size is None else f" (size {pool.size}"
    if size:
        size += f" + overflow {pool.max_overflow}" if pool.max_overflow else ""
        size += f", {plural(pool.lost_slots, 'slot')} lost)" if pool.lost_slots else ")"
    out = plural(len(holds), "connection")
    return one_line(f"pool {pool.name!r}{size} has {out} checked out")


def _holders(holds: Iterable[Hold]) -> list[str]:
    groups: dict[tuple[Frame | None, Frame | None], list[Hold]] = defaultdict(list)
    for hold in holds:
        groups[hold.site, hold.caller].append(hold)
    ranked = sorted(groups.items(), key=lambda item: (-len(item[1]), -_oldest(item[1])))
    lines = [_holder(*where, group) for where, group in ranked[:_MAX_SITES]]
    rest = sum(len(group) for _, group in ranked[_MAX_SITES:])
    return [*lines, f"  and {rest} more from other call sites"] if rest else lines


def _holder(site: Frame | None, caller: Frame | None, group: Sequence[Hold]) -> str:
    first = max(group, key=lambda hold: hold.known_s)
    function = f" in {site.function}" if site else ""
    if caller:
        function += f" from {place(caller)} in {caller.function}"
    return _line(
        f"{len(group)} held by {place(site)}{function}, longest "
        f"{lasts(first)} ({_who(first)}); now: {_now(first)}"
    )


def _waiters(waits: Sequence[Wait]) -> list[str]:
    if not waits:
        return []
    oldest = max(waits, key=lambda wait: wait.known_s)
    return [
        _line(
            f"{len(waits)} waiting, the longest for {lasts(oldest)} "
            f"at {call_site(oldest)}"
        )
    ]


def _finding(findings: Sequence[Finding]) -> list[str]:
    if not findings:
        return []
    deadlocks = [each for each in findings if each.kind == "pool_deadlock"]
    worst = next(iter(deadlocks or findings))
    return [
        _line(f"{worst.kind}: {worst.text}"),
        _line(worst.remedy),
    ]


def _now(hold: Hold) -> str:
    now = activity_of(hold.now)
    if now is not None:
        return activity(now.frame, now.kind)
    return "; ".join(hold.evidence[:1]) or "not running"


def _line(text: str) -> str:
    """One indented line of the note, without control characters."""
    return "  " + one_line(text)


def _who(hold: Hold) -> str:
    return f"task {task_name(hold.task)}" if hold.task else f"thread {hold.thread}"


def _oldest(holds: Iterable[Hold]) -> float:
    return max(hold.known_s for hold in holds)
