"""Builds the wait graph: what threads and tasks wait for.

The graph is read only when a pool is at a standstill: first the users of its
connections, then all that those wait for. A thread or task that was not read, or whose
wait is not understood, counts as able to move. All frames and objects of the
application are dropped at the end.
"""

from __future__ import annotations

import sys
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Iterator
from types import CodeType, CoroutineType, FrameType, MethodType
from typing import Any, ClassVar

from poolwatch.agent.ledger_reading import LedgerReading
from poolwatch.agent.waiting import locks
from poolwatch.agent.waiting.futures import (
    any_of,
    completed_by,
    has_deadline,
    is_pending,
)
from poolwatch.agent.waiting.threads import (
    Executor,
    Threads,
    variables,
    with_callee,
)
from poolwatch.diagnosis.evidence import Blocked
from poolwatch.diagnosis.references.attributes import (
    attribute_of,
    class_name,
    module_of,
)
from poolwatch.diagnosis.references.frames import (
    awaits,
    frame_of,
    is_suspendable,
    stored_in,
)
from poolwatch.diagnosis.references.places import MAX_FRAMES
from poolwatch.diagnosis.references.roots import thread_names
from poolwatch.diagnosis.wait_graph import Node, pool_node, task_node, thread_node
from poolwatch.ledger.checkout import Checkout
from poolwatch.model import Frame
from poolwatch.stacks.capture import pairs_of, resolve
from poolwatch.stacks.compare import user_frames
from poolwatch.stacks.current import task_stack
from poolwatch.stacks.holder import TaskRef
from poolwatch.stacks.work_items import is_in

_MAX_NODES = 5000
"""Most threads, tasks and the like that are read."""
_BUDGET_S = 0.25
"""Most seconds that are spent on them."""
_MAX_INNERMOST = 6
"""Innermost frames of a thread among which the call that waits is searched."""
_INNERMOST = 5
"""Innermost coroutines of a task among which that call is searched."""
_THREADING = "threading.py"
_FUTURES = "concurrent/futures/_base.py"
_ANYIO = "anyio/_backends/_asyncio.py"
_PLUMBING = (
    "/asyncio/", "/anyio/", "/starlette/concurrency.py", "/asgiref/", "/threading.py",
    "/concurrent/futures/", "/queue.py",
)  # fmt: skip
"""Files of the waiting machinery: the line that waits is in the code that calls it."""

Groups = tuple[tuple[Node, ...], ...]
Waits = Iterable[tuple[str, Checkout]]
"""Open waits, each with the id of its pool."""


_Reader = Callable[[Any, dict[str, Any]], tuple[Node, ...] | None]


