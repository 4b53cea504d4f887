"""Reads in the source around a call site how its connection is to be returned.

The source shows whether the statement is in a ``with`` block, whether that block
returns the connection or only ends the transaction, whether a ``finally`` clause closes
it, and whether its session had been closed before. Only the function of the call site
is read and parsed. Facts that the source does not show for certain are left out.
"""

from __future__ import annotations

import ast
import inspect
import linecache
import re
import textwrap
from collections.abc import Iterator, Sequence
from functools import lru_cache
from tokenize import TokenError
from typing import NamedTuple

from poolwatch.model import Frame

_MAX_LINES = 1000
"""Functions with more lines are not read."""
_MAX_FRAMES = 4
"""Most functions through which an argument is followed to its origin."""
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_SCOPES = (ast.With, ast.AsyncWith)
_FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
_BLOCKS = ("body", "orelse", "handlers", "finalbody", "cases")
_RETURNS = frozenset(
    {"close", "aclose", "release", "putconn", "remove", "__exit__", "__aexit__"}
)
"""Methods that return a connection, or its session's."""
_TRANSACTIONS = frozenset({"begin", "begin_nested", "transaction", "cursor"})
"""Methods of a connection whose context manager ends less than the hold."""
_CHECKOUTS = frozenset({"connect", "raw_connection", "acquire", "getconn", "begin"})
"""Methods that check out a connection; those of a session do so later."""


class SiteSource(NamedTuple):
    """Lines of the source, as far as they are certain; None if there is none."""

    block: Frame | None = None
    """The ``with`` statement whose end returns the connection."""
    inner_block: Frame | None = None
    """A ``with`` on the connection itself, or on its transaction. Whether the former
    returns the connection depends on the library."""
    on_connection: bool = False
    """Whether ``inner_block`` is on the connection itself."""
    cleanup: Frame | None = None
    """The call in a ``finally`` clause that returns the connection."""
    cleanup_by: str = ""
    """The method that ``cleanup`` calls."""
    ended_before: Frame | None = None
    """Where the session of the call site had been closed before."""
    ended_by: str = ""
    """The method, or ``with``."""


_NOTHING = SiteSource()


@lru_cache(maxsize=256)
def read_source(frames: tuple[Frame, ...], method: str = "") -> SiteSource:
    """Read the source around a call site, once.

    ``frames`` are the frames of the application, the call site's first; ``method`` is
    the function that the call site has called. If the call site's function got the
    connection or session as an argument, the caller's source is read instead.
    """
    names: set[str] = set()
    try:
        for at, frame in enumerate(frames[:_MAX_FRAMES]):
            function, line = _parse(frame)
            if function is None:
                break
            reader = _Reader(function, line, method, names if at else None)
            found = reader.read(frame)
            names = reader.names
            if found != _NOTHING or not frames[at + 1 :]:
                return found
            names = _in_caller(function, names, frames[at + 1])
            if not names:
                break
    except (SyntaxError, TokenError, ValueError, RecursionError):
        pass
    return _NOTHING


def _in_caller(function: _Function, names: set[str], caller: Frame) -> set[str]:
    """The caller's names for the arguments of a function."""
    outer, line = _parse(caller)
    path = [] if outer is None else list(_path(outer.body, line))
    statement = path[-1][0][path[-1][1]] if path else None
    calls = [
        each
        for each in ([] if statement is None else _header(statement))
        if isinstance(each, ast.Call) and _name(each).split(".")[-1] == function.name
    ]
    if len(calls) != 1:
        return set()
    arguments = _arguments(function, calls[0])
    parts = [name.partition(".") for name in names]
    return {
        arguments[first] + dot + rest
        for first, dot, rest in parts
        if arguments.get(first)
    }


def _arguments(function: _Function, call: ast.Call) -> dict[str, str]:
    """The names that a call passes, by parameter."""
    given = [_text(each) for each in call.args]
    parameters = [
        each.arg for each in (*function.args.posonlyargs, *function.args.args)
    ]
    if parameters[:1] in (["self"], ["cls"]):
        given.insert(0, _receiver(call))
    found = dict(zip(parameters, given, strict=False))
    found.update({each.arg or "": _text(each.value) for each in call.keywords})
    return found


def _parse(site: Frame) -> tuple[_Function | None, int]:
    """The function of a call site, and the number of its line there."""
    lines = linecache.getlines(site.file)
    if site.function == "<module>" or not 0 < site.line <= len(lines):
        return None, 0
    name = re.escape(site.function) if site.function.isidentifier() else r"\w+"
    head = re.compile(rf"(\s*)(?:async\s+)?def\s+{name}\b")
    indentation = len(lines[site.line - 1]) - len(lines[site.line - 1].lstrip())
    for at in range(site.line - 1, max(-1, site.line - _MAX_LINES), -1):
        found = head.match(lines[at])
        if found is None or len(found[1]) >= indentation:
            continue
        block = inspect.getblock(lines[at : at + _MAX_LINES])
        if at + len(block) >= site.line:
            [node] = ast.parse(textwrap.dedent("".join(block))).body
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                return node, site.line - at
            break
    return None, 0


