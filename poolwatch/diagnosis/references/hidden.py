"""References that a running frame has in no variable, and that no search can see.

A ``for`` has its iterator on the interpreter's stack, a ``with`` its context manager,
an expression its parts. A generator that is suspended there, or a context manager that
is open there, may have a connection, and no reference to it is found anywhere. The
source shows where that is possible: in a function that was on the stack when the
connection was taken, and that is on it now, at another line.

A leak may be hidden like that, too, as long as that statement is running. The benefit
of the doubt is given only where the search has found no reference path.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

from poolwatch.model import Frame
from poolwatch.stacks.compare import matching, taking_frames

_LARGEST = 10_000
"""Lines of the largest file that is parsed: it takes 0.1 s, once."""
_LOOPS = (ast.For, ast.AsyncFor)
_SCOPES = (ast.With, ast.AsyncWith)
_SIMPLE = (ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)
_MADE_OF_FOR = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

Lines = tuple[int, int]
"""The first and the last one."""


@dataclass(frozen=True, slots=True)
class _Block:
    begins: Lines
    """The lines that make what it hides."""
    body: Lines
    """The lines during which it is hidden."""
    scope: bool = False
    """A ``with`` without a name: it may also hide a connection taken in its body."""
    generators: bool = False
    """It can hide nothing but a generator."""


@dataclass(frozen=True, slots=True)
class _Source:
    blocks: tuple[_Block, ...]
    generators: tuple[tuple[str, Lines], ...]
    """Functions with a ``yield``, and their lines."""


def may_hide(stack_at_checkout: Sequence[Frame], now: Sequence[Frame]) -> bool:
    """Whether a frame on both stacks may have a connection in no variable."""
    taken = taking_frames(stack_at_checkout, launcher=True)[::-1]  # the outermost first
    pairs = matching(taken, taking_frames(now, launcher=True)[::-1])
    gone = taken[len(pairs)] if 0 < len(pairs) < len(taken) else None
    return any(
        _hides(block, then.line, frame.line, gone)
        for then, frame in pairs
        for block in _source(then.file).blocks
    )


def _hides(block: _Block, then: int, now: int, gone: Frame | None) -> bool:
    first, last = block.body
    if not block.begins[0] <= now <= last:  # a loop goes on at its first line
        return False
    if block.scope and first <= then <= last and first <= now:
        return True
    if not block.begins[0] <= then <= block.begins[1]:
        return False
    return not block.generators or (gone is not None and _is_generator(gone))


def _is_generator(frame: Frame) -> bool:
    return any(
        name == frame.function and first <= frame.line <= last
        for name, (first, last) in _source(frame.file).generators
    )


@lru_cache(maxsize=64)
def _source(file: str) -> _Source:
    lines = linecache.getlines(file)
    if not 0 < len(lines) <= _LARGEST:
        return _Source((), ())
    try:
        tree = ast.parse("".join(lines))
    except (SyntaxError, ValueError, RecursionError):
        return _Source((), ())
    nodes = list(ast.walk(tree))
    return _Source(
        tuple(block for node in nodes for block in _blocks(node)),
        tuple(_generators(tree)),
    )


def _blocks(node: ast.AST) -> Iterator[_Block]:
    if isinstance(node, _LOOPS):
        yield _Block((node.lineno, _last(node.iter)), _body(node.body))
    elif isinstance(node, _SCOPES):
        named = any(item.optional_vars is not None for item in node.items)
        calls = any(isinstance(item.context_expr, ast.Call) for item in node.items)
        header = node.lineno, max(_last(item.context_expr) for item in node.items)
        if calls:
            yield _Block(header, _body(node.body), scope=not named)
    elif isinstance(node, _MADE_OF_FOR):
        lines = node.lineno, _last(node)
        yield _Block(lines, lines)
    elif isinstance(node, _SIMPLE):
        lines = node.lineno, _last(node)
        yield _Block(lines, lines, generators=True)


def _generators(node: ast.AST) -> Iterator[tuple[str, Lines]]:
    for function in ast.walk(node):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) and any(
            isinstance(each, (ast.Yield, ast.YieldFrom)) for each in ast.walk(function)
        ):
            yield function.name, (function.lineno, _last(function))


def _body(statements: Sequence[ast.stmt]) -> Lines:
    return statements[0].lineno, _last(statements[-1])


def _last(node: ast.stmt | ast.expr) -> int:
    return node.end_lineno or node.lineno
