"""``poolwatch profile``: connection-seconds by stack, for a flame graph."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

from poolwatch.commands import arguments
from poolwatch.errors import NoProcessError, UnreachableError, UsageError

if TYPE_CHECKING:
    from poolwatch.diagnosis.hold_profile import Profile
    from poolwatch.model import Snapshot, Unreachable

_DESCRIPTION = """\
Write how long each stack held connections: connection-seconds, as a flame graph viewer
reads them. Watches all instrumented processes for some seconds, or reads a stretch of
the history of the sidecars.

The seconds of each call site are exact, open holds included. They are divided among the
stacks of the holds that were seen, once a second; the rest stands under the call site
alone. Equal processes and workers are added up.
"""
_EXAMPLES = """\
examples:
  poolwatch profile -o holds.json          then open it in https://www.speedscope.app
  poolwatch profile --seconds 60 | flamegraph.pl --countname ms > holds.svg
  poolwatch profile -o night.json --history postgresql://watch@db/poolwatch \\
                    --since 03:00 --until 04:00

formats: speedscope is JSON in seconds; collapsed has one line for each stack, with its
milliseconds as a whole number (the viewers take no other).
"""
_ENVIRONMENT = arguments.environment("POOLWATCH_DIR", *arguments.HISTORY)
_DEFAULT_S = 10.0
_EVERY_S = 1.0


def add(parsers: arguments.Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch profile``."""
    profile = parsers.add_parser(
        "profile",
        help="connection-seconds by stack, for a flame graph",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\n{arguments.TIMES}\n{_ENVIRONMENT}\n{arguments.EXIT_CODES}",
    )
    profile.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="write to this file (default: standard output)",
    )
    profile.add_argument(
        "--format",
        choices=("speedscope", "collapsed"),
        help="default: speedscope if FILE ends in .json, else collapsed",
    )
    profile.add_argument(
        "--seconds",
        type=arguments.seconds,
        metavar="N",
        help=f"how long to watch (default {_DEFAULT_S:g})",
    )
    arguments.add_dir(profile)
    arguments.add_history(profile, live=True)
    for name, text in (
        ("since", "the beginning, in the history (default: 24 hours before the end)"),
        ("until", "the end (default: the last look of the history)"),
    ):
        profile.add_argument(
            f"--{name}", type=arguments.moment, metavar="TIME", help=text
        )
    return profile


def run(options: argparse.Namespace) -> int:
    """Write the profile."""
    from poolwatch.text import flame_graph
    from poolwatch.text.format import duration, plural
    from poolwatch.version import VERSION

    output: Path | None = options.output
    if output is not None:
        arguments.check_writable(output)
    found, when = _past(options) if _is_past(options) else _watched(options)
    is_json = output is not None and output.suffix.lower() == ".json"
    if (options.format or ("speedscope" if is_json else "collapsed")) == "speedscope":
        name = f"connections held {when}"
        text = flame_graph.speedscope(found, name, f"poolwatch {VERSION}") + "\n"
    else:
        text = "".join(f"{line}\n" for line in flame_graph.collapsed(found))
    if output is None:
        print(text, end="")
    else:
        arguments.write(output, text)
    said = "no connection was held"
    if found:
        held = duration(sum(found.values()))
        said = f"connections were held {held} by {plural(len(found), 'stack')}"
    where = f": {output}" if output is not None else ""
    print(f"poolwatch: {said} {when}{where}", file=sys.stderr)
    return 0


def _is_past(options: argparse.Namespace) -> bool:
    """Whether the history is meant.

    --dir and --seconds are about processes of this machine: with them,
    POOLWATCH_HISTORY does not count.
    """
    live = "--dir" if options.dir is not None else "--seconds"
    is_live = options.dir is not None or options.seconds is not None
    times = options.since is not None or options.until is not None
    if options.history is None and not times:
        return not is_live and bool(os.environ.get("POOLWATCH_HISTORY"))
    if is_live:
        raise UsageError(f"{live} cannot be combined with the history")
    return True


def _past(options: argparse.Namespace) -> tuple[Profile, str]:
    with closing(arguments.history(options)) as history:
        from poolwatch.sidecar import profile
        from poolwatch.text.format import utc_time

        with arguments.progress("reading the history") as progress:
            found, since, until = profile.read(
                history, options.since, options.until, progress
            )
    return found, f"from {utc_time(since)} to {utc_time(until)}"


def _watched(options: argparse.Namespace) -> tuple[Profile, str]:
    from poolwatch.diagnosis.hold_profile import hold_profile

    seconds: float = _DEFAULT_S if options.seconds is None else options.seconds
    return hold_profile(_looks(options.dir, seconds)), f"in {seconds:g} s"


def _looks(directory: Path | None, seconds: float) -> Iterator[tuple[float, Snapshot]]:
    """Look at all processes once a second, without their servers."""
    from poolwatch.client.calls import Calls
    from poolwatch.client.client import PATIENCE_S, Client
    from poolwatch.client.processes import ProcessRegistry
    from poolwatch.model import Snapshot

    calls = Calls()
    registry = ProcessRegistry(Client(directory), calls, PATIENCE_S)
    began = time.monotonic()
    told: set[int | None] = set()
    answered = False
    with arguments.progress("watching") as progress:
        while True:
            at = time.monotonic()
            try:
                views, unreachable = registry.ask(calls.late())
            except NoProcessError:
                if not answered:
                    raise
                return
            _tell(unreachable, told)
            answered = answered or bool(views)
            processes = tuple([view.process for view in views.values()])
            yield at, Snapshot(processes, unreachable)
            left = began + seconds - time.monotonic()
            if left <= 0:
                break
            progress(1 - left / seconds)
            time.sleep(min(left, max(0.0, at + _EVERY_S - time.monotonic())))
    if not answered:
        raise UnreachableError("no process has answered")


def _tell(unreachable: tuple[Unreachable, ...], told: set[int | None]) -> None:
    """Say once of each process that its seconds are missing."""
    from poolwatch.text.format import one_line
    from poolwatch.text.naming import unreachable_name

    for lost in unreachable:
        if lost.pid not in told:
            told.add(lost.pid)
            print(
                f"poolwatch: {unreachable_name(lost)}: {one_line(lost.why)}",
                file=sys.stderr,
            )
