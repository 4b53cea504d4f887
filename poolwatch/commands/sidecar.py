"""``poolwatch sidecar``: the process beside the application."""

from __future__ import annotations

import argparse
import logging
import os
import platform
import re
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from poolwatch.commands import arguments
from poolwatch.commands.signals import handled, not_ignored
from poolwatch.errors import MissingExtraError

if TYPE_CHECKING:
    from poolwatch.model import Source
    from poolwatch.sidecar.history.writing import HistoryWriter
    from poolwatch.sidecar.looks import Looks, Sink
    from poolwatch.sidecar.metrics.endpoint import Metrics

_DESCRIPTION = """\
Look at all instrumented processes of this host once a second, serve what they say to
Prometheus, and keep a history: statistics by minute, incidents, and what it looked like
when they began. It is only a viewer: it may be started, stopped and killed at any time,
and it waits while there is no process. SIGTERM, SIGHUP and Ctrl-C end it.
"""

_EXAMPLES = """\
examples:
  poolwatch sidecar                        metrics at http://127.0.0.1:9646/metrics, the
                                           history in $XDG_STATE_HOME/poolwatch
  poolwatch sidecar --metrics 0.0.0.0:9646 --by-label endpoint
  POOLWATCH_HISTORY=postgresql://poolwatch@db/poolwatch poolwatch sidecar --keep 30d
                                           one history for many hosts; the password in
                                           ~/.pgpass, not in the process list
  poolwatch sidecar --otlp --no-metrics    pushes, to OTEL_EXPORTER_OTLP_ENDPOINT
  poolwatch sidecar --print alerts > poolwatch.yml       alert rules for Prometheus
  poolwatch sidecar --print dashboard > poolwatch.json   a dashboard for Grafana

then: poolwatch history            the incidents
      poolwatch ps --history URL --at 03:12
"""
_ENVIRONMENT = arguments.environment(
    *arguments.VIEWER, *arguments.HISTORY, "POOLWATCH_HOST", "OTEL_*"
)
_EXIT_CODES = """\
exit codes: 0 it was told to end, 2 usage, a port or a history that cannot be used,
4 permission denied
"""

_PATIENCE = 0.4
"""Of the time between two looks: how long to wait for a process, and for its server."""
_MIN_PATIENCE_S, _MAX_PATIENCE_S = 0.2, 3.0
_LINGER_S = 5.0
"""Seconds for which agents keep their connection to PostgreSQL for the next look."""
_UNITS_OF_TIME = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_UNITS_OF_SIZE = {"KiB": 2**10, "MiB": 2**20, "GiB": 2**30}


