"""``poolwatch demo``: PostgreSQL, a small app with real faults, and the dashboard."""

from __future__ import annotations

import argparse
from pathlib import Path

from poolwatch.commands.arguments import Parsers, add_json, seconds

_DESCRIPTION = """\
Start PostgreSQL and a small application with faults from real life, and show them in
the dashboard.
"""

_EXAMPLES = """\
examples:
  poolwatch demo                           press q to leave
  poolwatch demo --headless --seconds 5    no terminal: prints what was found
  poolwatch demo --dsn postgresql://me@localhost/scratch     no PostgreSQL is started

exit codes: 0 fine, 1 PostgreSQL or the application did not start, or died,
2 usage, 4 permission denied
"""


def add(parsers: Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch demo``."""
    demo = parsers.add_parser(
        "demo",
        help="PostgreSQL, a small application with real faults, and the dashboard",
        description=_DESCRIPTION,
        epilog=_EXAMPLES,
    )
    demo.add_argument(
        "--headless",
        action="store_true",
        help="run without a terminal, then print what was found",
    )
    demo.add_argument(
        "--seconds",
        type=seconds,
        default=10.0,
        metavar="N",
        help="how long to run before printing (default 10)",
    )
    add_json(demo, "print the snapshot as JSON (implies --headless)")
    demo.add_argument(
        "--dsn",
        metavar="DSN",
        help="your own PostgreSQL; a schema poolwatch_demo is created and dropped",
    )
    demo.add_argument(
        "--dir",
        type=Path,
        metavar="DIRECTORY",
        help="socket directory (default: a temporary one)",
    )
    return demo


def run(options: argparse.Namespace) -> int:
    """Run the demo until the user quits, or headless for some seconds."""
    from poolwatch.commands.demo.demo import run_demo

    run_demo(options)
    return 0
