"""The text about a run that stands still: what waits, who holds, and who blocks.

The process looks at itself as a viewer does, so that the server is read over a
connection of its own, and a holder in another process (a worker of xdist, say) is named
as well.
"""

from __future__ import annotations

import os
import platform
import time
from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from poolwatch.agent.instrument import agent
from poolwatch.diagnosis.sessions import Session, Sessions, holds_with_rows, server_of
from poolwatch.model import Finding, FindingKind, Frame, Hold, PoolStats, Process, Wait
from poolwatch.stacks.classify import activity_of
from poolwatch.stacks.compare import user_frames
from poolwatch.testing.report import callers_of
from poolwatch.text.format import (
    activity,
    call_site,
    duration,
    lasts,
    one_line,
    place,
    plural,
)

if TYPE_CHECKING:
    from poolwatch.testing.standing import Standing

_MAX_REQUESTS = 3
_MAX_HOLDERS = 6
_MAX_FINDINGS = 4
_REASONS: Collection[FindingKind] = ("pool_deadlock", "lock_wait", "nested")


def describe(
    subject: str, standing: Collection[Standing], directory: Path | None
) -> str | None:
    """Return the text; None if nothing stands still any more.

    ``directory`` is where the sockets are; None if there is no such place. A server may
    take its time to answer: what has ended meanwhile is described without it.
    """
    now, own = time.monotonic(), agent.source.process()
    without_server = _text(subject, standing, now, own, (own,))
    if without_server is None:
        return None
    processes = _joined_processes(directory)
    here = os.getpid(), platform.node()
    for process in processes:
        if (process.pid, process.host) == here:
            text = _text(subject, standing, time.monotonic(), process, processes)
            return text or without_server
    return without_server


def _joined_processes(directory: Path | None) -> tuple[Process, ...]:
    """The processes of this user, joined with their servers."""
    if directory is None:
        return ()
    from poolwatch.client.client import Client
    from poolwatch.client.live import LiveSource

    try:
        source = LiveSource(Client(directory), environ={}, linger_s=0.0)
        return source.snapshot().processes
    except Exception:  # noqa: BLE001 - the text is better without it than not at all
        return ()


def _text(
    subject: str,
    standing: Collection[Standing],
    now: float,
    process: Process,
    processes: Sequence[Process],
) -> str | None:
    seconds = {each.id: now - each.began for each in standing if each.lasts()}
    waits = [each for each in process.waits if each.id in seconds]
    holds = [each for each in process.holds if each.id in seconds]
    if not waits and not holds:
        return None
    requests: list[Wait | Hold] = [*waits, *holds]
    where = ["a pool wait"] * bool(waits) + ["a statement"] * bool(holds)
    longest = duration(max(seconds[each.id] for each in requests))
    lines = [f"{subject} has stood still for {longest} in {' and '.join(where)}"]
    lines += _requests(process, waits, holds)
    lines += _findings(process, {each.id for each in requests})
    lines += _holders(process, processes, waits, holds)
    return "\npool leaks: " + "\n".join(lines) + "\n"


def _requests(
    process: Process, waits: Sequence[Wait], holds: Sequence[Hold]
) -> Iterator[str]:
    """The waits and statements, those of one line of code together."""
    pools = {pool.id: pool for pool in process.pools}
    groups: dict[tuple[object, ...], list[Wait | Hold]] = defaultdict(list)
    for wait in waits:
        groups[wait.pool, wait.site].append(wait)
    for hold in holds:
        groups[hold.pool, _sent_from(hold), hold.server].append(hold)
    for group in list(groups.values())[:_MAX_REQUESTS]:
        yield from _request(group, pools[group[0].pool], process)
    if len(groups) > _MAX_REQUESTS:
        yield f"  ... and at {plural(len(groups) - _MAX_REQUESTS, 'more place')}"


def _request(
    group: Sequence[Wait | Hold], pool: PoolStats, process: Process
) -> Iterator[str]:
    first = group[0]
    sent = isinstance(first, Hold)
    site, stack = (
        (_sent_from(first), first.used)
        if isinstance(first, Hold)
        else (first.site, first.stack)
    )
    what = "statement sent" if sent else "connection requested"
    if len(group) > 1:
        what = f"{len(group)} " + what.replace(" ", "s ", 1)
    who = f"task {first.task}" if first.task else f"thread {first.thread}"
    yield _line(2, f"{what} at {_at(site)}, pool {pool.name!r}, by {who}")
    yield from (_line(6, f"from {_at(each)}") for each in callers_of(stack, site))
    if isinstance(first, Hold):
        if first.statement:
            yield _line(4, first.statement, 120)
        yield from (_line(4, each) for each in _server_words(first, process))
    else:
        yield _line(4, _pool_words(pool))


def _sent_from(hold: Hold) -> Frame | None:
    """The line of the user's code that sent the statement."""
    return next(iter(user_frames(hold.used)), hold.site)


