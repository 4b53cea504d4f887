"""Locks: which one a frame waits for, and whether a frame is inside of one.

Only an RLock knows its owner. For other locks the source is read: a function whose
current instruction belongs to the body of ``with self.lock:`` has that lock. Only locks
that are written as a name with attributes are recognized. A call of ``acquire()`` does
not prove that the lock is still held.
"""

from __future__ import annotations

import _thread
import ast
import inspect
import linecache
import opcode
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from functools import lru_cache
from itertools import islice
from tokenize import TokenError
from types import CodeType, FrameType, ModuleType
from typing import Any, NamedTuple

from poolwatch.agent.waiting.threads import variables
from poolwatch.diagnosis.references.attributes import (
    attribute_of,
    attributes_of,
    bases_of,
    class_dict,
)

_MAX_LINES = 1000
"""Most lines of a function that is parsed: the parser lets no other thread run."""
_OWNER = re.compile(r"^<locked _thread\.RLock object owner=(\d+) ")
_ENTERS = {
    opcode.opmap[name]
    for name in ("BEFORE_WITH", "BEFORE_ASYNC_WITH")
    if name in opcode.opmap
}
"""Until Python 3.13: the instructions that enter a context manager."""
_AWAITS = {
    opcode.opmap[name]
    for name in ("GET_AWAITABLE", "LOAD_CONST", "SEND", "YIELD_VALUE", "RESUME",
                 "JUMP_BACKWARD_NO_INTERRUPT", "CACHE", "EXTENDED_ARG")
    if name in opcode.opmap
}  # fmt: skip

Span = tuple[int | None, int | None, int | None, int | None]
"""First line, last line, first column, last column, as code objects have them."""
Name = tuple[str, ...]
"""A variable and attributes: ``self.lock`` is ("self", "lock")."""


class _With(NamedTuple):
    whole: Span
    items: tuple[tuple[Span, Name], ...]
    body: Span


class _Function(NamedTuple):
    blocks: list[_With]
    calls: list[tuple[Span, Name]]
    """Calls of ``acquire()`` without a timeout."""


def waited_for(frame: FrameType) -> Any:
    """The lock that a thread with this innermost frame waits for; None if unknown.

    The caller must check that the lock is held by another thread or task.
    """
    code, lasti = frame.f_code, frame.f_lasti
    function, span = _function(code), _span(code, lasti)
    if function is None or span is None:
        return None
    names = [name for call, name in function.calls if call == span]
    for block in function.blocks:
        at = _entered(block, code, lasti, span)
        if at is not None:
            names.append(block.items[at][1])
    return _resolve(names[0], frame) if names and names[0] else None


def inside(frame: FrameType, above: FrameType | None) -> Iterator[Any]:
    """The locks that a frame holds: it is in the bodies of their ``with`` statements.

    ``above`` is the frame that it has called.
    """
    code, lasti = frame.f_code, frame.f_lasti
    function, span = _function(code), _span(code, lasti)
    if function is None or span is None:
        return
    for block in function.blocks:
        for _, name in block.items[: _number_entered(block, code, lasti, span)]:
            lock = _resolve(name, frame, above) if name else None
            if lock is not None:
                yield lock


def thread_with(lock: Any) -> int | None:
    """The ident of the thread that has an RLock; None for other locks, or if free."""
    if type(lock) is not _thread.RLock:
        return None
    found = _OWNER.match(_thread.RLock.__repr__(lock))
    return int(found[1]) if found else None


def _number_entered(block: _With, code: CodeType, lasti: int, span: Span) -> int:
    """How many context managers of a ``with`` statement are entered."""
    if _within(span, block.body):
        return len(block.items)
    for at, (item, _) in enumerate(block.items):
        if span == item or _within(span, item):
            return at
    return _entered(block, code, lasti, span) or 0


