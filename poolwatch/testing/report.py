"""The text about a leak: call site, holder, reference path, and fix."""

from __future__ import annotations

import linecache
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import takewhile

from poolwatch.model import Frame
from poolwatch.stacks.callers import Request, callers
from poolwatch.stacks.classify import activity_of
from poolwatch.stacks.code_owner import library_of
from poolwatch.stacks.compare import still_on_stack, user_frames
from poolwatch.testing.leak import Leak
from poolwatch.text.format import activity, duration, one_line, place, plural

MAX_LINES = 15
"""Maximum number of lines of one text, without ``verbose``."""
_FRAMES = 3
"""Number of callers shown below the line that checked out the connection."""

_TEST_RUNNERS = frozenset({"_pytest", "unittest", "pluggy"})
"""Callers are shown up to the test runner, which calls every test."""

_WHAT = {
    "held": "not returned",
    "collected": "dropped without being returned",
    "detached": "detached from its pool and not closed",
}
_FIX = {
    "held": "use a with block (or call close() in a finally clause), so that the "
    "connection is returned even after an exception",
    "collected": "use a with block (or call close() in a finally clause)",
    "running": "the code that checked it out still runs: end its thread or task (stop "
    "and join it, or await it) before the test, fixture or block ends",
    "detached": "after detach() the caller must close() the connection",
}


def describe(
    leaks: Sequence[Leak],
    subject: str = "this block",
    *,
    head: str | None = None,
    verbose: bool = False,
) -> str:
    """Return the whole text: at most 15 lines, or with ``verbose`` all details.

    ``head`` is the first line, by default that ``subject`` leaked. Leaks of one kind,
    pool and call site are described together, with their number.
    """
    groups: dict[tuple[object, ...], list[Leak]] = defaultdict(list)
    for leak in leaks:
        groups[leak.kind, leak.pool, leak.site].append(leak)
    leaked = f"{subject} leaked {plural(len(leaks), 'connection')}"
    lines = [one_line(head or leaked)]
    for shown, group in enumerate(groups.values()):
        block = _block(group, verbose)
        if shown and not verbose and len(lines) + len(block) > MAX_LINES - 1:
            rest = len(groups) - shown
            lines.append(f"  ... and {plural(rest, 'more place')}: see -vv")
            break
        lines += block
    return "\n".join(lines if verbose else lines[:MAX_LINES])


def brief(leak: Leak) -> str:
    """Return one line about one leak."""
    function = f" in {leak.site.function}" if leak.site else ""
    return one_line(
        f"checked out at {place(leak.site)}{function}, pool {leak.pool!r}: "
        f"{_WHAT[leak.kind]} ({_age(leak)})"
    )


def _block(group: Sequence[Leak], verbose: bool) -> list[str]:
    leak = group[0]
    count = f"{len(group)} connections " if len(group) > 1 else ""
    function = f" in {leak.site.function}" if leak.site else ""
    lines = [
        _line(
            2, f"{count}checked out at {place(leak.site)}{function}, pool {leak.pool!r}"
        )
    ]
    source = _source(leak.site)
    if source:
        lines.append(f"  >   {source}")
    names = _distinguishing_callers(group) or _callers(leak, verbose)
    lines += [f"      from {each}" for each in names]
    lines.append(_line(4, f"{_WHAT[leak.kind]}; {_holder(leak)}"))
    if leak.kept:
        lines.append(_line(4, f"kept alive by {leak.kept}", 240))
    now = activity_of(leak.now) if leak.now else None
    if now is not None:
        lines.append(_line(4, f"now {activity(now.frame, now.kind)}"))
    if leak.statement:
        lines.append(_line(4, f"last statement: {leak.statement}", 120))
    lines.append(f"    fix: {_FIX['running' if _still_runs(leak) else leak.kind]}")
    return lines


def _still_runs(leak: Leak) -> bool:
    """Whether another thread or task is still in the code that checked it out."""
    count = len(user_frames(leak.stack))
    return leak.kind == "held" and 0 < count == still_on_stack(leak.stack, leak.now)


def _line(indent: int, text: str, limit: int = 400) -> str:
    return " " * indent + one_line(text, limit)


def _holder(leak: Leak) -> str:
    who = f"task {leak.task}" if leak.task else f"thread {leak.thread}"
    return f"{_age(leak)} by {who}"


def _age(leak: Leak) -> str:
    return f"held for {duration(leak.held_s)}"


def _distinguishing_callers(group: Sequence[Leak]) -> list[str]:
    """The callers that distinguish leaks of one call site, the most frequent first."""
    requests = {
        at: Request(leak.site, leak.stack)
        for at, leak in enumerate(group)
        if leak.site is not None
    }
    counts = Counter(callers(requests, {}).values()).most_common(_FRAMES)
    return [
        one_line(f"{place(frame)} in {frame.function} ({count} of {len(group)})")
        for frame, count in counts
    ]


def callers_of(stack: Sequence[Frame], site: Frame | None) -> list[Frame]:
    """The nearest callers of a call site, up to the test runner."""
    below = [*takewhile(_is_below_test_runner, stack)]
    return [frame for frame in user_frames(below) if frame != site][:_FRAMES]


def _callers(leak: Leak, verbose: bool) -> list[str]:
    frames = leak.stack if verbose else callers_of(leak.stack, leak.site)
    return [one_line(f"{place(frame)} in {frame.function}") for frame in frames]


def _is_below_test_runner(frame: Frame) -> bool:
    return library_of(frame.file) not in _TEST_RUNNERS


def _source(site: Frame | None) -> str:
    if site is None:
        return ""
    return one_line(linecache.getline(site.file, site.line).strip(), 100)
