"""``poolwatch ps``: the open holds of every process, as one table or as JSON."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from poolwatch.commands import arguments
from poolwatch.errors import UsageError

if TYPE_CHECKING:
    from poolwatch.commands.ps_table import Style
    from poolwatch.model import Frozen

_DESCRIPTION = """\
Show who holds each connection of every instrumented process, and who waits.
"""

_EXAMPLES = """\
examples:
  poolwatch ps              who holds what now, what is wrong, and what to do
  poolwatch ps -v           ... with the proof, and the lines of code
  poolwatch ps --sites      which lines of code cost the most connections
  poolwatch ps --sites --by caller      ... which callers of a shared helper do
  poolwatch ps --frozen     what it looked like when it happened last night
  poolwatch ps --json | jq '.processes[].holds[] | select(.verdict != "ok")'

columns of --sites:
  AVG HELD       connections held at once, on average
  P50 P95 MAX    how long holds lasted
  WAIT CAUSED    how long others have waited while this call site held connections
  SQL %          of the time held: spent in statements; the rest is other work
  IDLE IN TX %   of the time held: in an open transaction, without a statement
  LEAKED         holds that were found to be leaks
"-" means unknown.
"""


def add(parsers: arguments.Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch ps``."""
    ps = parsers.add_parser(
        "ps",
        help="the open holds, as one table or as JSON",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\n{arguments.EXIT_CODES}",
    )
    ps.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="also the proof of each finding and, for each hold that is long or "
        "leaked, where it was taken, where it was last used and where its holder is "
        "now",
    )
    ps.add_argument(
        "--sites",
        action="store_true",
        help="also what each call site has cost since the pool was instrumented",
    )
    ps.add_argument(
        "--by",
        choices=("site", "caller"),
        help="--sites with the callers of a shared call site below it (site, the "
        "default), or each in a line of its own (caller)",
    )
    ps.add_argument(
        "--frozen",
        action="store_true",
        help="instead of now: the snapshot that each process kept of the first time a "
        "pool was exhausted, had a timeout or was deadlocked; with -v, the stacks of "
        "all holds",
    )
    arguments.add_json(ps, "print JSON instead: everything, whatever else is asked for")
    arguments.add_source(ps)
    return ps


def run(options: argparse.Namespace) -> int:
    """Print the holds of now, or with --frozen the snapshots of earlier incidents."""
    if options.frozen:
        return _frozen(options)
    from poolwatch.commands import ps_table
    from poolwatch.protocol import document

    with closing(arguments.live_source(options, linger_s=0.0)) as source:
        snapshot = source.snapshot()
    if source.server_error:
        print(f"poolwatch: server view: {source.server_error}", file=sys.stderr)
    if options.json:
        print(document.to_json(snapshot))
    else:
        print(ps_table.render(snapshot, _style(options)))
    return 0


def _frozen(options: argparse.Namespace) -> int:
    if options.dsn:
        raise UsageError("--dsn reads the server of now: it does not go with --frozen")
    from poolwatch.client.client import Client
    from poolwatch.commands import ps_table
    from poolwatch.text.format import one_line

    incidents, unreachable = Client(options.dir).all_frozen()
    if options.json:
        for lost in unreachable:
            why = f"pid {lost.pid} could not be read: {one_line(lost.why)}"
            print(f"poolwatch: {why}", file=sys.stderr)
        print(_frozen_document(incidents))
    else:
        print(ps_table.render_frozen(incidents, unreachable, _style(options)))
    return 0


def _frozen_document(incidents: Sequence[Frozen]) -> str:
    """The public fields only, as in the snapshot document."""
    from poolwatch.model import SCHEMA, Snapshot
    from poolwatch.protocol import document

    frozen = []
    for incident in incidents:
        snapshot = document.to_document(Snapshot(processes=(incident.process,)))
        (process,) = snapshot["processes"]
        head = {"pool": incident.pool, "kind": incident.kind, "at": incident.at}
        frozen.append({**head, "process": process})
    return json.dumps({"schema": SCHEMA, "frozen": frozen})


def _style(options: argparse.Namespace) -> Style:
    from poolwatch.commands.ps_table import Style

    return Style(
        columns=shutil.get_terminal_size((120, 24)).columns,
        verbose=options.verbose,
        sites=options.sites or options.by is not None,
        by=options.by or "site",
    )
