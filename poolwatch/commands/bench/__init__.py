"""``poolwatch bench``: measures what pooling saves and what poolwatch costs.

``cases``      the ways to get a connection, and the workloads
``latency``    a proxy that adds a network's delay
``measuring``  runs each workload in each way, in alternating slices
``report``     the table and the JSON document
``benchmark``  finds a server, measures, reports
"""

from __future__ import annotations

import argparse

from poolwatch.commands.arguments import Parsers, add_json, milliseconds
from poolwatch.commands.signals import ended_by_signals

_DESCRIPTION = """\
Compare ways to get a connection for many small operations: a new connection each time,
and the installed pools, with and without poolwatch. The ways take turns, so that noise
affects all of them alike.
"""

_EXAMPLES = """\
examples:
  poolwatch bench                          on a PostgreSQL of its own
  poolwatch bench --latency 2              ... behind a network of 2 ms
  poolwatch bench --dsn postgresql://me@db/scratch --operations 200

exit codes: 0 fine, 2 usage, or a database that cannot be used
"""


def add(parsers: Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch bench``."""
    bench = parsers.add_parser(
        "bench",
        help="measure what pooling saves and what poolwatch costs",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    bench.add_argument(
        "--dsn",
        help="your own PostgreSQL; a table poolwatch_bench is created and dropped "
        "(default: an embedded server)",
    )
    bench.add_argument(
        "--operations",
        type=_operations,
        default=1000,
        metavar="N",
        help="operations per workload and way (default 1000)",
    )
    bench.add_argument(
        "--latency",
        type=milliseconds,
        default=0.0,
        metavar="MS",
        help="delay each message with a local proxy, as a network does",
    )
    add_json(bench, "print the figures as JSON")
    return bench


def run(options: argparse.Namespace) -> int:
    """Run the benchmark and print its report."""
    from poolwatch.commands.demo import server

    server.require("the benchmark", "rich", embedded=options.dsn is None)
    from poolwatch.commands.bench.benchmark import run_bench

    with ended_by_signals():
        print(run_bench(options.dsn, options.operations, options.latency, options.json))
    return 0


def _operations(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 10 <= value <= 10_000_000:
        raise argparse.ArgumentTypeError(
            f"{text!r} must be an integer from 10 to 10000000"
        )
    return value
