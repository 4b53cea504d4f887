"""``poolwatch ps``: the open holds of every process, as a table or as JSON."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Any

from poolwatch.commands import arguments
from poolwatch.errors import UsageError

if TYPE_CHECKING:
    from poolwatch.commands.ps_table import Style
    from poolwatch.model import IncidentSnapshot, Snapshot

_DESCRIPTION = """\
Show who holds each connection of every instrumented process, and who waits.
"""

_EXAMPLES = """\
examples:
  poolwatch ps              open holds, findings and remedies
  poolwatch ps -v           ... with proofs and stacks
  poolwatch ps --sites      which lines of code hold the most connections
  poolwatch ps --sites --by caller      ... which callers of a shared helper
  poolwatch ps --by endpoint            ... which values of label(endpoint=...)
  poolwatch ps --frozen     snapshots of last night's incidents
  poolwatch ps --at 03:12   how it was then, from the history of the sidecar
  poolwatch ps --json | jq '.processes[].holds[] | select(.verdict != "ok")'

columns of --sites and --by:
  AVG HELD       connections held at once, on average
  P50 P95 MAX    how long holds lasted
  WAIT CAUSED    how long others waited while this row held connections
  SQL %          share of the hold time spent in statements
  IDLE IN TX %   share of the hold time in a transaction between statements
  LEAKED         leaked holds
"-" means unknown.
"""
_ENVIRONMENT = arguments.environment(*arguments.VIEWER, *arguments.HISTORY)


def add(parsers: arguments.Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch ps``."""
    ps = parsers.add_parser(
        "ps",
        help="the open holds, as one table or as JSON",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\n{_ENVIRONMENT}\n{arguments.EXIT_CODES}",
    )
    ps.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="also the proof of each finding and, for each long or leaked hold, the "
        "stacks of its checkout and its last use, and the holder's current stack",
    )
    ps.add_argument(
        "--sites",
        action="store_true",
        help="also the statistics of each call site since the pool was instrumented",
    )
    ps.add_argument(
        "--by",
        metavar="site|caller|LABEL",
        help="implies --sites: list the callers of a shared call site below it (site, "
        "the default), or instead of it (caller); or list the values of a label that "
        "poolwatch.label(LABEL=...) has given to holds. With --json, adds the latter "
        'as "labels" to each process',
    )
    ps.add_argument(
        "--frozen",
        action="store_true",
        help="show incident snapshots instead: each process has one of the first time "
        "a pool was exhausted, had a timeout or was deadlocked; with -v, the stacks "
        "of all holds",
    )
    arguments.add_json(
        ps, "print everything as JSON, whatever the other options but --by"
    )
    arguments.add_source(ps)
    arguments.add_history(ps, live=True)
    arguments.add_at(ps)
    return ps


def run(options: argparse.Namespace) -> int:
    """Print the snapshot, or with --frozen the incident snapshots."""
    if options.frozen:
        return _print_incident_snapshots(options)
    from poolwatch.commands import ps_table
    from poolwatch.protocol import document

    snapshot = _snapshot(options)
    if options.json and options.by not in {None, "site", "caller"}:
        print(json.dumps(_with_labels(snapshot, options.by)))
    elif options.json:
        print(document.to_json(snapshot))
    else:
        print(ps_table.render(snapshot, _style(options)))
    return 0


def _snapshot(options: argparse.Namespace) -> Snapshot:
    past = arguments.history_source(options)
    if past is not None:
        with closing(past):
            return past.snapshot()
    with closing(arguments.live_source(options, linger_s=0.0)) as source:
        snapshot = source.snapshot()
    if source.server_error:
        print(f"poolwatch: server view: {source.server_error}", file=sys.stderr)
    return snapshot


def _with_labels(snapshot: Snapshot, label: str) -> dict[str, Any]:
    """The document, with the statistics of one label added to each process."""
    from poolwatch.protocol import document

    found = document.to_document(snapshot)
    every = document.to_document(snapshot, viewers=True)
    for process, complete in zip(found["processes"], every["processes"], strict=True):
        process["labels"] = [
            each for each in complete["labels"] if each["label"] == label
        ]
    return found


def _print_incident_snapshots(options: argparse.Namespace) -> int:
    for name in ("dsn", "pgbouncer"):
        if getattr(options, name):
            raise UsageError(
                f"--{name} cannot be combined with --frozen, which has no server view"
            )
    if options.history is not None or options.at is not None:
        raise UsageError(
            "--frozen shows what the processes keep themselves; the incidents of the "
            "history: poolwatch history"
        )
    from poolwatch.client.client import Client
    from poolwatch.commands import ps_table
    from poolwatch.text.format import one_line

    incidents, unreachable = Client(options.dir).all_incident_snapshots()
    if options.json:
        for lost in unreachable:
            why = f"pid {lost.pid} could not be read: {one_line(lost.why)}"
            print(f"poolwatch: {why}", file=sys.stderr)
        print(_incident_snapshots_document(incidents))
    else:
        print(
            ps_table.render_incident_snapshots(incidents, unreachable, _style(options))
        )
    return 0


def _incident_snapshots_document(incidents: Sequence[IncidentSnapshot]) -> str:
    """Return JSON with the public fields only, as in the snapshot document."""
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
