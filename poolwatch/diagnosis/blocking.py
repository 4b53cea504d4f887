"""The sessions that wait for locks, as trees: each under the one that it waits for.

The roots of the trees are what the faces name: a session that holds up others, and
waits for no lock itself.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from heapq import heappop, heappush
from typing import NamedTuple

from poolwatch.diagnosis.sessions import Key, Session, Sessions
from poolwatch.model import Snapshot


class Node(NamedTuple):
    """One session that waits for a lock, or holds up others."""

    session: Session
    """With the lock that it keeps, if others wait for that."""
    server: str
    """As :func:`poolwatch.diagnosis.sessions.server_of` names it."""
    depth: int
    """0 for a root."""
    holds_up: int
    """How many sessions are below it."""
    also: tuple[int, ...] = ()
    """Pids of the further sessions that it waits for; 0 for a prepared transaction."""
    blocker: Session | None = None
    """The session that it is under, as far as that is proven."""
    cycle: bool = False
    """It waits for a session below itself: a deadlock that is not resolved yet."""

    @property
    def key(self) -> Key:
        """The identity of the server, and the pid."""
        return self.server, self.session.pid

    @property
    def is_root(self) -> bool:
        """Whether it holds up others and waits for no lock."""
        return self.depth == 0 and not self.cycle and not self.session.is_waiting


def forest(snapshot: Snapshot, sessions: Sessions | None = None) -> list[Node]:
    """Return each root followed by its victims, the worst root first.

    A root holds up others and waits for nobody. A cycle has none: it begins with the
    session that has waited for the longest time. ``sessions``: those of the snapshot.
    """
    sessions = sessions or Sessions(snapshot.processes)
    waits_for = {
        key: blockers
        for key, session in sessions.known.items()
        if session.row is not None
        if (blockers := [(key[0], p) for p in session.row.blocked_by if p != key[1]])
    }
    order = sorted(waits_for, key=partial(_longest_wait, sessions))
    places = _Places(waits_for, order)
    above = {
        key: sessions.blocker(key[0], sessions.get(*key), parent[1])
        for key, parent in places.parents.items()
        if parent is not None
    }
    kept = {places.parents[k]: each.kept for k, each in above.items() if each.kept}
    return [
        Node(
            session=sessions.get(*key)._replace(kept=kept.get(key)),
            server=key[0],
            depth=depth,
            holds_up=places.below[key],
            also=tuple(
                pid
                for server, pid in waits_for.get(key, ())
                if (server, pid) != places.parents[key]
            ),
            blocker=above.get(key),
            cycle=places.is_in_cycle(key),
        )
        for key, depth in places.in_preorder()
    ]


class LockRoot(NamedTuple):
    """A session at the end of chains of waits, and all that it holds up."""

    server: str
    session: Session
    victims: tuple[Node, ...]
    """The sessions that wait for it, at once or behind others."""


def lock_roots(snapshot: Snapshot) -> dict[Key, LockRoot]:
    """The root of each session that waits; those behind a cycle have none.

    A chain ends with a session that is not proven to wait, or that keeps the lock
    whatever its user waits for.
    """
    ends: dict[Key, Session] = {}
    path: list[Node] = []
    victims: dict[tuple[str, int, bool], list[Node]] = defaultdict(list)
    for node in forest(snapshot):
        del path[node.depth :]
        end = node.blocker
        if end is not None and end.is_waiting:
            end = ends.get(path[-1].key)
        if end is not None:
            ends[node.key] = end
            victims[node.server, end.pid, end.advisory].append(node)
        path.append(node)
    roots = [
        LockRoot(
            server, max((ends[n.key] for n in nodes), key=_is_proven), tuple(nodes)
        )
        for (server, *_), nodes in victims.items()
    ]
    return {node.key: root for root in roots for node in root.victims}


def _is_proven(session: Session) -> bool:
    return session.row is not None


def _longest_wait(sessions: Sessions, key: Key) -> tuple[float, Key]:
    row = sessions.get(*key).row
    return -(row.state_age_s or 0.0 if row else 0.0), key


class _Places:
    """The place of each session: under one of those that it waits for.

    It is the first one that waits itself: in a queue, the server says of all behind the
    head that they wait for the lock's holder, too.
    """

    def __init__(
        self, waits_for: Mapping[Key, Sequence[Key]], order: Sequence[Key]
    ) -> None:
        """``order``: those that wait; of two that may come next, the first does."""
        self._waits_for = waits_for
        self._order = order
        self._rank = {key: number for number, key in enumerate(order)}
        self.parents: dict[Key, Key | None] = {}
        """A parent comes before its children."""
        self._later: dict[Key, list[Key]] = {}
        """Those that a session waits for, but that were placed after it."""
        self._ready: list[int] = []
        """Ranks of those whose blockers are all placed, as a heap."""
        self._reached: set[int] = set()
        """Ranks of those of whose blockers some are placed."""
        self._open = {key: len(set(blockers)) for key, blockers in waits_for.items()}
        """How many of its blockers are not placed."""
        self._victims: dict[Key, list[Key]] = defaultdict(list)
        for key, blockers in waits_for.items():
            for each in set(blockers):
                self._victims[each].append(key)
        self._fill()
        self.below = dict.fromkeys(self.parents, 0)
        for key, parent in reversed(self.parents.items()):
            if parent is not None:
                self.below[parent] += self.below[key] + 1

    def _fill(self) -> None:
        for key in list(self._victims):
            if key not in self._waits_for:
                self._place(key)
        for key in self._order:
            while self._ready or self._reached:
                rank = heappop(self._ready) if self._ready else min(self._reached)
                self._place(self._order[rank])
            if key not in self.parents:
                self._place(self._longest_in_cycle(key))

    def _place(self, key: Key) -> None:
        blockers = self._waits_for.get(key, ())
        placed = [each for each in blockers if each in self.parents]
        waiting = [each for each in placed if each in self._waits_for]
        self.parents[key] = next(iter(waiting or placed), None)
        self._later[key] = [each for each in blockers if each not in self.parents]
        self._reached.discard(self._rank.get(key, -1))
        for victim in self._victims.get(key, ()):
            if victim in self.parents:
                continue
            self._open[victim] -= 1
            rank = self._rank[victim]
            if self._open[victim]:
                self._reached.add(rank)
            else:
                self._reached.discard(rank)
                heappush(self._ready, rank)

    def _longest_in_cycle(self, key: Key) -> Key:
        """The session that has waited longest in the cycle that ``key`` leads to."""
        path: dict[Key, int] = {}
        while key not in path:
            path[key] = len(path)
            key = next(e for e in self._waits_for[key] if e not in self.parents)
        return min(list(path)[path[key] :], key=self._rank.__getitem__)

    def is_in_cycle(self, key: Key) -> bool:
        """Whether a session waits for one that is below it."""
        return any(self._is_below(each, key) for each in self._later[key])

    def _is_below(self, key: Key | None, other: Key) -> bool:
        while key is not None and key != other:
            key = self.parents[key]
        return key == other

    def in_preorder(self) -> list[tuple[Key, int]]:
        """All sessions with their depth; of siblings the worst first."""
        children: dict[Key | None, list[Key]] = defaultdict(list)
        for key, parent in self.parents.items():
            children[parent].append(key)
        found: list[tuple[Key, int]] = []
        stack = [(key, 0) for key in self._worst_last(children[None])]
        while stack:
            key, depth = stack.pop()
            found.append((key, depth))
            stack += [(e, depth + 1) for e in self._worst_last(children[key])]
        return found

    def _worst_last(self, keys: Sequence[Key]) -> list[Key]:
        def harm(key: Key) -> tuple[int, int, Key]:
            return -self.below[key], self._rank.get(key, -1), key

        return sorted(keys, key=harm, reverse=True)
