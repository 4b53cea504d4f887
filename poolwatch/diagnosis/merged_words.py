"""The sentences about several equal findings, with their counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from poolwatch.diagnosis.blocking import LockRoot
from poolwatch.diagnosis.common import doing_now, still_running
from poolwatch.diagnosis.lock_waits import in_words, kept_since, name_of_kept
from poolwatch.diagnosis.merged_records import Case, Key, ProcessName, key_of
from poolwatch.diagnosis.pools import exhausted_text
from poolwatch.diagnosis.sessions import servers_by_pool
from poolwatch.model import FindingKind, Hold, Process, ServerRow, Wait
from poolwatch.text.format import (
    call_site,
    clock,
    duration,
    plural,
    site_and_callers,
    utc_time,
)
from poolwatch.text.naming import process_name

_OF_SITES: dict[FindingKind, str] = {
    "leaked.orphaned": "{site} checked out {many}{where}; their threads or tasks have "
    "ended without returning them, the oldest {held} ago",
    "leaked.abandoned": "{site} checked out {many}{where}; nothing uses them any more, "
    "the oldest was checked out {held} ago",
    "long_hold": "{site} holds {many}{where}, longest {held}",
    "held_across_io": "{site} holds {many}{where} during work outside the database, "
    "longest {held}",
    "idle_in_transaction": "{site} holds {many}{where}, idle in a transaction, longest "
    "{state}",
    "slow_query": "{site} runs one statement on each of {many}{where}, longest {state}",
}
"""Kinds about the holds of one call site."""


RESTARTED = "restarted "
"""How ``about`` begins in the key of ghosts whose server was restarted."""


class Group(NamedTuple):
    """Equal findings, the worst first."""

    key: Key
    cases: Sequence[Case]

    @property
    def roots(self) -> list[LockRoot]:
        """Of lock waits: the roots, the one that holds up most first."""
        roots = {
            (case.root.server, case.root.session.pid): case.root
            for case in self.cases
            if case.root is not None
        }
        return sorted(roots.values(), key=lambda root: -len(root.victims))

    @property
    def processes(self) -> tuple[ProcessName, ...]:
        """The processes that have it, each once."""
        owners = [case.process for case in self.cases if case.process is not None]
        return tuple(
            dict.fromkeys(
                ProcessName(
                    each.host, each.pid, process_name(each), each.at is not None
                )
                for each in owners
            )
        )

    @property
    def where(self) -> str:
        """`` in 64 processes``; nothing if it is one."""
        count = len(self.processes)
        return f" in {count} processes" if count > 1 else ""

    @property
    def holds(self) -> tuple[tuple[Process, Hold], ...]:
        """The roots of locks, and the holds that the findings name; each once."""
        roots = [(root.session.process, root.session.hold) for root in self.roots]
        found = {key_of(*each): each for case in self.cases for each in case.holds}
        first = {key_of(p, h): (p, h) for p, h in roots if p and h}
        return tuple({**first, **found}.values())

    @property
    def waits(self) -> tuple[tuple[Process, Wait], ...]:
        """The waits that the findings name, each once."""
        found = {key_of(*each): each for case in self.cases for each in case.waits}
        return tuple(found.values())


def merged_text(group: Group) -> str:
    """One true sentence about all findings of a group."""
    kind = group.key.kind
    if group.roots:
        return _holds_up(group.roots)
    if len(group.cases) == 1:
        return group.cases[0].finding.text
    if kind in _OF_SITES:
        return _of_site(group) or _likewise(group)
    words = _WORDS.get(kind)
    return (words and words(group)) or _likewise(group)


def _holds_up(roots: Sequence[LockRoot]) -> str:
    """Say how many sessions the roots of one call site hold up, and what they do."""
    victims = _victims(roots)
    session = roots[0].session
    hold, row = session.hold, session.row
    if session.kept is not None:
        return f"{name_of_kept(session)} holds up {victims}: {kept_since(session)}"
    if hold is None or row is None or hold.may_have_ended:
        return f"{in_words(session)} holds up {victims}"
    if len(roots) == 1:
        return f"{call_site(hold)} holds up {victims}: {_since(row)}{_doing(hold)}"
    rows = [root.session.row for root in roots if root.session.row is not None]
    oldest = max(rows, key=lambda each: each.state_age_s or 0.0)
    return (
        f"{call_site(hold)} holds up {victims} with {plural(len(roots), 'connection')}"
        f", longest {_since(oldest)}"
    )


def _victims(roots: Sequence[LockRoot]) -> str:
    """``3 sessions``; one alone with its call site, if it is known."""
    found = [node.session.hold for root in roots for node in root.victims]
    named = f" ({call_site(found[0])})" if len(found) == 1 and found[0] else ""
    return f"{plural(len(found), 'session')}{named}"


def _since(row: ServerRow) -> str:
    return f"{row.state or '?'} for {duration(row.state_age_s)}"


def _doing(hold: Hold) -> str:
    if hold.verdict == "leaked":
        return ", leaked"
    doing = doing_now(hold.site, hold.now) if still_running(hold) else ""
    return f", its code is {doing}" if doing else ""


def _of_site(group: Group) -> str | None:
    holds = [hold for _, hold in group.holds]
    if len(holds) < 2:
        return None
    rows = [hold.server for hold in holds if hold.server is not None]
    return _OF_SITES[group.key.kind].format(
        site=site_and_callers(holds[0].site, *dict.fromkeys(h.caller for h in holds)),
        many=plural(len(holds), "connection"),
        where=group.where,
        held=duration(max(hold.known_s for hold in holds)),
        state=duration(max((row.state_age_s or 0.0 for row in rows), default=None)),
    )


def _exhausted(group: Group) -> str | None:
    pools = [case.pool for case in group.cases if case.pool is not None]
    holds, waits = [h for _, h in group.holds], [w for _, w in group.waits]
    if not pools or not waits:
        return None
    out = sum(pool.out for pool in pools)
    return exhausted_text(pools, holds, waits, out, group.where)


def _ghost(group: Group) -> str:
    holds = plural(len(group.holds), "hold")
    if not group.key.about.startswith(RESTARTED):
        return f"{holds}{group.where} have lost their sessions on the server"
    count = len(group.processes)
    owners = f" of {count} processes" if count > 1 else ""
    restarted = f"that was restarted{_restarted_at(group)}"
    return f"{holds}{owners} are on a server {restarted}"


def _restarted_at(group: Group) -> str:
    """`` at 09:05:36``, in local time: by the server's own clock."""
    process = group.cases[0].process
    for status in () if process is None else servers_by_pool(process).values():
        identity = status.identity or ""
        if group.key.about == RESTARTED + identity:
            try:
                return f" at {clock(utc_time(float(identity.partition('/')[2])))}"
            except (ValueError, OverflowError, OSError):
                break
    return ""


def _of_server(group: Group) -> str | None:
    """Say what is wrong with a server, and how many processes use it."""
    worst = group.cases[0].finding
    if not group.key.about:
        return None
    same = len({case.finding.text for case in group.cases}) == 1
    if same or worst.kind != "server_down":
        return worst.text
    told = worst.text.rpartition("; ")[0]
    return f"{told}; {len(group.processes)} processes use it"


def _likewise(group: Group) -> str:
    """The worst member's sentence, and how many others are like it."""
    worst = group.cases[0].finding
    others = len(group.processes) - 1
    if others > 0:
        processes = "process" if others == 1 else "processes"
        return f"{worst.text}; likewise in {others} more {processes}"
    return f"{worst.text}; and {len(group.cases) - 1} more like it"


_WORDS: dict[FindingKind, Callable[[Group], str | None]] = {
    "exhausted": _exhausted,
    "ghost": _ghost,
    "server_down": _of_server,
    "over_capacity": _of_server,
}