class BlockedReading:
    """Reads what those threads and tasks wait for that hold up a pool."""

    def __init__(self, waits: Waits) -> None:
        self.blocked: dict[Node, Blocked] = {}
        self.left_out: str | None = None
        self._threads = Threads()
        self._names = thread_names()
        self._waits: defaultdict[Node, list[tuple[str, Frame | None]]]
        self._waits = defaultdict(list)
        self._tasks: dict[Node, Any] = {}
        self._others: dict[Node, Any] = {}
        """Loops, limiters, executors and locks; kept so that their ids stay theirs."""
        self._pending: deque[Node] = deque()
        self._until = time.thread_time() + _BUDGET_S
        for pool, wait in waits:
            self._add_wait(pool, wait)

    def read(self, users: Iterable[Node]) -> None:
        """Read the nodes that ``users`` wait for, and the nodes that those wait for."""
        for node in users:
            if type(node) is not TaskRef:
                self._pending.append(node)
            elif (task := node.reference()) is not None:
                self._refer("task", task)
        while self._pending:
            if len(self.blocked) >= _MAX_NODES or time.thread_time() > self._until:
                self.left_out = (
                    "not all threads and tasks that hold a pool up were read"
                )
                break
            node = self._pending.popleft()
            if node not in self.blocked:
                found = self._read(node)
                if found is not None:
                    self.blocked[node] = found
                    self._pending += [e for group in found.needs for e in group]

    def forget(self) -> None:
        """Drop all frames and objects of the application."""
        self._threads.forget()
        self._tasks.clear()
        self._others.clear()

    def _add_wait(self, pool: str, wait: Checkout) -> None:
        node = self.node_of(wait)
        task = wait.task.reference() if wait.task is not None else None
        if task is not None:
            self._tasks[node] = task
        if task is not None and _is_running(task):
            if not self._sleeps(wait.holder.thread_ident):
                return  # it goes on at this moment
            node = thread_node(wait.holder.thread_ident)
            self.blocked[wait.requester()] = Blocked("task", ((node,),))
        self._waits[node].append((pool, wait.stack.site()))

    def node_of(self, request: Checkout) -> Node:
        """The node of the task or thread of a hold or wait."""
        requester = request.requester()
        if request.task is not None:
            return requester
        node = thread_node(request.holder.stack_key())
        self.blocked[requester] = Blocked("thread", ((node,),))
        return node

    def _sleeps(self, ident: int) -> bool:
        frame = self._threads.frames.get(ident)
        return frame is not None and is_in(frame.f_code.co_filename, _THREADING)

    def _refer(self, kind: str, thing: Any) -> Node:
        """Make a node of a task, an event loop, a limiter, an executor or a lock."""
        if kind == "task":
            node = task_node(thing)
            self._tasks[node] = thing
        else:
            node = kind, id(thing)
            self._others[node] = thing
        self._pending.append(node)
        return node

    def _read(self, node: Node) -> Blocked | None:
        if node in self._tasks:
            return self._task(node, self._tasks[node])
        kind, key = node if type(node) is tuple else ("", None)
        if kind == "thread":
            return self._thread(node, key)
        if node not in self._others:
            return None
        readers = {
            "event loop": self._loop,
            "limiter": self._limiter,
            "executor": self._executor,
            "lock": self._lock,
        }
        return readers[kind](self._others[node])

    # -- threads -----------------------------------------------------------------------

    def _thread(self, node: Node, key: Any) -> Blocked | None:
        name = self._names.get(key, "")
        if node in self._waits:
            pools = [(pool_node(pool),) for pool, _ in self._waits[node]]
            return Blocked("thread", tuple(pools), name, self._waits[node][0][1])
        frame = self._threads.frames.get(key)
        if frame is None:
            return None
        group = self._waited_for_by_thread(frame, key)
        if group is None:
            return None
        return Blocked("thread", (group,), name, _nearest(resolve(pairs_of(frame))))

    def _waited_for_by_thread(
        self, frame: FrameType, ident: Any
    ) -> tuple[Node, ...] | None:
        """The nodes of which one lets a thread go on; None if it is not known."""
        if not is_in(frame.f_code.co_filename, _THREADING):
            return self._lock_group(locks.waited_for(frame), ident)
        for each, above in with_callee(frame, _MAX_INNERMOST):
            code = each.f_code
            if is_in(code.co_filename, _FUTURES):
                return self._future_group(code.co_name, variables(each, above))
            if not is_in(code.co_filename, _THREADING):
                return None
            if code.co_name == "join":
                return _joined(variables(each, above))
            if code.co_name == "__enter__":
                known = variables(each, above)
                lock = attribute_of(known.get("self"), "_lock")
                return self._lock_group(lock, ident)
        return None

    def _future_group(
        self, function: str, known: dict[str, Any]
    ) -> tuple[Node, ...] | None:
        if known.get("timeout") is not None:
            return None
        if function in ("result", "exception"):
            return completed_by(known.get("self"), self._threads, self._refer)
        return any_of(known.get("fs"), self._threads, self._refer)

    # -- tasks -------------------------------------------------------------------------

    def _task(self, node: Node, task: Any) -> Blocked | None:
        if task is None or attribute_of(task, "_state") != "PENDING":
            return None
        loop = attribute_of(task, "_loop")
        ident = self._threads.loops.get(id(loop))
        if ident is None:
            return None
        if _is_running(task):
            return Blocked("task", ((thread_node(ident),),), task.get_name())
        groups: Groups = ((self._refer("event loop", loop),),)
        at: Frame | None = None
        if node in self._waits:
            groups += tuple([(pool_node(pool),) for pool, _ in self._waits[node]])
            at = self._waits[node][0][1]
        else:
            group = self._awaited_by(task)
            groups += (group,) if group is not None else ()
            at = _nearest(resolve(task_stack(TaskRef(task))))
        return Blocked("task", groups, task.get_name(), at)

    def _awaited_by(self, task: Any) -> tuple[Node, ...] | None:
        """The nodes of which one lets a task go on; None if it is not known."""
        future = attribute_of(task, "_fut_waiter")
        if not is_pending(future):
            return None
        awaiting = list(awaits(attribute_of(task, "_coro")))
        if has_deadline(task) or any(map(_has_timer, awaiting)):
            return None
        inner: tuple[str, ...] = ()
        for coroutine in reversed(awaiting[-_INNERMOST:]):
            frame = frame_of(coroutine)
            read = self._reader_of(frame.f_code, inner) if frame is not None else None
            if frame is not None and read is not None:
                return read(self, variables(frame))
            inner = ("" if frame is None else frame.f_code.co_name, *inner)
        return completed_by(future, self._threads, self._refer)

    def _limiter_group(self, known: dict[str, Any]) -> tuple[Node, ...] | None:
        return (self._refer("limiter", known.get("self")),)

    def _anyio_lock_group(self, known: dict[str, Any]) -> tuple[Node, ...] | None:
        lock = known.get("self")
        owned = attribute_of(lock, "_owner_task") is not None
        return (self._refer("lock", lock),) if owned else None

    def _middleware_group(self, known: dict[str, Any]) -> tuple[Node, ...] | None:
        """The response is sent by the tasks of the application behind it."""
        tasks = attribute_of(known.get("task_group"), "_tasks")
        return any_of(tasks, self._threads, self._refer)

    def _asyncio_lock_group(self, known: dict[str, Any]) -> tuple[Node, ...] | None:
        return self._lock_group(known.get("self"))

    def _wait_group(self, known: dict[str, Any]) -> tuple[Node, ...] | None:
        if known.get("timeout_handle") is not None:
            return None
        return any_of(known.get("fs"), self._threads, self._refer)

    def _task_group(self, known: dict[str, Any]) -> tuple[Node, ...] | None:
        tasks = attribute_of(known.get("self"), "_tasks")
        return any_of(tasks, self._threads, self._refer)

    # -- what they share ---------------------------------------------------------------

    def _loop(self, loop: Any) -> Blocked | None:
        ident = self._threads.loops.get(id(loop))
        if ident is None:
            return None
        name = self._names.get(ident, str(ident))
        return Blocked("event loop", ((thread_node(ident),),), name)

    def _limiter(self, limiter: Any) -> Blocked | None:
        borrowers = attribute_of(limiter, "_borrowers")
        size = attribute_of(limiter, "_total_tokens")
        if type(borrowers) is not set or type(size) is not int:
            return None
        tasks = list(borrowers)
        if not 0 < size <= len(tasks):
            return None
        asyncio: Any = sys.modules["asyncio"]
        if not all(issubclass(type(each), asyncio.Task) for each in tasks):
            return None
        group = tuple([self._refer("task", each) for each in tasks])
        return Blocked("limiter", (group,), size=size)

    def _executor(self, executor: Executor) -> Blocked | None:
        if not executor.is_complete():
            return None
        group = tuple(map(thread_node, executor.workers))
        return Blocked("executor", (group,), size=executor.size)

    def _lock_group(self, lock: Any, ident: Any = None) -> tuple[Node, ...] | None:
        if not locks.is_lock(lock) or not locks.is_held(lock):
            return None
        if ident is not None and locks.thread_with(lock) == ident:
            return None  # an RLock lets its own thread in
        return (self._refer("lock", lock),)

    def _lock(self, lock: Any) -> Blocked | None:
        ident, task = locks.thread_with(lock), attribute_of(lock, "_owner_task")
        if task is not None:  # anyio's
            owner = self._refer("task", task)
            return Blocked("lock", ((owner,),), f"task {task.get_name()}")
        if ident is not None:
            owner, name = thread_node(ident), f"thread {self._names.get(ident, ident)}"
            return Blocked("lock", ((owner,),), name)
        for owner, name, frame, above in self._frames_of_waits():
            if any(each is lock for each in locks.inside(frame, above)):
                return Blocked("lock", ((owner,),), name)
        return None

    def _frames_of_waits(
        self,
    ) -> Iterator[tuple[Node, str, FrameType, FrameType | None]]:
        """The frames of all threads, and of the tasks that are known."""
        for ident, innermost in self._threads.frames.items():
            name = f"thread {self._names.get(ident, ident)}"
            for frame, above in with_callee(innermost, MAX_FRAMES):
                yield thread_node(ident), name, frame, above
        for node, task in list(self._tasks.items()):
            for coroutine in awaits(attribute_of(task, "_coro")):
                suspended = frame_of(coroutine)
                if suspended is not None and not _is_running(task):
                    yield node, f"task {task.get_name()}", suspended, None

    _READERS: ClassVar[dict[tuple[str, str], tuple[tuple[str, ...], _Reader]]] = {
        ("acquire_on_behalf_of", _ANYIO): (("wait",), _limiter_group),
        ("acquire", _ANYIO): ((), _anyio_lock_group),
        ("acquire", "asyncio/locks.py"): ((), _asyncio_lock_group),
        ("_wait", "asyncio/tasks.py"): ((), _wait_group),
        ("__aexit__", "asyncio/taskgroups.py"): ((), _task_group),
        ("__aexit__", _ANYIO): ((), _task_group),
        ("call_next", "starlette/middleware/base.py"): (
            ("receive", "wait", "wait"),
            _middleware_group,
        ),
    }
    """By function and file: the functions that it must have called, and the method that
    finds the nodes of which one lets the waiting task go on."""

    @classmethod
    def _reader_of(cls, code: CodeType, inner: tuple[str, ...]) -> _Reader | None:
        for (name, file), (called, reader) in cls._READERS.items():
            if (
                name == code.co_name
                and inner == called
                and is_in(code.co_filename, file)
            ):
                return reader
        return None


