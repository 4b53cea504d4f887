"""``pool_deadlock``: no holder of a pool can move, so no connection comes back.

The holds, the waits and what the agent knows of threads and tasks make a wait graph. A
pool is deadlocked if all its connections are out and all its holds are stuck in it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from poolwatch.diagnosis.common import distinct_sites, ids
from poolwatch.diagnosis.evidence import Blocked, BlockedKind, JudgedHold, PoolEvidence
from poolwatch.diagnosis.nested import used_by_holder
from poolwatch.diagnosis.wait_graph import Graph, Node, held_up_by, pool_node, stuck
from poolwatch.model import Finding, Frame, Hold, Wait
from poolwatch.text.format import call_site, place, plural


def deadlocked(pool: PoolEvidence, pools: Sequence[PoolEvidence] = ()) -> list[Finding]:
    """``pool_deadlock`` of one pool; ``pools`` are all pools of the process."""
    if not pool.waits or not _is_full(pool):
        return []
    every = [*pools] if pools else [pool]
    graph = _graph(every)
    still = stuck(graph)
    holds = _in_pool(pool)
    if not all(each.hold.id in still for each in holds):
        return []
    held = [each.hold for each in holds if each.hold.verdict != "leaked"]
    if not held:
        return []  # they are leaks: nothing waits for anything
    circle = held_up_by(graph, ids(held), still)
    waits = [
        wait
        for each in every
        for wait, owner in each.waits
        if not _nodes_of(owner, pool).isdisjoint(circle)
    ]
    return [_finding(_Deadlock(pool, every, circle, held, waits))]


def _graph(pools: Sequence[PoolEvidence]) -> Graph:
    graph = {node: each.needs for node, each in pools[0].blocked.items()}
    for pool in pools:
        if _is_full(pool):
            graph[_node(pool)] = (ids(each.hold for each in _in_pool(pool)),)
        for judged in pool.holds:
            users = _users(judged)
            graph[judged.hold.id] = () if users is None else (users,)
        for _, owner in pool.waits:
            graph[owner] = (*graph.get(owner, ()), (_node(pool),))
    return graph


def _node(pool: PoolEvidence) -> Node:
    return pool_node(pool.stats.id)


def _in_pool(pool: PoolEvidence) -> list[JudgedHold]:
    """The holds that take a slot of the pool."""
    return [each for each in pool.holds if not each.evidence.detached]


def _is_full(pool: PoolEvidence) -> bool:
    capacity = pool.stats.capacity
    if capacity is None or pool.shared:
        return False
    held = len(_in_pool(pool))
    detached = len(pool.holds) - held
    former = max(0, pool.stats.slotless - detached)  # as after engine.dispose()
    return 0 < capacity <= held - former


def _users(judged: JudgedHold) -> tuple[Node, ...] | None:
    """The threads and tasks that can return it; empty if leaked, None if unknown."""
    evidence = judged.evidence
    if judged.hold.verdict == "leaked":
        return ()
    if evidence.users:
        return evidence.users
    searched = evidence.users is not None
    used = (searched or evidence.one_of_several) and used_by_holder(judged)
    return (evidence.owner,) if used else None


def _nodes_of(owner: object, pool: PoolEvidence) -> set[Node]:
    """The nodes that stand for a waiting thread or task."""
    known = pool.blocked.get(owner)
    return (
        {owner, *(node for group in known.needs for node in group)}
        if known
        else {owner}
    )


class _Deadlock(NamedTuple):
    pool: PoolEvidence
    pools: Sequence[PoolEvidence]
    circle: Sequence[Node]
    """The nodes that hold up the pool's holds, the nearest first."""
    held: Sequence[Hold]
    waits: Sequence[Wait]
    """The requests for connections in the circle, of any pool."""

    def first(self, kind: BlockedKind) -> Blocked | None:
        """The nearest node of a kind."""
        blocked = self.pool.blocked
        found = (blocked[node] for node in self.circle if node in blocked)
        return next((each for each in found if each.kind == kind), None)

    def behind(self, blocked: Blocked) -> Blocked | None:
        """The thread or task that a loop or a lock waits for."""
        known = self.pool.blocked
        nodes = (node for group in blocked.needs for node in group if node in known)
        return next((known[node] for node in nodes), None)

    def other_pools(self) -> list[str]:
        """The names of other pools in the circle."""
        others = [each for each in self.pools if each is not self.pool]
        return [repr(e.stats.name) for e in others if _node(e) in self.circle]

    @property
    def all_of_it(self) -> str:
        """The pool's connections, in words."""
        number = len(self.held)
        leaked = len(_in_pool(self.pool)) > number
        if number == 1:
            return "its last connection" if leaked else "its connection"
        more = " that is not leaked" if leaked else ""
        return f"each of its {number} connections{more}"


class _Words(NamedTuple):
    why: str
    remedy: str


def _finding(found: _Deadlock) -> Finding:
    words = next(w for w in (explain(found) for explain in _EXPLANATIONS) if w)
    stats, held, waits = found.pool.stats, found.held, found.waits
    leaked = len(_in_pool(found.pool)) - len(held)
    proof = f"checked out at {_counted(held)}"
    if waits:
        proof += f"; waiting for a connection at {_counted(waits)}"
    if leaked:
        proof += f"; {leaked} more leaked"
    return Finding(
        kind="pool_deadlock",
        severity="critical",
        pool=stats.id,
        text=f"pool {stats.name!r} is deadlocked: {words.why}",
        proof=f"{proof}; no other holder can return one",
        remedy=f"{words.remedy} To end it now, restart the process.",
        holds=ids(held),
        waits=ids(waits),
        sites=distinct_sites(
            *(hold.site for hold in held), *(wait.site for wait in waits)
        ),
    )


