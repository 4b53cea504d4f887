"""The roots of lock waits: sessions that hold up others and wait for no lock.

For findings, which must be true: a blocker that may have ended is left out, and a
session behind several roots counts for each. The trees of
:mod:`poolwatch.diagnosis.blocking` show every session that waits, once.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from typing import NamedTuple

from poolwatch.diagnosis.common import doing_now, still_running
from poolwatch.diagnosis.lock_waits import in_words
from poolwatch.diagnosis.sessions import Key, Session, Sessions
from poolwatch.model import Hold, ServerRow
from poolwatch.text.format import call_site, duration, plural


class LockRoot(NamedTuple):
    """A session at the end of chains of waits, and all that it holds up."""

    server: str
    session: Session
    victims: frozenset[Key]
    """The sessions that wait for it, at once or behind others."""


def lock_roots(sessions: Sessions) -> dict[Key, LockRoot]:
    """The root of each session that waits; of several, the one that holds up most.

    A cycle of waits has no root.
    """
    behind: dict[Key, list[Key]] = defaultdict(list)
    ends: dict[Key, Session] = {}
    known = {id(session) for session in sessions.known.values() if session.is_waiting}
    for server, waiting in sessions.waiting():
        victim = server, waiting.pid
        for blocker in sessions.blockers(server, waiting):
            key = server, blocker.pid
            behind[key].append(victim)
            # in a queue, each waits for all before it: asked once, not for each pair
            if id(blocker) not in known and not blocker.is_waiting:
                ends[key] = blocker
    roots = [LockRoot(key[0], end, _all(behind, key)) for key, end in ends.items()]
    roots.sort(key=lambda root: len(root.victims))
    return {victim: root for root in roots for victim in root.victims}


def _all(behind: dict[Key, list[Key]], root: Key) -> frozenset[Key]:
    found: set[Key] = set()
    links = deque([root])
    while links:
        new = [each for each in behind.get(links.popleft(), ()) if each not in found]
        found.update(new)
        links.extend(new)
    return frozenset(found - {root})


def holds_up(roots: Sequence[LockRoot]) -> str:
    """Say how many sessions the roots of one call site hold up, and what they do."""
    count = len(frozenset[Key]().union(*(root.victims for root in roots)))
    victims = plural(count, "session")
    session = roots[0].session
    hold, row = session.hold, session.row
    if hold is None or row is None or session.lock is not None:
        others = f" and {len(roots) - 1} more" if len(roots) > 1 else ""
        hold_up = "hold up" if others else "holds up"
        return f"{in_words(session)}{others} {hold_up} {victims}"
    if len(roots) == 1:
        doing = _doing(hold)
        return f"{call_site(hold)} holds up {victims}: {_since(row)}{doing}"
    rows = [root.session.row for root in roots if root.session.row is not None]
    oldest = max(rows, key=lambda each: each.state_age_s or 0.0)
    return (
        f"{call_site(hold)} holds up {victims} with {plural(len(roots), 'connection')}"
        f", longest {_since(oldest)}"
    )


def _since(row: ServerRow) -> str:
    return f"{row.state or '?'} for {duration(row.state_age_s)}"


def _doing(hold: Hold) -> str:
    if hold.verdict == "leaked":
        return ", leaked"
    doing = doing_now(hold.site, hold.now) if still_running(hold) else ""
    return f", its code is {doing}" if doing else ""
