"""The search for all users of a held connection.

A leak search stops at the first path that shows a connection in use. A deadlock is
proven only if no user can return the connection, so all users are searched for: threads
and tasks that have the connection, its session, or the generator that will close it,
within a few steps of a variable. A server reaches the sessions of all its requests over
many steps, but does not use them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import CoroutineType
from typing import Any

from poolwatch.diagnosis.references.attributes import is_thread_local
from poolwatch.diagnosis.references.describe import describe, is_own
from poolwatch.diagnosis.references.follow import Guide
from poolwatch.diagnosis.references.loops import loop_roots
from poolwatch.diagnosis.references.places import Place, Root
from poolwatch.diagnosis.references.roots import (
    greenlet_roots,
    module_roots,
    thread_roots,
)
from poolwatch.diagnosis.references.tasks import task_roots
from poolwatch.diagnosis.references.walk import Walk
from poolwatch.diagnosis.wait_graph import Node
from poolwatch.stacks.code_owner import CodeOwner

_STEP = 2000
"""Objects near a root that are visited."""
_FAR = 18
"""Objects between a variable and a connection from which it is no longer its user."""
_BUDGET_S = 1.0
"""Computing time of this thread."""
_PAUSE_AFTER_S, _PAUSE_S = 0.001, 0.00005
"""Lets other threads run: see references.search."""


def find_users(
    holds: Mapping[str, Callable[[], Any]],
    holders: Mapping[str, Node | None],
) -> dict[str, tuple[Node, ...] | None] | None:
    """Return the users of each hold: see HoldEvidence.users; None if time ran out.

    ``holds`` are weak references to the proxies, ``holders`` the threads that checked
    them out, None for a task.
    """
    search = _UserSearch(holds)
    try:
        return search.result(holders) if search.run() else None
    except Exception:  # noqa: BLE001 - it is the application's process
        return None
    finally:
        search.forget()


class _UserSearch:
    def __init__(self, holds: Mapping[str, Callable[[], Any]]) -> None:
        self._holds = holds
        self._guide = Guide()
        self._wanted: dict[int, str] = {}
        self._users: dict[str, dict[Node, None]] = {hold: {} for hold in holds}
        self._reach: dict[str, dict[Node, None]] = {hold: {} for hold in holds}
        """Threads and tasks that can reach a connection over any references."""
        self._elsewhere: dict[str, bool] = {}
        """Holds that a module or a thread-local refers to; True if only the latter."""
        self._far: set[int] = set()
        """Ids of objects that are too far from any connection."""
        self._until = time.thread_time() + _BUDGET_S
        self._last_pause = time.perf_counter()
        for hold, weak_ref in holds.items():
            proxy = weak_ref()
            if proxy is not None:
                self._wanted[id(proxy)] = hold
            del proxy

    def run(self) -> bool:
        """Visit what is near all roots; False if time ran out."""
        guide = self._guide
        return all(
            [
                self._visit(thread_roots(guide, ())),
                self._visit(greenlet_roots(guide, ())),
                self._visit(task_roots(guide, (), alone=True)),
                self._visit(loop_roots(guide)),
                self._visit(module_roots(CodeOwner.USER)),
                self._visit(module_roots(CodeOwner.PACKAGE)),
            ]
        )

    def _visit(self, roots: Iterable[Root]) -> bool:
        for root in roots:
            if time.thread_time() > self._until:
                return False
            if not self._step(root):
                return False
            if time.perf_counter() - self._last_pause > _PAUSE_AFTER_S:
                time.sleep(_PAUSE_S)
                self._last_pause = time.perf_counter()
        return True

    def _step(self, root: Root) -> bool:
        """Visit what is near a root; False if it was not readable."""
        places = root.read()
        walk = Walk(places, self._guide, self._wanted, self._far)
        walk.go(_STEP)
        for index in walk.hits:
            chain, place = walk.chain(index)
            self._note(root, place, chain)
        walk.mark_far(_FAR)
        readable = not any(place.unreadable for place in places)
        return readable or not root.proves_use

    def _note(self, root: Root, place: Place, chain: Sequence[Any]) -> None:
        hold = self._wanted[id(chain[-1])]
        local = any(is_thread_local(type(node)) for node in chain)
        if local or not root.proves_use:
            self._elsewhere[hold] = local and self._elsewhere.get(hold, True)
            return
        user = place.owner.node()
        if user in self._users[hold]:
            return
        self._reach[hold][user] = None
        if len(chain) <= _FAR and _is_user(place, chain):
            self._users[hold][user] = None

    def result(
        self, holders: Mapping[str, Node | None]
    ) -> dict[str, tuple[Node, ...] | None]:
        """The users of each hold.

        A connection without a user has all threads and tasks that can reach it.
        """
        found: dict[str, tuple[Node, ...] | None] = {}
        for hold, users in self._users.items():
            found[hold] = tuple(users or self._reach[hold])
            if not found[hold] and hold in self._elsewhere:
                holder = holders.get(hold)
                local = self._elsewhere[hold] and holder is not None
                found[hold] = (holder,) if local else None
        return found

    def forget(self) -> None:
        """Drop the references to the application's classes."""
        self._guide.forget()


def _is_user(place: Place, chain: Sequence[Any]) -> bool:
    """Whether the root, or the application's code there, uses the connection."""
    path = describe(place, chain, None)
    if path.in_use and is_own(path.steps, chain):
        return True
    suspended = any(type(node) is CoroutineType for node in chain)
    return path.in_hand and place.is_user and not suspended