def _joined(known: dict[str, Any]) -> tuple[Node, ...] | None:
    """The thread that join() waits for."""
    ident = attribute_of(known.get("self"), "_ident")
    if known.get("timeout") is not None or type(ident) is not int:
        return None
    return (thread_node(ident),)


def _is_running(task: Any) -> bool:
    coroutine = attribute_of(task, "_coro")
    return type(coroutine) is CoroutineType and bool(coroutine.cr_running)


def _has_timer(coroutine: Any) -> bool:
    """Whether a timeout that the application has set will end what is awaited."""
    for held in stored_in(coroutine):
        thing = held.__self__ if type(held) is MethodType else held
        generator = attribute_of(thing, "gen") if _is_context(thing) else None
        parts = stored_in(generator) if is_suspendable(generator) else ()
        if any(map(_is_timer, (thing, *parts))):
            return True
    return False


def _is_context(thing: Any) -> bool:
    return module_of(type(thing)) == "contextlib"


def _is_timer(thing: Any) -> bool:
    kind = type(thing)
    if class_name(kind) == "Timeout" and module_of(kind) == "asyncio.timeouts":
        return attribute_of(thing, "_when") is not None
    if class_name(kind) == "CancelScope" and module_of(kind).startswith("anyio."):
        return bool(attribute_of(thing, "_deadline") != float("inf"))
    return False


def _nearest(stack: tuple[Frame, ...]) -> Frame | None:
    """The line where a thread or task waits, outside of the waiting machinery."""
    own = user_frames(stack)
    if own:
        return own[0]
    calling = [
        frame
        for frame in stack
        if not any(part in frame.file.replace("\\", "/") for part in _PLUMBING)
    ]
    return next(iter((*calling, *stack)), None)


def blocked_in(
    reading: LedgerReading,
) -> tuple[dict[Node, Blocked], tuple[str, ...]]:
    """The wait graph of the pools at a standstill, and the parts left out, in words."""
    found = BlockedReading(
        (pool.pool.id, wait) for pool in reading.pools for wait in pool.waits
    )
    try:
        for hold, evidence in reading.holds():
            if evidence.at_standstill:
                found.read(evidence.users or (found.node_of(hold),))
    finally:
        found.forget()
    for pool in reading.pools:
        pool.leave_out_ended()  # a request that still waits has waited all the time
    return found.blocked, (found.left_out,) if found.left_out else ()
