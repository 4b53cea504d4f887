"""The wait graph of a process: which threads and tasks can still move.

A node is anything that can wait: a hold, a thread, a task, an event loop, the workers
of an executor, a lock. It has groups of other nodes, and goes on when at least one node
of each group can. A node without groups, or one that the graph does not know, can go
on: what is not known is never called stuck.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

from poolwatch.stacks.holder import TaskRef

Node = Hashable
Groups = Sequence[Sequence[Node]]
Graph = Mapping[Node, Groups]


def stuck(graph: Graph) -> frozenset[Node]:
    """The nodes that nothing in the graph can ever set going.

    Each reference from a node to another one is followed once.
    """
    waiting: defaultdict[Node, list[tuple[Node, int]]] = defaultdict(list)
    unmet = {node: set(range(len(groups))) for node, groups in graph.items()}
    for node, groups in graph.items():
        for number, group in enumerate(groups):
            for each in group:
                waiting[each].append((node, number))
    moving = [node for node in (*graph, *waiting) if not unmet.get(node)]
    while moving:
        for node, number in waiting.pop(moving.pop(), ()):
            if number in unmet[node]:
                unmet[node].discard(number)
                if not unmet[node]:
                    moving.append(node)
    return frozenset([node for node, groups in unmet.items() if groups])


def held_up_by(
    graph: Graph, starts: Iterable[Node], still: Collection[Node]
) -> list[Node]:
    """The stuck nodes that ``starts`` wait for, the nearest first, ``starts`` included.

    ``still`` are the stuck nodes. Only groups without a node that can move count.
    """
    seen = dict.fromkeys(starts)
    queue = deque(seen)
    while queue:
        for group in graph.get(queue.popleft(), ()):
            if all(each in still for each in group):
                new = [each for each in group if each not in seen]
                seen.update(dict.fromkeys(new))
                queue += new
    return list(seen)


def pool_node(pool: str) -> Node:
    """A connection of a pool."""
    return "pool", pool


def thread_node(key: int | None) -> Node:
    """A thread, or a greenlet: by Holder.stack_key()."""
    return "thread", key


def task_node(task: Any) -> Node:
    """An asyncio task: equal to the owner of its holds and waits."""
    return TaskRef(task)
