"""``poolwatch completion``: a shell completes commands, options and files."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from poolwatch.commands import arguments
from poolwatch.errors import MissingExtraError

_SHELLS = ("bash", "zsh", "fish")

_DESCRIPTION = """\
Print the script with which a shell completes the commands and options of poolwatch.
The script needs neither poolwatch nor Python, so it is quick.
"""

_EXAMPLES = """\
examples, each once for all sessions to come:
  poolwatch completion bash > ~/.local/share/bash-completion/completions/poolwatch
  poolwatch completion zsh > ~/.zfunc/_poolwatch     fpath+=~/.zfunc before compinit
  poolwatch completion fish > ~/.config/fish/completions/poolwatch.fish
or in a start file of the shell:
  eval "$(poolwatch completion bash)"                ~/.bashrc, or zsh in ~/.zshrc
"""
_EXIT_CODES = """\
exit codes: 0 fine, 2 usage, or shtab is not installed
"""


def add(parsers: arguments.Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch completion``."""
    completion = parsers.add_parser(
        "completion",
        help="completion of commands and options for a shell",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\n{_EXIT_CODES}",
    )
    completion.add_argument("shell", choices=_SHELLS, help="the shell to print it for")
    return completion


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    try:
        import shtab
    except ImportError as error:
        raise MissingExtraError("the completion needs shtab", "completion") from error
    parser: argparse.ArgumentParser = options.parser
    for action in _actions(parser):
        if action.type is Path or action.nargs == argparse.REMAINDER:
            is_directory = action.metavar == "DIRECTORY"
            # where shtab looks for the kind of an argument
            action.complete = shtab.DIRECTORY if is_directory else shtab.FILE  # type: ignore[attr-defined]
    print(shtab.complete(parser, options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """The arguments of all commands."""
    for action in parser._actions:  # noqa: SLF001 - has no public name
        yield action
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for each in action.choices.values():
                yield from _actions(each)