def add(parsers: arguments.Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch sidecar``."""
    sidecar = parsers.add_parser(
        "sidecar",
        help="beside the application: metrics, history, alerts",
        description=_DESCRIPTION,
        epilog=f"{_EXAMPLES}\n{_ENVIRONMENT}\n{_EXIT_CODES}",
    )
    sidecar.add_argument(
        "--every",
        type=arguments.seconds,
        default=1.0,
        metavar="SECONDS",
        help="time between two looks (default 1, at least 0.1)",
    )
    arguments.add_source(sidecar)
    sidecar.add_argument(
        "--host",
        type=_host,
        default=os.environ.get("POOLWATCH_HOST") or None,
        metavar="NAME",
        help="name of this host in metrics and history (default: POOLWATCH_HOST, or "
        "else each process's own)",
    )
    _add_metrics(sidecar)
    _add_history(sidecar)
    sidecar.add_argument(
        "--otlp",
        action="store_true",
        help="push OpenTelemetry's metrics, as OTEL_* in the environment say",
    )
    sidecar.add_argument(
        "--webhook",
        metavar="URL",
        help="POST each incident there as JSON when it begins and when it ends",
    )
    sidecar.add_argument(
        "--print",
        choices=("dashboard", "alerts"),
        help="only print the dashboard for Grafana, or the alert rules for Prometheus",
    )
    return sidecar


def _add_metrics(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("metrics")
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "--metrics",
        default="127.0.0.1:9646",
        metavar="[HOST:]PORT",
        help="where to serve /metrics and /healthz (default 127.0.0.1:9646)",
    )
    one.add_argument("--no-metrics", action="store_true", help="serve no metrics")
    group.add_argument(
        "--by-label",
        nargs="+",
        action="extend",
        default=[],
        metavar="NAME",
        help="also add up held and caused seconds by these labels of holds",
    )
    group.add_argument(
        "--no-pid-label",
        action="store_true",
        help="add up the processes of one service instead of telling them apart",
    )


def _add_history(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("history")
    one = group.add_mutually_exclusive_group()
    one.add_argument(
        "--history",
        metavar="URL",
        help="SQLAlchemy URL of SQLite or PostgreSQL (default: POOLWATCH_HISTORY, or "
        "else a SQLite file of this user)",
    )
    one.add_argument("--no-history", action="store_true", help="keep no history")
    group.add_argument(
        "--keep",
        type=_age,
        default=_age("7d"),
        metavar="AGE",
        help="how long to keep it: a number with s, m, h or d (default 7d)",
    )
    group.add_argument(
        "--keep-size",
        type=_size,
        default=_size("1GiB"),
        metavar="SIZE",
        help="how much to keep: a number with KiB, MiB or GiB (default 1GiB)",
    )


def run(options: argparse.Namespace) -> int:
    """Look until a signal ends it."""
    if options.print:
        from poolwatch.sidecar.metrics.shipped import shipped

        print(shipped(options.print), end="")
        return 0
    numbers = not_ignored(signal.SIGTERM, signal.SIGHUP)
    told: list[int] = []
    # from the beginning: the first process of a container has no other way to end
    with handled(lambda number, _: told.append(number), *numbers):
        locked, looks, does = _started(options)
        numbers += not_ignored(signal.SIGINT)
        with handled(lambda *_: looks.stop(), *numbers):
            if told:
                looks.stop()
            print(f"poolwatch: sidecar: {'; '.join(does)}", file=sys.stderr, flush=True)
            looks.run()
    os.close(locked)
    return 0


def _started(options: argparse.Namespace) -> tuple[int, Looks, list[str]]:
    """Open all that is needed: the lock, the looks, and in words what it does."""
    from poolwatch.protocol.sockets import runtime_directory
    from poolwatch.sidecar.lock import lock
    from poolwatch.sidecar.looks import Looks

    logging.basicConfig(format="poolwatch: %(message)s", level=logging.WARNING)
    arguments.given_dsn(options, required=True)
    if not options.no_metrics:
        _metrics_class()  # says what is missing before a history is made
    directory = runtime_directory(options.dir)
    locked = lock(directory, options.host or platform.node())
    source = arguments.live_source(
        options,
        linger_s=_LINGER_S if options.every < _LINGER_S else 0.0,
        patience_s=min(
            max(_PATIENCE * options.every, _MIN_PATIENCE_S), _MAX_PATIENCE_S
        ),
    )
    history = None if options.no_history else _history(options, source)
    sinks, does = _sinks(options, history)
    looks = Looks(
        source,
        sinks,
        options.every,
        host=options.host,
        lasting=history.lasting() if history else (),
    )
    does.append(f"looks at {directory} every {options.every:g} s")
    return locked, looks, does


def _history(options: argparse.Namespace, source: Source) -> HistoryWriter:
    """Open the history, to go on with the hosts that are seen now: in a container they
    have other names than the sidecar's own.
    """
    from poolwatch.sidecar.history.writing import HistoryWriter
    from poolwatch.sidecar.looks import look_at

    seen = look_at(source, options.host).snapshot.processes
    return HistoryWriter(
        _history_url(options),
        keep_s=options.keep,
        keep_bytes=options.keep_size,
        hosts={options.host or platform.node(), *(each.host for each in seen)},
    )


def _history_url(options: argparse.Namespace) -> str | None:
    return options.history or os.environ.get("POOLWATCH_HISTORY") or None


def _sinks(
    options: argparse.Namespace, history: HistoryWriter | None
) -> tuple[Sequence[Sink], list[str]]:
    """Open all that takes looks; also says in words what each does."""
    sinks: list[Sink] = []
    does: list[str] = []
    if not options.no_metrics:
        metrics = _metrics(options, history)
        sinks.append(metrics)
        does.append(f"metrics at {metrics.url}")
    if history is not None:
        from poolwatch.sidecar.history.store import place

        sinks.append(history)
        does.append(f"history in {place(_history_url(options))}")
    if options.otlp:
        from poolwatch.sidecar.otlp import OtlpPush

        sinks.append(OtlpPush())
        does.append("pushes by OTLP")
    if options.webhook is not None:
        from poolwatch.sidecar.webhook import Webhook

        sinks.append(Webhook(options.webhook))
        does.append("sends incidents to a webhook")
    return sinks, does


def _metrics_class() -> type[Metrics]:
    try:
        from poolwatch.sidecar.metrics.endpoint import Metrics
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "prometheus_client":
            raise
        raise MissingExtraError(
            "the metrics need prometheus_client", "sidecar"
        ) from error
    return Metrics


def _metrics(options: argparse.Namespace, history: HistoryWriter | None) -> Metrics:
    return _metrics_class()(
        options.metrics,
        by_label=options.by_label,
        pid_label=not options.no_pid_label,
        every_s=options.every,
        dropped=(lambda: history.dropped) if history else None,
    )


# -- types of option values ----------------------------------------------------------


def _host(text: str) -> str:
    if not text or not text.isprintable() or len(text) > 255:
        raise argparse.ArgumentTypeError(f"{text!r:.60} is not a host name")
    return text


def _age(text: str) -> float:
    return _with_unit(text, _UNITS_OF_TIME, "7d, 12h, 30m or 90s")


def _size(text: str) -> int:
    return int(_with_unit(text, _UNITS_OF_SIZE, "1GiB, 500MiB or 64KiB"))


def _with_unit(text: str, units: dict[str, int], examples: str) -> float:
    """Parse a positive number with its unit."""
    match = re.fullmatch(r"(\d{1,12}(?:\.\d{1,6})?)([A-Za-z]+)", text, re.ASCII)
    value = float(match[1]) * units.get(match[2], 0) if match else 0.0
    if value < 1:
        raise argparse.ArgumentTypeError(
            f"{text!r:.60} must be a positive number with a unit, such as {examples}"
        )
    return value