def _server_words(hold: Hold, process: Process) -> Iterator[str]:
    row = hold.server
    if row is None:
        errors = [each.error for each in process.servers if hold.pool in each.pools]
        yield from (f"PostgreSQL was not read: {each}" for each in errors if each)
    elif row.blocked_by:
        pids = ", ".join(map(str, row.blocked_by))
        yield f"PostgreSQL: waits for a lock ({row.wait_event}), blocked by pid {pids}"
    elif row.state == "active":
        event = f" ({row.wait_event})" if row.wait_event else ""
        yield f"PostgreSQL is busy with it{event}; it waits for no lock"
    else:
        yield f"PostgreSQL has finished it: the session is {row.state}"


def _pool_words(pool: PoolStats) -> str:
    if pool.capacity is None:
        return f"{plural(pool.checked_out, 'connection')} out"
    out = f"{pool.checked_out} of {plural(pool.capacity, 'connection')} out"
    if pool.checked_out < pool.capacity:
        out += ", so a connection is being opened"
    return out


def _findings(process: Process, requests: set[str]) -> Iterator[str]:
    """The findings that say why these requests wait.

    All other findings follow from numbers that the report shows anyway.
    """
    found = [
        each
        for each in process.findings
        if each.kind in _REASONS and requests & {*each.waits, *each.holds}
    ]
    deadlocked = {each.pool for each in found if each.kind == "pool_deadlock"}
    for each in found[:_MAX_FINDINGS]:
        if each.kind != "nested" or (each.waits and each.pool not in deadlocked):
            yield from _finding(each)


def _finding(finding: Finding) -> Iterator[str]:
    yield _line(2, f"{finding.kind}: {finding.text}")
    yield _line(6, finding.proof)
    yield _line(6, f"fix: {finding.remedy}")


def _holders(
    process: Process,
    processes: Sequence[Process],
    waits: Sequence[Wait],
    holds: Sequence[Hold],
) -> Iterator[str]:
    """The holders of the connections that are waited for, and sessions that block."""
    wanted = {wait.pool for wait in waits}
    found = [each for each in process.holds if each.pool in wanted]
    sessions = Sessions(processes)
    waiting = {hold.id for hold in holds}
    for hold, _, server in holds_with_rows(process):
        if hold.id in waiting:
            session = Session(hold.backend_pid or 0, process, hold=hold)
            for blocker in sessions.blockers(server_of(process, server), session):
                known = blocker.hold and blocker.hold.server  # by its own process
                if blocker.hold and known and blocker.hold not in found:
                    found.append(blocker.hold)
    groups: dict[tuple[object, ...], list[Hold]] = defaultdict(list)
    for each in found:
        groups[each.site, _owner(each)].append(each)
    requests: list[Wait | Hold] = [*waits, *holds]
    standing = {_holder_of(process, each) for each in requests}
    for group in list(groups.values())[:_MAX_HOLDERS]:
        yield from _holder(group, process, processes, standing)
    if len(groups) > _MAX_HOLDERS:
        yield f"  ... and {plural(len(groups) - _MAX_HOLDERS, 'more holder')}"


def _holder_of(process: Process, request: Wait | Hold) -> tuple[object, ...]:
    return process.pid, request.thread, request.task


def _holder(
    group: Sequence[Hold],
    process: Process,
    processes: Sequence[Process],
    standing: Collection[tuple[object, ...]],
) -> Iterator[str]:
    hold = max(group, key=lambda each: each.known_s)
    home = next(each for each in processes if hold in each.holds)
    pool = next(each.name for each in home.pools if each.id == hold.pool)
    count = "connection" if len(group) == 1 else plural(len(group), "connection")
    function = f" in {hold.site.function}" if hold.site else ""
    where = "" if home is process else f", in pid {home.pid}"
    yield _line(
        2,
        f"{count} of pool {pool!r} held for {lasts(hold)}, checked out at "
        f"{call_site(hold)}{function}, by {_owner(hold)}{where}",
    )
    now = activity_of(hold.now)
    if _holder_of(home, hold) in standing:
        yield _line(6, "its holder is what stands still")
    elif now is not None:
        yield _line(6, f"now {activity(now.frame, now.kind)}")
    if hold.server is not None and hold.server.state:
        age = duration(hold.server.state_age_s)
        yield _line(6, f"backend {hold.backend_pid}: {hold.server.state} for {age}")
    if hold.statement:
        yield _line(6, f"last statement: {hold.statement}", 120)


def _owner(hold: Hold) -> str:
    """The test or fixture of a hold, else its task or thread."""
    owner = hold.labels.get("test") or hold.labels.get("fixture")
    if owner is None and "collection" in hold.labels:
        owner = f"the import of {hold.labels['collection']}"
    return owner or (f"task {hold.task}" if hold.task else f"thread {hold.thread}")


def _at(frame: Frame | None) -> str:
    return "?" if frame is None else f"{place(frame)} in {frame.function}"


def _line(indent: int, text: str, limit: int = 400) -> str:
    return " " * indent + one_line(text, limit)