def _entered(block: _With, code: CodeType, lasti: int, span: Span) -> int | None:
    """The number of the context manager that is being entered."""
    for at, (item, _) in enumerate(block.items):
        if span == item:
            return at if sys.version_info >= (3, 13) else None
    if span != block.whole:
        return None
    before = [at for at, each in enumerate(code.co_positions()) if each == span]
    codes = code.co_code[::2]
    entering = [at for at in before if codes[at] in _ENTERS and at <= lasti // 2]
    if not entering or not set(codes[entering[-1] + 1 : lasti // 2 + 1]) <= _AWAITS:
        return None
    return (len(entering) - 1) % len(block.items)


def _within(span: Span, outer: Span) -> bool:
    if None in span or None in outer:
        return False
    first, last = (span[0], span[2]), (span[1], span[3])
    return (outer[0], outer[2]) <= first and last <= (outer[1], outer[3])


def _span(code: CodeType, lasti: int) -> Span | None:
    return next(islice(code.co_positions(), lasti // 2, None), None)


def _function(code: CodeType) -> _Function | None:
    if not code.co_exceptiontable and "acquire" not in code.co_names:
        return None  # it has no ``with`` statement, and calls no acquire()
    name, first = code.co_name, code.co_firstlineno
    return _functions(code.co_filename, name, first).get((name, first))


def _parse(file: str, name: str, first: int) -> ast.AST | None:
    """A function, or a module, with the lines and columns that it has in its file."""
    lines = linecache.getlines(file)
    if name != "<module>":
        lines = inspect.getblock(lines[first - 1 : first - 1 + _MAX_LINES])
    if not 0 < len(lines) < _MAX_LINES:
        return None
    indented = lines[0][:1].isspace()
    tree = ast.parse("if 1:\n" * indented + "".join(lines))
    return ast.increment_lineno(tree, first - 1 - indented)


@lru_cache(maxsize=512)
def _functions(
    file: str, function: str, first: int
) -> dict[tuple[str, int], _Function]:
    """A function, and those in it, that have locks, by name and first line."""
    try:
        tree = _parse(file, function, max(first, 1))
    except (SyntaxError, TokenError, ValueError, RecursionError):
        tree = None
    if tree is None:
        return {}
    found: defaultdict[tuple[str, int], _Function]
    found = defaultdict(lambda: _Function([], []))
    pending: list[tuple[ast.AST, tuple[str, int]]] = [(tree, ("<module>", 1))]
    while pending:
        node, scope = pending.pop()
        for child in ast.iter_child_nodes(node):
            pending.append((child, _scope(child) or scope))
            if isinstance(child, ast.With | ast.AsyncWith):
                found[scope].blocks.append(_with(child))
            elif isinstance(child, ast.Call) and _is_acquire(child):
                name = _name(child.func)[:-1]
                found[scope].calls.append((_span_of(child), name))
    return dict(found)


def _scope(node: ast.AST) -> tuple[str, int] | None:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        first = node.decorator_list[0] if node.decorator_list else node
        return node.name, first.lineno
    return ("<lambda>", node.lineno) if isinstance(node, ast.Lambda) else None


def _with(node: ast.With | ast.AsyncWith) -> _With:
    items = [(_span_of(e.context_expr), _name(e.context_expr)) for e in node.items]
    first, last = node.body[0], node.body[-1]
    body = first.lineno, last.end_lineno, first.col_offset, last.end_col_offset
    return _With(_span_of(node), tuple(items), body)


def _is_acquire(node: ast.Call) -> bool:
    arguments = [*node.args, *(each.value for each in node.keywords)]
    waits = all(isinstance(e, ast.Constant) and e.value is True for e in arguments)
    return waits and _name(node.func)[-1:] == ("acquire",)


def _name(node: ast.expr) -> Name:
    """A variable with attributes; empty for any other expression."""
    attributes: list[str] = []
    while isinstance(node, ast.Attribute):
        attributes.append(node.attr)
        node = node.value
    return (node.id, *reversed(attributes)) if isinstance(node, ast.Name) else ()


def _span_of(node: ast.stmt | ast.expr) -> Span:
    return node.lineno, node.end_lineno, node.col_offset, node.end_col_offset


def _resolve(name: Name, frame: FrameType, above: FrameType | None = None) -> Any:
    """The lock with that name; None if there is none, or if it is free."""
    found = variables(frame, above).get(name[0])
    if found is None:
        found = dict.get(frame.f_globals, name[0])
    for attribute in name[1:]:
        found = _attribute(found, attribute)
    return found if is_lock(found) and is_held(found) else None


def _attribute(node: Any, name: str) -> Any:
    if type(node) is ModuleType:
        return ModuleType.__getattribute__(node, "__dict__").get(name)
    found = attribute_of(node, name)
    if found is None:
        kinds = bases_of(node) if issubclass(type(node), type) else bases_of(type(node))
        values = (class_dict(kind).get(name) for kind in kinds)
        found = next((each for each in values if is_lock(each)), None)
    return found


def is_lock(thing: Any) -> bool:
    """Whether it is a lock of the standard library itself."""
    asyncio: Any = sys.modules.get("asyncio")
    kind = type(thing)
    if kind is _thread.LockType or kind is _thread.RLock:
        return True
    return asyncio is not None and kind is asyncio.Lock


def is_held(lock: Any) -> bool:
    """Whether a thread or task holds the lock."""
    if type(lock) is _thread.LockType:
        return lock.locked()
    if type(lock) is _thread.RLock:
        return thread_with(lock) is not None
    return (attributes_of(lock) or {}).get("_locked") is True
