"""The sessions of one reading, and the trees of those that wait for locks."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import Any, TypeVar

from poolwatch.diagnosis.blocking import Node, forest
from poolwatch.diagnosis.sessions import Key, Sessions
from poolwatch.model import Snapshot

T = TypeVar("T", bound=Any)

QUEUED = "Lock:tuple"
"""The wait event of a session that is in the queue for a row, but not at its head."""


class Trees:
    """Who waits for whom; made once for each reading, and shared by all views."""

    def __init__(self, snapshot: Snapshot) -> None:
        sessions = Sessions(snapshot.processes)
        self.sessions = sessions.known
        self.nodes = forest(snapshot, sessions)
        """Each root, followed by its victims."""
        self.places = {node.key: at for at, node in enumerate(self.nodes)}
        self._parents: list[int | None] = []
        path: list[int] = []
        for at, node in enumerate(self.nodes):
            del path[node.depth :]
            self._parents.append(path[-1] if path else None)
            path.append(at)

    def node(self, key: Key) -> Node | None:
        """Return the place of a session; None if it neither waits nor blocks."""
        at = self.places.get(key)
        return None if at is None else self.nodes[at]

    def parent(self, key: Key) -> Node | None:
        """Return the session that another one stands under; None for a root."""
        at = self._parents[self.places[key]]
        return None if at is None else self.nodes[at]

    def above(self, key: Key) -> list[Node]:
        """Return the session that another one stands under, and so on to the root."""
        found = []
        parent = self.parent(key)
        while parent is not None:
            found.append(parent)
            parent = self.parent(parent.key)
        return found

    def below(self, key: Key) -> list[Node]:
        """Return all that a session holds up."""
        at = self.places[key]
        return self.nodes[at + 1 : at + 1 + self.nodes[at].holds_up]

    def freed(self, key: Key) -> list[Node]:
        """Return those that go on if a session ends: they wait for nobody else."""
        pid = key[1]
        found = self.below(key)
        going = {pid, *(node.session.pid for node in found)}
        while True:
            stuck = [node for node in found if not going.issuperset(_blockers(node))]
            if not stuck:
                return found
            going.difference_update(node.session.pid for node in stuck)
            found = [node for node in found if node.session.pid in going]

    def queue_place(self, key: Key) -> int | None:
        """Return the place in the queue behind the head: 1 for the first one."""
        node, parent = self.node(key), self.parent(key)
        if node is None or parent is None or not _is_queued(node):
            return None
        longest = _waited_s(node)
        siblings = (
            each
            for each in self.below(parent.key)
            if each.depth == node.depth and _is_queued(each)
        )
        ahead = [each for each in siblings if _waited_s(each) > longest]
        return len(ahead) + 1

    def with_roots(
        self,
        kept: Sequence[T],
        rows: Iterable[T],
        key_of: Callable[[T], Key | None],
        *,
        path: bool = False,
    ) -> list[T]:
        """Return the kept rows and their roots; ``path``: and all between them."""
        shown: set[Hashable] = {row.key for row in kept}
        above: set[Key] = set()
        for row in kept:
            key = key_of(row)
            if key in self.places:
                above.update(node.key for node in self.above(key)[0 if path else -1 :])
        return [row for row in rows if row.key in shown or key_of(row) in above]


def _is_queued(node: Node) -> bool:
    return node.session.row is not None and node.session.row.wait_event == QUEUED


def _waited_s(node: Node) -> float:
    row = node.session.row
    return (row.state_age_s if row else None) or 0.0


def _blockers(node: Node) -> tuple[int, ...]:
    return node.session.row.blocked_by if node.session.row else ()
