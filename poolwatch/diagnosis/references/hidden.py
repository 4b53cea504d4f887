"""Hidden references: values on the interpreter's stack that no search can see.

A ``for`` loop has its iterator on the interpreter's stack, a ``with`` statement its
context manager, an expression its operands. A suspended generator or an open context
manager there may hold a connection to which no reference is found. The source code
shows where that is possible: in a function that was on the stack when the connection
was checked out and that is still on the stack, at another line.

A leak can be hidden in the same way while that statement runs. So a hidden reference is
assumed only where the search has found no reference path, or one that shows only what
a thread or request has at hand. Without the source it cannot be ruled out.
"""

from __future__ import annotations

import ast
import linecache
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise

from poolwatch.model import Frame
from poolwatch.stacks.code_owner import library_of
from poolwatch.stacks.compare import matching_frames, user_frames
from poolwatch.stacks.packages import SERVING

_MAX_LINES = 10_000
"""Most lines of a file that is parsed; parsing it takes 0.1 s, once."""
_LOOPS = (ast.For, ast.AsyncFor)
_SCOPES = (ast.With, ast.AsyncWith)
_TRIES = (ast.Try, ast.TryStar)
_STATEMENTS = (ast.Expr, ast.Assign, ast.AnnAssign, ast.AugAssign, ast.Return)
_CLOSING = ("close", "remove", "release", "putconn", "clean", "teardown")
"""Parts of the names of functions that return a connection."""
_OURS = frozenset({"", "label", "long_hold"})
"""Calls of a with statement that return no connection: poolwatch's own, and none."""
_COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

Lines = tuple[int, int]
"""The first line and the last line."""


@dataclass(frozen=True, slots=True)
class _Block:
    begins: Lines
    """The lines that create the hidden object."""
    body: Lines
    """The lines during which the object stays hidden."""
    scope: bool = False
    """A ``with`` without ``as``: its body may check out a connection that it hides."""
    generators: bool = False
    """The hidden object can only be a generator."""


@dataclass(frozen=True, slots=True)
class _Source:
    blocks: tuple[_Block, ...]
    generators: tuple[tuple[str, Lines], ...]
    """Functions with a ``yield``, and their lines."""


def may_hide(stack_at_checkout: Sequence[Frame], now: Sequence[Frame]) -> bool:
    """Whether a frame on both stacks may hold a connection without a variable."""
    # outermost frame first
    checked_out = user_frames(stack_at_checkout, launcher=True)[::-1]
    pairs = matching_frames(checked_out, user_frames(now, launcher=True)[::-1])
    ended = checked_out[len(pairs)] if 0 < len(pairs) < len(checked_out) else None
    return any(
        _may_hide(at_checkout, frame.line, ended) for at_checkout, frame in pairs
    )


def serves_request(stack_at_checkout: Sequence[Frame], now: Sequence[Frame]) -> bool:
    """Whether a web or task framework that called the code of the checkout still runs
    code of the application: perhaps the same request, at whose end a handler of the
    framework returns the connection.
    """
    own = user_frames(now, launcher=True)
    outside = now[now.index(own[0]) + 1 :] if own else ()
    called_by = {(each.file, each.function) for each in stack_at_checkout}
    return any(
        (each.file, each.function) in called_by and library_of(each.file) in SERVING
        for each in outside
    )


def _may_hide(at_checkout: Frame, now: int, ended: Frame | None) -> bool:
    source = _source(at_checkout.file)
    return source is None or any(
        _hides(block, at_checkout.line, now, ended) for block in source.blocks
    )


def _hides(block: _Block, at_checkout: int, now: int, ended: Frame | None) -> bool:
    first, last = block.body
    if not block.begins[0] <= now <= last:  # a loop goes on at its first line
        return False
    if block.scope and first <= at_checkout <= last and first <= now:
        return True
    if not block.begins[0] <= at_checkout <= block.begins[1]:
        return False
    return not block.generators or (ended is not None and _is_generator(ended))


def _is_generator(frame: Frame) -> bool:
    source = _source(frame.file)
    return source is None or any(
        name == frame.function and first <= frame.line <= last
        for name, (first, last) in source.generators
    )


@lru_cache(maxsize=64)
def _source(file: str) -> _Source | None:
    """None if there is no source that can be read, as in an image of .pyc files."""
    lines = linecache.getlines(file)
    if not 0 < len(lines) <= _MAX_LINES:
        return None
    try:
        tree = ast.parse("".join(lines))
    except (SyntaxError, ValueError, RecursionError):
        return None
    nodes = list(ast.walk(tree))
    return _Source(
        tuple(block for node in nodes for block in (*_blocks(node), *_closing(node))),
        tuple(_generators(tree)),
    )


def _blocks(node: ast.AST) -> Iterator[_Block]:
    if isinstance(node, _LOOPS):
        yield _Block((node.lineno, _last_line(node.iter)), _body(node.body))
    elif isinstance(node, _SCOPES):
        named = any(item.optional_vars is not None for item in node.items)
        expressions = [item.context_expr for item in node.items]
        calls = not _OURS.issuperset(map(_called, expressions))
        header = node.lineno, max(map(_last_line, expressions))
        if calls:
            yield _Block(header, _body(node.body), scope=not named)
    elif isinstance(node, _COMPREHENSIONS):
        lines = node.lineno, _last_line(node)
        yield _Block(lines, lines)
    elif isinstance(node, _STATEMENTS):
        lines = node.lineno, _last_line(node)
        yield _Block(lines, lines, generators=True)


def _closing(node: ast.AST) -> Iterator[_Block]:
    """Each ``try`` in it that closes something in the end, which its body or the
    statement before it may have opened. A loop without an end comes to no ``finally``:
    what its rounds open is not meant.
    """
    for name in ("body", "orelse", "finalbody"):
        statements = getattr(node, name, None)
        if type(statements) is not list:
            continue
        for before, each in pairwise([None, *statements]):
            if isinstance(each, _TRIES) and _closes(each.finalbody):
                first = before if isinstance(before, _STATEMENTS) else each
                last = each.finalbody[0].lineno - 1
                endless = [
                    loop.lineno
                    for loop in ast.walk(each)
                    if isinstance(loop, ast.While) and _is_endless(loop)
                ]
                yield _Block(
                    (first.lineno, min([last, *endless])),
                    (each.lineno, _last_line(each)),
                )


def _is_endless(loop: ast.While) -> bool:
    leaves = any(isinstance(each, (ast.Break, ast.Return)) for each in ast.walk(loop))
    return isinstance(loop.test, ast.Constant) and not leaves


def _closes(statements: Sequence[ast.stmt]) -> bool:
    """Whether one of these statements calls a function that may return a connection."""
    nodes = [each for statement in statements for each in ast.walk(statement)]
    names = [_called(each).lower() for each in nodes]
    return any(part in name for name in names for part in _CLOSING)


def _called(node: ast.AST) -> str:
    """The name of the function or method that an expression calls; empty if none."""
    if not isinstance(node, ast.Call):
        return ""
    return str(getattr(node.func, "attr", getattr(node.func, "id", "()")))


def _generators(node: ast.AST) -> Iterator[tuple[str, Lines]]:
    for function in ast.walk(node):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) and any(
            isinstance(each, (ast.Yield, ast.YieldFrom)) for each in ast.walk(function)
        ):
            yield function.name, (function.lineno, _last_line(function))


def _body(statements: Sequence[ast.stmt]) -> Lines:
    return statements[0].lineno, _last_line(statements[-1])


def _last_line(node: ast.stmt | ast.expr) -> int:
    return node.end_lineno or node.lineno
