"""``poolwatch advise``: recommends pool sizes, based on a recording.

``sizing``  the smallest pool for a target wait: by replay, and by queueing theory
``advise``  the recommendations for a recorded trace
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

from poolwatch.commands import arguments
from poolwatch.errors import NoProcessError

if TYPE_CHECKING:
    from poolwatch.commands.advise.advise import Advice

_MAX_RECORDING_S = 600.0

_DESCRIPTION = """\
Record each request for a connection and how long it was held, then recommend a pool
size: the requests are replayed with other sizes, and compared with queueing theory. Run
it under load.
"""


def add(parsers: arguments.Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch advise``."""
    advise = parsers.add_parser(
        "advise",
        help="recommend pool sizes, based on a recording",
        description=_DESCRIPTION,
        epilog=arguments.EXIT_CODES,
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
    arguments.add_json(advise, "print the advice as JSON")
    arguments.add_dir(advise)
    return advise


def run(options: argparse.Namespace) -> int:
    """Record every pool of every process for some seconds, and print the advice."""
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
