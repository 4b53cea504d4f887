"""The help of every command, and what argparse says of wrong arguments."""

from __future__ import annotations

import argparse
import re

import pytest

from poolwatch.commands import main as command_line

PARSER = command_line._parser()
(CHOICES,) = (
    each.choices
    for each in PARSER._actions
    if isinstance(each, argparse._SubParsersAction)
)
OWN_SERVER = {"demo", "bench", "completion"}
"""Commands that read no variable of poolwatch's."""


@pytest.mark.parametrize("name", CHOICES)
def test_a_command_explains_itself(name, monkeypatch):
    """Every option, examples, the environment, exit codes; no line is too long."""
    monkeypatch.setenv("COLUMNS", "88")
    parser = CHOICES[name]
    for action in parser._actions:
        assert action.help, f"{name} {action.option_strings or action.dest}"
    text = parser.format_help()
    for section in ("\nexamples", "\nexit codes: "):
        assert section in text
    assert f"\n  poolwatch {name}" in text
    assert ("\nenvironment:\n" in text) == (name not in OWN_SERVER)
    assert max(map(len, text.splitlines())) <= 88


@pytest.mark.parametrize("name", CHOICES)
def test_the_environment_section_is_complete(name):
    """A variable that the text of an option names is explained below."""
    text = CHOICES[name].format_help()
    options, _, rest = text.partition("\nenvironment:\n")
    named = set(re.findall(r"\bPOOLWATCH_[A-Z]+", options))
    assert named <= set(re.findall(r"^  (POOLWATCH_[A-Z]+) ", rest, re.MULTILINE))


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nothing"], "COMMAND: invalid choice: 'nothing' "),
        (["ps", "--nothing"], "--nothing; more: poolwatch ps --help"),
        (["ps", "pid"], "unrecognized arguments: pid; more: poolwatch ps --help"),
        (["ps", "\x1b[31m"], "unrecognized arguments: "),
        (["report"], "required: -o/--output; more: poolwatch report --help"),
        (["tui", "--refresh", "soon"], "--refresh: 'soon' must be a number of seconds"),
    ],
)
def test_wrong_arguments_are_one_sentence(arguments, sentence, capsys):
    with pytest.raises(SystemExit, match="2"):
        command_line.main(arguments)
    said = capsys.readouterr().err
    assert said.startswith("poolwatch: ")
    assert said.count("\n") == 1
    assert sentence in said
    assert "\x1b" not in said


def test_version_says_what_is_installed(capsys):
    with pytest.raises(SystemExit, match="0"):
        command_line.main(["--version"])
    first, second, *installed = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"poolwatch \d+\.\d+\.\d+", first)
    assert second.startswith("Python 3.")
    names = {line.split()[0] for line in installed}
    assert {"SQLAlchemy", "psycopg2-binary", "textual"} <= names


def test_without_a_command_the_help_is_shown(capsys):
    assert command_line.main([]) == 2
    out, err = capsys.readouterr()
    assert "No application at hand?" in err
    assert not out
