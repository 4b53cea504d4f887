"""``poolwatch check``: one snapshot, a line for equal findings, and an exit code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from poolwatch.commands import arguments
from poolwatch.errors import NoProcessError
from poolwatch.model import SEVERITIES, severity_rank

if TYPE_CHECKING:
    from poolwatch.model import Finding, FleetFinding, Snapshot
_DESCRIPTION = """\
Take one snapshot, print the findings, the cause first, and report by the exit code.
Equal findings of many processes are one line.
"""

_EXAMPLES = """\
examples:
  poolwatch check                          a line for each fault; exit code 1 if any
  poolwatch check --severity critical      only what cannot wait, e.g. for a probe
  poolwatch check --json | jq -r '.findings[].text'
  poolwatch check --history postgresql://watch@db/poolwatch     all hosts
"""
_ENVIRONMENT = arguments.environment(*arguments.VIEWER, "POOLWATCH_HISTORY")


def add(parsers: arguments.Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch check``."""
    check = parsers.add_parser(
        "check",
        help="for scripts and probes: exit code 1 if something is wrong",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\n{_ENVIRONMENT}\n{arguments.CHECK_EXIT_CODES}",
    )
    check.add_argument(
        "--severity",
        choices=SEVERITIES,
        default="warning",
        help="minimum severity (default: warning)",
    )
    arguments.add_json(check, "print the findings as JSON")
    arguments.add_source(check)
    arguments.add_history(check, live=True)
    return check


def run(options: argparse.Namespace) -> int:
    """Print the findings; returns 1 if there are any."""
    from poolwatch.diagnosis.silence import silent_processes
    from poolwatch.protocol import document

    snapshot, server_error, server_down = _read(options)
    max_rank = severity_rank(options.severity)
    everything: list[Finding | FleetFinding] = [
        *silent_processes(snapshot.unreachable),
        *snapshot.findings,
        *(finding for process in snapshot.processes for finding in process.findings),
    ]
    found = [
        finding
        for finding in _each_server_down_once(everything)
        if severity_rank(finding.severity) <= max_rank
    ]
    _print_server_errors(server_error, snapshot)
    with suppress(BrokenPipeError):  # as with head: the exit code says it all the same
        if options.json:
            findings = document.list_to_json(found, "findings")
            unreachable = document.list_to_json(snapshot.unreachable, "unreachable")
            print(json.dumps({**json.loads(findings), **json.loads(unreachable)}))
        else:
            for line in _lines(snapshot, max_rank):
                print(line)
    if not snapshot.processes and all(
        lost.alive is False for lost in snapshot.unreachable
    ):
        return NoProcessError.exit_code
    return 1 if found or server_down else 0


def _read(options: argparse.Namespace) -> tuple[Snapshot, str | None, bool]:
    """The snapshot, and what is wrong with the server of the DSN."""
    past = arguments.history_source(options)
    if past is not None:
        with closing(past):
            return past.snapshot(), None, False
    with closing(arguments.live_source(options, linger_s=0.0)) as source:
        return source.snapshot(), source.server_error, source.server_down


def _print_server_errors(error: str | None, snapshot: Snapshot) -> None:
    from poolwatch.text.format import one_line

    servers = [each for process in snapshot.processes for each in process.servers]
    errors = [error, *(each.error for each in servers if each.enabled)]
    for why in dict.fromkeys(errors):
        if why:
            print(f"poolwatch: server view: {one_line(why)}", file=sys.stderr)


def _each_server_down_once(
    found: Sequence[Finding | FleetFinding],
) -> Iterator[Finding | FleetFinding]:
    """The findings; of the processes on one server that is down, the first one's."""
    told = set()
    for finding in found:
        if finding not in told:
            yield finding
        if finding.kind == "server_down":
            told.add(finding)


def _lines(snapshot: Snapshot, max_rank: int) -> Iterator[str]:
    from poolwatch.diagnosis.merging import merged
    from poolwatch.text.format import one_line

    for each in merged(snapshot):
        if severity_rank(each.severity) <= max_rank:
            what = one_line(f"{each.severity} {each.kind}: {each.text}")
            yield f"{what} [{one_line(each.who)}]" if each.who else what
