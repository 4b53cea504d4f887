"""The sentences about several equal findings, with their counts."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from poolwatch.diagnosis.lock_roots import LockRoot, holds_up
from poolwatch.diagnosis.merged_records import Facts, Key, Member, holds_of, waits_of
from poolwatch.diagnosis.pools import exhausted_text
from poolwatch.diagnosis.sessions import servers_by_pool
from poolwatch.model import FindingKind, Hold
from poolwatch.text.format import (
    clock,
    duration,
    plural,
    site_and_callers,
    utc_time,
)

_OF_SITES: dict[FindingKind, str] = {
    "leaked.orphaned": "{site} checked out {many} in threads or tasks that have ended "
    "without returning {them}{where}, the oldest {held} ago",
    "leaked.abandoned": "{site} checked out {many} that nothing uses any more{where}, "
    "the oldest {held} ago",
    "long_hold": "{site} holds {many}{where}, longest {held}",
    "held_across_io": "{site} holds {many} during work outside the database{where}, "
    "longest {held}",
    "idle_in_transaction": "{site} holds {many} idle in a transaction{where}, longest "
    "{state}",
    "slow_query": "{site} runs one statement on each of {many}{where}, longest {state}",
}
"""Kinds about the holds of one call site."""


class Group(NamedTuple):
    """Equal findings, the worst first."""

    key: Key
    members: tuple[Member, ...]
    roots: tuple[LockRoot, ...] = ()
    """Of lock waits: the roots, which have one call site or are one session."""

    @property
    def processes(self) -> int:
        """The number of processes that have it."""
        return len({(p.host, p.pid) for p, _ in self.members if p is not None})

    @property
    def where(self) -> str:
        """`` in 64 processes``; nothing if it is one."""
        return f" in {self.processes} processes" if self.processes > 1 else ""

    def holds(self, facts: Facts) -> list[Hold]:
        """The holds that the findings name, each once."""
        named = dict.fromkeys(hold for each in self.members for hold in holds_of(each))
        return [hold for each in named if (hold := facts.hold(each)) is not None]


def merged_text(group: Group, facts: Facts) -> str:
    """One true sentence about all members of a group."""
    kind = group.key.kind
    if group.roots:
        return holds_up(group.roots)
    if kind in _OF_SITES:
        return _of_site(group, facts) or _likewise(group)
    words = _WORDS.get(kind)
    return (words and words(group, facts)) or _likewise(group)


def _of_site(group: Group, facts: Facts) -> str | None:
    holds = group.holds(facts)
    if len(holds) < 2:
        return None
    rows = [hold.server for hold in holds if hold.server is not None]
    return _OF_SITES[group.key.kind].format(
        site=site_and_callers(holds[0].site, *(hold.caller for hold in holds)),
        many=plural(len(holds), "connection"),
        them="them",
        where=group.where,
        held=duration(max(hold.held_s for hold in holds)),
        state=duration(max((row.state_age_s or 0.0 for row in rows), default=None)),
    )


def _exhausted(group: Group, facts: Facts) -> str | None:
    pools = [pool for each in group.members if (pool := facts.pool(each)) is not None]
    named = [wait for each in group.members for wait in waits_of(each)]
    waits = [wait for each in named if (wait := facts.wait(each)) is not None]
    if not pools or not waits:
        return None
    out = sum(pool.out for pool in pools)
    return exhausted_text(pools, group.holds(facts), waits, out, group.where)


def _ghost(group: Group, facts: Facts) -> str:
    holds = plural(len(group.holds(facts)), "hold")
    if not group.key.about.startswith("restarted "):
        return f"{holds}{group.where} have lost their sessions on the server"
    owners = f" of {group.processes} processes" if group.processes > 1 else ""
    at = _restarted_at(group)
    return f"{holds}{owners} are on a server that was restarted{at}"


def _restarted_at(group: Group) -> str:
    """`` at 09:05:36``, in local time: by the server's own clock."""
    process, _ = group.members[0]
    for status in () if process is None else servers_by_pool(process).values():
        identity = status.identity or ""
        if group.key.about == f"restarted {identity}":
            try:
                return f" at {clock(utc_time(float(identity.partition('/')[2])))}"
            except (ValueError, OverflowError, OSError):
                break
    return ""


def _of_server(group: Group, _: Facts) -> str | None:
    """A finding about a server counts all its processes that were seen together."""
    worst = group.members[0][1]
    if not group.key.about:
        return None
    same = len({finding.text for _, finding in group.members}) == 1
    if same or worst.kind != "server_down":
        return worst.text
    told = worst.text.rpartition("; ")[0]
    return f"{told}; {group.processes} processes use it"


def _likewise(group: Group) -> str:
    """The worst member's sentence, and how many others are like it."""
    _, worst = group.members[0]
    others = group.processes - 1
    if others > 0:
        processes = "process" if others == 1 else "processes"
        return f"{worst.text}; likewise in {others} more {processes}"
    return f"{worst.text}; and {len(group.members) - 1} more like it"


_WORDS: dict[FindingKind, Callable[[Group, Facts], str | None]] = {
    "exhausted": _exhausted,
    "ghost": _ghost,
    "server_down": _of_server,
    "over_capacity": _of_server,
}
