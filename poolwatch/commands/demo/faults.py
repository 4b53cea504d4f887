"""The faults planted in the demo app, read from its own source lines.

A faulty line that checks out a connection ends with a comment: ``fault:`` and a name.
Tests and ``poolwatch demo --headless`` compare these lines with the snapshot, so that
no line numbers need to be maintained.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

APP = Path(__file__).with_name("app")

SENTENCES: Mapping[str, str] = {
    "never-closed": "Opened by a helper, stored in a module's dict, never closed.",
    "slow-http": "Held across a call to a web service that takes seconds.",
    "idle-in-transaction": "Holds a row lock, uncommitted, while it does slow work.",
    "blocked": "Waits for the row lock of the idle transaction.",
    "thread-ended": "Its thread has ended without returning the connection.",
    "nested": "A second connection, checked out while the caller holds one.",
    "nested-outer": "The caller's own connection, held during the nested one.",
    "dropped": "Never closed, left to the garbage collector, again and again.",
}

_MARK = re.compile(r"#\s*fault:\s*(?P<name>[\w-]+)\s*$")


@dataclass(frozen=True, slots=True)
class Fault:
    """One planted fault: the line that checks out the connection."""

    name: str
    file: str
    """Path of the file, as in tracebacks."""
    line: int
    function: str


def planted(app: Path = APP) -> dict[str, Fault]:
    """Return the planted faults by name, in the order of SENTENCES."""
    found = {
        fault.name: fault for file in sorted(app.glob("*.py")) for fault in _in(file)
    }
    order = list(SENTENCES)
    return {name: found[name] for name in sorted(found, key=order.index)}


def _in(file: Path) -> Iterator[Fault]:
    source = file.read_text(encoding="utf-8")
    tree = ast.parse(source)
    for line, content in enumerate(source.splitlines(), 1):
        mark = _MARK.search(content)
        if mark:
            name = mark["name"]
            yield Fault(name, str(file), line, _function(tree, line))


def _function(tree: ast.Module, line: int) -> str:
    """Return the name of the innermost function that contains a line."""
    functions = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.lineno <= line <= (node.end_lineno or node.lineno)
    ]
    if not functions:
        return "<module>"
    return max(functions, key=lambda node: node.lineno).name