def _path(
    block: Sequence[ast.AST], line: int
) -> Iterator[tuple[Sequence[ast.AST], int]]:
    """The blocks that contain a line, outermost first, and the index in each."""
    for at, node in enumerate(block):
        first, last = _lines(node)
        if first <= line <= last:
            yield block, at
            for name in _BLOCKS:
                yield from _path(getattr(node, name, ()), line)
            return


def _lines(node: ast.AST) -> tuple[int, int]:
    first: int = getattr(node, "lineno", 0)
    return first, getattr(node, "end_lineno", None) or first


class _Reader:
    def __init__(
        self, function: _Function, line: int, method: str, names: set[str] | None
    ) -> None:
        """``names``: what the connection or session is called; None at the call site
        itself, whose statement shows it.
        """
        self._function = function
        self._line = line
        self._path = list(_path(function.body, line))
        if not self._path:
            raise ValueError(line)  # a decorator, or a default
        block, at = self._path[-1]
        self._statement = block[at]
        self._at_site = names is None
        self._targets = set(_targets(self._statement)) if names is None else set()
        if names is None:
            names = self._targets | set(_receivers(self._statement, line, method))
        self.names = names
        """The names of the connection or its session, as source text."""

    def read(self, frame: Frame) -> SiteSource:
        block = self._block()
        inner, on_connection = (None, False) if block else self._inner_block()
        call = self._cleanup()
        cleanup = None if call is None else _lines(call)[0]
        end = self._end_before()

        def at(line: int | None) -> Frame | None:
            if line is None:
                return None
            offset = frame.line - self._line
            return Frame(frame.file, offset + line, self._function.name)

        return SiteSource(
            block=at(block),
            inner_block=at(inner),
            on_connection=on_connection,
            cleanup=at(cleanup),
            cleanup_by=_method(call),
            ended_before=at(None if end is None else end[0]),
            ended_by="" if end is None else end[1],
        )

    def _block(self) -> int | None:
        """The ``with`` that has the call site in its head, or its name in its body."""
        for block, at in reversed(self._path):
            node = block[at]
            for item in node.items if isinstance(node, _SCOPES) else ():
                first, last = _lines(item.context_expr)
                in_head = self._at_site and first <= self._line <= last
                if in_head and "getconn" in _methods(item.context_expr):
                    return None
                if in_head or self._belongs_to(item):
                    return _lines(node)[0]
        return next((_lines(node)[0] for node in self._closings()), None)

    def _belongs_to(self, item: ast.withitem) -> bool:
        """Whether a ``with`` is on the connection, or on an object that has it."""
        name = _text(item.optional_vars)
        has_it = name and any(each.startswith(f"{name}.") for each in self.names)
        return bool(has_it or self.names & {name, _text(item)})

    def _closings(self) -> Iterator[ast.AST]:
        """``with closing(connection)`` anywhere in the function, and the like."""
        for node, item in self._withs():
            call = item.context_expr
            arguments = call.args if isinstance(call, ast.Call) else ()
            if _name(call).endswith("closing") and any(
                _text(each) in self.names for each in arguments
            ):
                yield node

    def _inner_block(self) -> tuple[int | None, bool]:
        """The ``with`` on the connection of the call site, or on its transaction."""
        for node, item in self._withs():
            call = item.context_expr
            first, last = _lines(call)
            if first <= self._line <= last and _method(call) == "getconn":
                return _lines(node)[0], True
            if not self._checks_out():
                continue
            if _text(call) in self._targets:
                return _lines(node)[0], True
            if _method(call) in _TRANSACTIONS and _receiver(call) in self._targets:
                return _lines(node)[0], False
        return None, False

    def _checks_out(self) -> bool:
        """Whether the call site's own statement makes the connection, not a session."""
        return bool(_methods(self._statement) & _CHECKOUTS)

    def _cleanup(self) -> ast.Call | None:
        """The call that returns it in the ``finally`` clause of a ``try`` around or
        right after the call site.
        """
        if self._is_assigned_again():
            return None
        block, at = self._path[-1]
        around = [outer[index] for outer, index in self._path]
        for node in (*reversed(around), *block[at + 1 : at + 2]):
            if isinstance(node, ast.Try):
                for each in node.finalbody:
                    found = self._return_in(each)
                    if found is not None and _lines(each)[0] > self._line:
                        return found
        return None

    def _is_assigned_again(self) -> bool:
        """Whether a name may stand for another connection at the end."""
        assigned = [t for each in _own(self._function) for t in _targets(each)]
        return any(assigned.count(name) > 1 for name in self.names)

    def _end_before(self) -> tuple[int, str] | None:
        """The line and the method that have closed the session before the call site.

        Only statements that have certainly run count. The name must be the same, and
        must not have been assigned again.
        """
        if self._targets and self._checks_out():
            return None
        names = self.names - self._targets
        owners = {name.rpartition(".")[0] for name in names} - {""}
        for block, at in reversed(self._path):
            for node in reversed(block[:at]):
                end = _end_of(node, names)
                if end is not None:
                    return end
                own = list(_own(node))
                assigned = {text for each in own for text in _targets(each)}
                called = {_receiver(each) for each in own}  # may assign it again
                if assigned & names or called & owners:
                    return None
        return None

    def _return_in(self, node: ast.AST) -> ast.Call | None:
        """The call that returns the connection."""
        for call in _own(node):
            if isinstance(call, ast.Call) and _method(call) in _RETURNS:
                arguments = map(_text, call.args)
                if {_receiver(call), *arguments} & self.names:
                    return call
        return None

    def _withs(self) -> Iterator[tuple[ast.AST, ast.withitem]]:
        for node in _own(self._function):
            if isinstance(node, _SCOPES) and _lines(node)[1] >= self._line:
                for item in node.items:
                    yield node, item


