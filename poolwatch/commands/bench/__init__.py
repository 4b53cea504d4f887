"""``poolwatch bench``: what pooling saves, and what poolwatch costs, on your database.

``cases``      the ways to get a connection, and the workloads
``latency``    a proxy that adds a network's delay
``measuring``  runs each workload in each way, interleaved
``report``     the table and the JSON document
``benchmark``  finds a server, measures, reports
"""

from __future__ import annotations

import argparse

from poolwatch.commands.arguments import Parsers, add_json, milliseconds

_DESCRIPTION = """\
Take a connection and do something small with it, many times: a new connection each time
against the pools that are installed, with and without poolwatch. The ways take turns,
so that noise affects all of them alike.
"""


def add(parsers: Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch bench``."""
    bench = parsers.add_parser(
        "bench",
        help="what pooling saves and what poolwatch costs, on your own database",
        description=_DESCRIPTION,
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
        help="number of operations of each workload in each way (default 1000)",
    )
    bench.add_argument(
        "--latency",
        type=milliseconds,
        default=0.0,
        metavar="MS",
        help="add a network's delay to each message, by a local proxy",
    )
    add_json(bench, "print the figures as JSON")
    return bench


def run(options: argparse.Namespace) -> int:
    """Measure, and print the figures."""
    from poolwatch.commands.demo import server

    server.require(embedded=options.dsn is None)
    from poolwatch.commands.bench.benchmark import run_bench

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
