"""``poolwatch report``: one HTML page of a stretch of history."""

from __future__ import annotations

import argparse
import sys
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from poolwatch.commands import arguments

if TYPE_CHECKING:
    from poolwatch.sidecar.report.stretch import Stretch

_DESCRIPTION = """\
Write one HTML page of what the sidecar has kept: what went wrong, connections over
time, who held them, and each incident with its proof, stacks and remedy. The page needs
nothing else: it can be sent by mail, read on a phone and printed.
"""
_EXAMPLES = """\
examples:
  poolwatch report -o today.html                      the last 24 hours of the history
  poolwatch report -o night.html --since 03:00 --until 04:00
  poolwatch report -o web-1.html --since -2h --host web-1
"""
_ENVIRONMENT = arguments.environment(*arguments.HISTORY)
_EXIT_CODES = """\
exit codes: 0 the page was written, 2 usage, or a history that is empty or cannot be
read, 4 permission denied
"""


def add(parsers: arguments.Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch report``."""
    report = parsers.add_parser(
        "report",
        help="an HTML page of a stretch of history, with plots",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\n{arguments.TIMES}\n{_ENVIRONMENT}\n{_EXIT_CODES}",
    )
    report.add_argument(
        "-o",
        "--output",
        type=Path,
        required=True,
        metavar="FILE",
        help="the page to write; a file of that name is replaced",
    )
    arguments.add_history(report, live=False)
    report.add_argument(
        "--since",
        type=arguments.moment,
        metavar="TIME",
        help="the beginning (default: 24 hours before the end)",
    )
    report.add_argument(
        "--until",
        type=arguments.moment,
        metavar="TIME",
        help="the end (default: the last look of the history)",
    )
    report.add_argument("--host", metavar="NAME", help="only this host")
    return report


def run(options: argparse.Namespace) -> int:
    """Write the page."""
    output: Path = options.output
    arguments.check_writable(output)
    from poolwatch.sidecar.report import page, stretch

    render = page.renderer()
    with closing(arguments.history(options)) as history:
        with arguments.progress("reading the history") as progress:
            found = stretch.read(
                history, options.since, options.until, options.host, progress
            )
        text = render(found)
    arguments.write(output, text)
    print(f"poolwatch: {_summary(found)}: {output}", file=sys.stderr)
    return 0


def _summary(found: Stretch) -> str:
    from poolwatch.sidecar.report.words import stretch_words
    from poolwatch.text.format import plural

    incidents = sum(len(fault.incidents) for fault in found.faults)
    what = [plural(incidents, "incident")] if incidents else []
    if found.fleet:
        what.append(f"{plural(len(found.fleet), 'finding')} over all hosts")
    told = ", ".join(what) or "nothing went wrong"
    return f"{stretch_words(found.since, found.until)}, {told}"
