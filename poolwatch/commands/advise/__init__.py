"""``poolwatch advise``: recommends pool sizes, based on a recording.

``sizing``  the smallest pool for a target wait: by replay, and by queueing theory
``advise``  the recommendations for a recorded trace
``budget``  connections of one server, divided among the services of a history
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing, suppress
from typing import TYPE_CHECKING

from poolwatch.commands import arguments
from poolwatch.errors import NoProcessError, UsageError

if TYPE_CHECKING:
    from poolwatch.commands.advise.advise import Advice
    from poolwatch.model import Process

_MAX_RECORDING_S = 600.0
_WEEK_S = 7 * 86400.0
_MAX_CONNECTIONS = 262_143
"""The largest max_connections of PostgreSQL."""

_DESCRIPTION = """\
Record each request for a connection and how long it was held, then recommend a pool
size: the requests are replayed with other sizes, and compared with queueing theory. Run
it under load.

With --history or --budget, divide the connections of each server among the services
that use it instead, by what the history says that they have used.
"""

_EXAMPLES = """\
examples:
  poolwatch advise --seconds 60
  poolwatch advise --history postgresql://watch@db/poolwatch --budget 200

columns of the history:
  PROCESSES      of that service, the most at one time
  LIMIT          connections that each of them may open today
  MEAN PEAK      connections out in one process
  WANTED         connections out and requests waiting in one process
  PROPOSED       connections for each of them
"""
_ENVIRONMENT = arguments.environment("POOLWATCH_DIR", *arguments.HISTORY)


def add(parsers: arguments.Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch advise``."""
    advise = parsers.add_parser(
        "advise",
        help="recommend pool sizes, based on a recording",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\n{arguments.TIMES}\n{_ENVIRONMENT}\n{arguments.EXIT_CODES}",
    )
    advise.add_argument(
        "--seconds",
        type=arguments.seconds,
        default=10.0,
        metavar="N",
        help="how long to record (default 10, at most 600)",
    )
    advise.add_argument(
        "--target",
        type=arguments.milliseconds,
        default=10.0,
        metavar="MS",
        help="target for the 99th percentile of the wait (default 10 ms)",
    )
    advise.add_argument(
        "--history",
        metavar="URL",
        help="divide the connections of the servers in this history of the sidecars: "
        "any SQLAlchemy URL (with --budget alone: POOLWATCH_HISTORY, or else the "
        "SQLite file that the sidecar writes)",
    )
    advise.add_argument(
        "--budget",
        type=_connections,
        metavar="N",
        help="connections of a server for all pools of the history together (default: "
        "its max_connections without the reserved ones)",
    )
    advise.add_argument(
        "--since",
        type=arguments.moment,
        metavar="TIME",
        help="the beginning of what counts in the history (default: 7 days before its "
        "end)",
    )
    arguments.add_json(advise, "print the advice as JSON")
    arguments.add_dir(advise)
    return advise


def run(options: argparse.Namespace) -> int:
    """Print advice from a recording of some seconds, or from the history."""
    of_history = options.history, options.budget, options.since
    if any(each is not None for each in of_history):
        return _divide(options)
    from poolwatch.client.client import Client
    from poolwatch.commands.advise.advise import advise
    from poolwatch.protocol import document

    recorded_s = min(options.seconds, _MAX_RECORDING_S)
    client = Client(options.dir)
    client.agents()  # raises at once if there is no process
    print(f"poolwatch: recording for {recorded_s:g} s ...", file=sys.stderr)
    answers, unreachable = client.all_traces(recorded_s)
    for lost in unreachable:
        print(f"poolwatch: pid {lost.pid}: {lost.why}", file=sys.stderr)
    if not answers:
        return NoProcessError.exit_code
    advice = [
        (address.pid, advise(trace, options.target / 1e3))
        for address, traces in answers
        for trace in traces
    ]
    if options.json:
        print(document.list_to_json([each for _, each in advice], "advice"))
    else:
        texts = (f"pid {pid}  " + "\n".join(_lines(each)) for pid, each in advice)
        print("\n\n".join(texts))
    return 0


def _divide(options: argparse.Namespace) -> int:
    """Divide the connections of the servers in the history."""
    if options.dir is not None:
        raise UsageError("--dir cannot be combined with the history")
    opened = arguments.history(options)  # says which extra is missing
    from poolwatch.commands.advise import budget
    from poolwatch.protocol import document

    with closing(opened) as history:
        extent = history.extent()
        if extent is None:
            raise NoProcessError("the history is empty: no process was seen yet")
        totals, out = history.totals(_since(options.since, extent[1]))
        processes: tuple[Process, ...] = ()
        with suppress(NoProcessError):  # none at its end: the totals have to do
            processes = history.snapshot(extent[1]).processes
    found, unknown = budget.server_budgets(totals, processes, out, options.budget)
    if not found and not unknown:
        raise NoProcessError("the history has no figures of pools on PostgreSQL yet")
    for server in unknown:
        print(
            f"poolwatch: the history does not say how many connections {server} "
            "accepts: give --budget N",
            file=sys.stderr,
        )
    if options.json:
        print(document.list_to_json(found, "budgets"))
    elif found:
        print("\n\n".join("\n".join(budget.lines(each)) for each in found))
    return 0 if found else UsageError.exit_code


def _since(given: float | None, end: float) -> float:
    """When to begin, in a history with this end."""
    from poolwatch.text.format import utc_time

    if given is None:
        return end - _WEEK_S
    if given > end:
        raise UsageError(
            f"{utc_time(given)} lies after the history, which ends at {utc_time(end)}"
        )
    return given


def _connections(text: str) -> int:
    """Parse a number of connections, up to the most that PostgreSQL can have."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if not 1 <= number <= _MAX_CONNECTIONS:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be a number of connections from 1 to {_MAX_CONNECTIONS}"
        )
    return number


def _lines(advice: Advice) -> Iterator[str]:
    """Return the lines of one pool."""
    from poolwatch.text.format import duration, one_line

    yield one_line(
        f"{advice.pool}: {advice.requests} requests in {duration(advice.seconds)} "
        f"({advice.rate:.1f} a second), held {duration(advice.held_s)} on average"
    )
    if advice.thin is not None:
        yield "  " + one_line(f"no advice on the size: {advice.thin}")
    for each in advice.recommendations:
        yield "  " + one_line(f"* {each.text}")
        yield "    " + one_line(f"because {each.why}")
        if each.line is not None:
            yield "    " + one_line(each.line)
    if advice.thin is None and not advice.recommendations:
        yield "  nothing to change"