def _end_of(node: ast.AST, names: set[str]) -> tuple[int, str] | None:
    """The line and the method with which a statement certainly closes a session."""
    if isinstance(node, _SCOPES):
        closed = {_text(item.optional_vars) for item in node.items}
        closed |= {_text(item) for item in node.items}
        return (_lines(node)[0], "with") if closed & names else None
    if isinstance(node, ast.Try):
        ends = (_end_of(each, names) for each in node.finalbody)
        return next((end for end in ends if end is not None), None)
    if isinstance(node, ast.Expr) and _receiver(node.value) in names:
        method = _method(node.value)
        return (_lines(node)[0], method) if method in ("close", "remove") else None
    return None


def _own(node: ast.AST) -> Iterator[ast.AST]:
    """A node and all in it, without nested functions."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not isinstance(child, (*_FUNCTIONS, ast.ClassDef)):
            yield from _own(child)


def _targets(node: ast.AST) -> Iterator[str]:
    """The names that a statement assigns."""
    if isinstance(node, ast.Assign):
        yield from (text for each in node.targets if (text := _text(each)))
    elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)):
        yield _text(node.target)


def _receivers(statement: ast.AST, line: int, method: str) -> list[str]:
    """The objects whose ``method`` the statement calls on that line.

    If no call has that name, those of all calls that are not in arguments.
    """
    calls = [
        node
        for node in _header(statement)
        if isinstance(node, ast.Call) and _lines(node)[0] <= line <= _lines(node)[1]
    ]
    called = [node for node in calls if _method(node) == method]
    arguments = {
        id(each) for node in calls for part in node.args for each in _own(part)
    }
    found = called or [node for node in calls if id(node) not in arguments]
    return [text for node in found if (text := _receiver(node))]


def _header(statement: ast.AST) -> Iterator[ast.AST]:
    """The expressions of a statement, without the blocks of a compound one."""
    yield statement
    for name, value in ast.iter_fields(statement):
        if name not in _BLOCKS:
            for each in value if isinstance(value, list) else [value]:
                if isinstance(each, ast.AST) and not isinstance(each, _FUNCTIONS):
                    yield from _own(each)


def _text(node: ast.AST | None) -> str:
    """A name or a chain of attributes as source text; empty for anything else."""
    if isinstance(node, ast.withitem):
        return _text(node.context_expr)
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = _text(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


def _called(node: ast.AST | None) -> ast.AST | None:
    node = node.value if isinstance(node, ast.Await) else node
    return node.func if isinstance(node, ast.Call) else None


def _name(node: ast.AST) -> str:
    return _text(_called(node))


def _method(node: ast.AST | None) -> str:
    """The method that an expression calls."""
    function = _called(node)
    return function.attr if isinstance(function, ast.Attribute) else ""


def _methods(node: ast.AST) -> set[str]:
    """All methods that are called in a node."""
    return {_method(each) for each in _own(node)}


def _receiver(node: ast.AST | None) -> str:
    """The object whose method an expression calls."""
    function = _called(node)
    return _text(function.value) if isinstance(function, ast.Attribute) else ""