def _counted(requests: Iterable[Hold | Wait]) -> str:
    """The call sites of the requests, with the number of requests at each."""
    return ", ".join(
        f"{at} ({n})" for at, n in Counter(map(call_site, requests)).items()
    )


def _nested(found: _Deadlock) -> _Words | None:
    """Each holder waits for a second connection of the pool itself."""
    pool = found.pool
    waiting = {node for _, owner in pool.waits for node in _nodes_of(owner, pool)}
    users = [
        _users(each) or () for each in _in_pool(pool) if each.hold.verdict != "leaked"
    ]
    if not all(map(waiting.intersection, users)):
        return None
    return _Words(
        f"{found.all_of_it} is held by a thread or task that waits for another one",
        "Pass the held connection to the inner code. A pool of "
        f"{len(_in_pool(pool)) + 1} connections is the smallest in which these holders "
        "can finish.",
    )


def _loop(found: _Deadlock) -> _Words | None:
    """A synchronous wait has stopped the loop of the tasks that hold."""
    loop = found.first("event loop")
    if loop is None:
        return None
    thread = found.behind(loop)
    for_pool = thread is not None and any(
        _node(pool) in group for group in thread.needs for pool in found.pools
    )
    wait = "a synchronous wait for a connection" if for_pool else "a synchronous wait"
    return _Words(
        f"the event loop of thread {loop.name} is stopped by {wait}{_at(thread)}, and "
        f"the tasks that hold {found.all_of_it} need that loop to go on",
        ("Use an async engine for that loop, or make " if for_pool else "Make ")
        + "the synchronous call in a thread, e.g. with asyncio.to_thread().",
    )


def _limiter(found: _Deadlock) -> _Words | None:
    """The tasks that hold wait for a thread, and all threads for a connection."""
    limiter = found.first("limiter")
    if limiter is None:
        return None
    at = _nearest(found, "task")
    validates = at is not None and "fastapi" in at.file
    return _Words(
        f"{found.all_of_it} is held by a task that waits{_at(at)} for a "
        f"thread of a limiter of {plural(limiter.size, 'thread')}, and "
        + _none_can_move(found, limiter.size),
        "Return the connection before the task needs the next thread"
        + (
            ": close the session in the endpoint, before the response is validated. "
            if validates
            else ". "
        )
        + "Or admit fewer requests at once than the pool has connections; fewer "
        "threads (tokens of the limiter) than connections make it rarer.",
    )


def _executor(found: _Deadlock) -> _Words | None:
    """The holders wait for a worker, and all workers for a connection or a worker."""
    executor = found.first("executor")
    if executor is None:
        return None
    for_pool = len(found.waits) >= executor.size
    return _Words(
        f"{found.all_of_it} is held by code that waits{_where(found)} for a worker of "
        f"an executor of {plural(executor.size, 'thread')}, and "
        + _none_can_move(found, executor.size),
        "Check out and return the connection within one work item, or run the code "
        "that returns it in an executor of its own."
        if for_pool
        else "Run the inner work directly, or in an executor of its own: a worker that "
        "waits for work in its own queue waits for itself.",
    )


def _lock(found: _Deadlock) -> _Words | None:
    """The holders wait for a lock, whose owner waits for a connection."""
    lock = found.first("lock")
    if lock is None:
        return None
    return _Words(
        f"{found.all_of_it} is held by code that waits{_where(found)} for a lock, and "
        f"{lock.name} has the lock and waits{_at(found.behind(lock))}, too",
        "Acquire the lock and check out the connection always in the same order, the "
        "lock first; or return the connection before the lock is acquired.",
    )


def _other_pool(found: _Deadlock) -> _Words | None:
    """The holders wait for another pool, whose holders wait for this one."""
    others = found.other_pools()
    if not others:
        return None
    names = ", ".join(others)
    return _Words(
        f"{found.all_of_it} is held by code that waits for pool {names}, where no "
        "holder can move, because it waits for this one",
        "Check out connections of several pools always in the same order, or return "
        "the one before checking out the other.",
    )


def _others(found: _Deadlock) -> _Words:
    """The holders wait for threads or tasks, which wait for a connection."""
    return _Words(
        f"{found.all_of_it} is held by code that waits{_where(found)} for other "
        "threads or tasks, and "
        + ("those wait for this pool" if found.waits else "none of them can go on"),
        "Pass the connection to the code that is waited for, or return it before the "
        "wait.",
    )


_EXPLANATIONS = (_nested, _loop, _limiter, _executor, _lock, _other_pool, _others)


def _where(found: _Deadlock) -> str:
    return _at(_nearest(found, "thread", "task"))


def _nearest(found: _Deadlock, *kinds: BlockedKind) -> Frame | None:
    """Where the nearest thread or task in the circle waits."""
    blocked = found.pool.blocked
    known = (blocked[node] for node in found.circle if node in blocked)
    return next((each.at for each in known if each.kind in kinds and each.at), None)


def _at(what: Blocked | Frame | None) -> str:
    frame = what.at if isinstance(what, Blocked) else what
    return f" at {place(frame)}" if frame is not None else ""


def _none_can_move(found: _Deadlock, size: int) -> str:
    if size == 1:
        return "that one waits" + (" for a connection" if found.waits else ", too")
    if len(found.waits) >= size:
        return f"all {size} wait for a connection"
    return f"none of the {size} can go on"
