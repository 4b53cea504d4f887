"""The table of planted faults, read from the demo app's own lines."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from poolwatch.commands.demo.faults import APP, SENTENCES, planted

pytestmark = [pytest.mark.slow, pytest.mark.postgres]

TAKES = (".connect()", ".begin()", ".raw_connection()")


def lines_with(text: str) -> int:
    return sum(
        text in line
        for file in APP.rglob("*.py")
        for line in file.read_text().splitlines()
    )


def test_every_planted_fault_is_found_once() -> None:
    """As many faults as marks, and a sentence for each: none lost, none invented."""
    assert list(planted()) == list(SENTENCES)
    assert lines_with("# fault:") == len(SENTENCES)


@pytest.mark.parametrize("name", SENTENCES)
def test_a_fault_names_the_line_that_takes_the_connection(name: str) -> None:
    """File, line and function are those of the call that takes it."""
    fault = planted()[name]
    source = Path(fault.file).read_text()
    line = source.splitlines()[fault.line - 1]
    assert line.endswith(f"# fault: {name}")
    assert any(call in line for call in TAKES)
    functions = [n for n in ast.walk(ast.parse(source)) if getattr(n, "name", None)]
    around = next(n for n in functions if n.name == fault.function)
    assert around.lineno < fault.line <= around.end_lineno


def test_the_nested_fault_is_two_lines_in_two_files() -> None:
    """The caller's connection and the helper's are told apart."""
    faults = planted()
    assert faults["nested"].file != faults["nested-outer"].file


def test_an_app_of_ones_own_can_be_read(tmp_path: Path) -> None:
    """The table follows the lines, wherever they move."""
    source = "\n\ndef f(engine):\n    return engine.connect()  # fault: never-closed\n"
    (tmp_path / "part.py").write_text(source)
    fault = planted(tmp_path)["never-closed"]
    assert (fault.line, fault.function) == (4, "f")
