"""The command line: wires a client, and a server, to a face.

The only place that prints errors. Each face is imported by its own command, so that
``poolwatch ps`` needs nothing but the base install.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from poolwatch.errors import NoProcessError, PoolwatchError, UsageError
from poolwatch.model import SEVERITIES, severity_rank
from poolwatch.version import VERSION

if TYPE_CHECKING:
    from poolwatch.client.live import LiveSource
    from poolwatch.commands.ps_table import Style
    from poolwatch.model import Frozen, Snapshot, Unreachable

_EXIT_CODES = """\
exit codes: 0 fine, 2 usage, 3 no process found, 4 permission denied
"""

_CHECK_CODES = """\
exit codes: 0 fine, 1 something is wrong, or a process or its server does not answer,
2 usage, 3 no process found, 4 permission denied
"""

_RUN_EXAMPLES = """\
examples:
  poolwatch run -- python app.py
  poolwatch run -- python -m shop.worker
  poolwatch run -- gunicorn --workers 4 shop:app
  poolwatch run -- celery --app shop worker
  env $(poolwatch run --environment) python app.py      # the same, e.g. in a container

Python's own switches -I, -E and -S keep it out. POOLWATCH_DISABLE=1 does, too.
"""

_HOW = """\
In the application, one line:

    import poolwatch
    poolwatch.instrument(engine)      # an Engine, AsyncEngine or Pool of SQLAlchemy

then, from any terminal of the same user:

    poolwatch tui                     # the dashboard
    poolwatch ps                      # the same as one table

No application at hand?  poolwatch demo  starts one, with PostgreSQL and real faults.
"""

_PS = """\
Show who holds each connection of every instrumented process, and who waits.
"""

_PS_HOW = """\
examples:
  poolwatch ps              who holds what now, what is wrong, and what to do
  poolwatch ps -v           ... why that is believed, and the lines of code
  poolwatch ps --sites      which lines of code cost the most connections
  poolwatch ps --sites --by caller      ... which callers of a shared helper do
  poolwatch ps --frozen     what it looked like when it happened last night
  poolwatch ps --json | jq '.processes[].holds[] | select(.verdict != "ok")'

columns of --sites:
  AVG HELD       connections held at once, on average
  P50 P95 MAX    how long holds lasted
  WAIT CAUSED    how long others have waited while this call site held connections
  SQL %          of the time held: in statements; the rest is for other things
  IDLE IN TX %   of the time held: in an open transaction, without a statement
  LEAKED         holds that were found leaked
"-" is not known.
"""


_SERVE = """\
Show in a browser what "poolwatch tui" shows in a terminal. It listens on this machine
only and, on Linux, lets in nobody but this user and root.
"""

_SERVE_HOW = """\
examples:
  poolwatch serve                       then open http://127.0.0.1:8000/
  POOLWATCH_DSN=... poolwatch serve     a DSN that no history or process list shows
  ssh -t -L 8000:127.0.0.1:8000 HOST poolwatch serve    from another machine

There is no password. With --host ADDRESS --anyone-may-look, everybody who can reach the
address sees statements, call sites and labels. A page can look, and change nothing.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a terminal that knows ASCII only
            stream.reconfigure(errors="replace")
    try:
        options = _parser().parse_args(arguments)
        return int(options.command(options))
    except PoolwatchError as error:
        print(f"poolwatch: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has gone: nothing to say
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="poolwatch",
        description="Who holds my database connections?",
        epilog=_HOW + "\n" + _CHECK_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"poolwatch {VERSION}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _add_ps(commands)
    _add_tui(commands)
    _add_serve(commands)
    _add_demo(commands)
    _add_check(commands)
    _add_advise(commands)
    _add_run(commands)
    _add_bench(commands)
    return parser


def _add_ps(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    ps = commands.add_parser(
        "ps",
        help="the holds of now, as one table or as JSON",
        description=_PS,
        epilog=_PS_HOW + "\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    ps.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        help="also the proof of each finding and, of each hold that is long or leaked, "
        "where it was taken, where it was last used and where its holder is now",
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
        help="instead of now: the pictures that each process has kept of the first "
        "time a pool was exhausted, had a timeout or was deadlocked; with -v, the "
        "stacks of all holds",
    )
    ps.add_argument(
        "--json",
        action="store_true",
        help="print the document instead: everything, whatever else is asked for",
    )
    _add_sources(ps)
    ps.set_defaults(command=_ps)


def _add_tui(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    tui = commands.add_parser(
        "tui",
        help="the dashboard",
        description="Watch all instrumented processes, live. Press ? inside for help.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_refresh(tui)
    _add_sources(tui)
    tui.set_defaults(command=_tui)


def _add_serve(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    serve = commands.add_parser(
        "serve",
        help="the dashboard in a browser",
        description=_SERVE,
        epilog=_SERVE_HOW + "\n" + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    serve.add_argument(
        "--host", default="127.0.0.1", help="where to listen (default 127.0.0.1)"
    )
    serve.add_argument(
        "--port",
        type=_port,
        default=8000,
        help="0 takes any free one, and says which (default 8000)",
    )
    serve.add_argument(
        "--anyone-may-look",
        action="store_true",
        help="allow a host that other machines can reach: there is no password",
    )
    _add_refresh(serve)
    _add_sources(serve)
    serve.set_defaults(command=_serve)


def _add_run(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    run = commands.add_parser(
        "run",
        help="instrument a program without touching its code",
        usage="poolwatch run [--] COMMAND [ARGUMENT ...]\n"
        "       poolwatch run --environment",
        description="Run a program with every engine of every Python process that it "
        "starts instrumented: a script, a module, gunicorn, uvicorn, celery, pytest. "
        "The program takes the place of this command: its signals and its exit code "
        "are its own.",
        epilog=_RUN_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    run.add_argument(
        "--environment",
        action="store_true",
        help="print what to set in the environment instead (for containers)",
    )
    run.add_argument("program", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    run.set_defaults(command=_run)


def _run(options: argparse.Namespace) -> int:
    from poolwatch.agent import autostart

    environment = autostart.environment(dict(os.environ))
    if options.environment:
        print(f"PYTHONPATH={environment['PYTHONPATH']}")
        return 0
    program = options.program
    if program[:1] == ["--"]:
        program = program[1:]
    if not program:
        raise UsageError("say what to run: poolwatch run -- gunicorn shop:app")
    sys.stdout.flush()
    try:
        os.execvpe(program[0], program, environment)  # noqa: S606 - that is the command
    except FileNotFoundError:
        raise UsageError(f"there is no program {program[0]!r}") from None
    except OSError as error:
        raise UsageError(f"cannot run {program[0]!r}: {error.strerror}") from None


def _add_check(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    check = commands.add_parser(
        "check",
        help="for scripts and probes: exit code 1 if something is wrong",
        description="Look once, print what is wrong, a line each, and tell by the exit "
        "code.",
        epilog=_CHECK_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    check.add_argument(
        "--severity",
        choices=SEVERITIES,
        default="warning",
        help="the least that counts (default: warning)",
    )
    check.add_argument("--json", action="store_true", help="print the findings as JSON")
    _add_sources(check)
    check.set_defaults(command=_check)


def _check(options: argparse.Namespace) -> int:
    from poolwatch.protocol import document as wire
    from poolwatch.text.format import one_line
    from poolwatch.text.naming import process_name

    source = _live(options, linger_s=0.0)
    try:
        snapshot = source.snapshot()
    finally:
        source.close()
    silent = [lost for lost in snapshot.unreachable if lost.alive is not False]
    lowest = severity_rank(options.severity)
    found = [
        (process, finding)
        for process in snapshot.processes
        for finding in process.findings
        if severity_rank(finding.severity) <= lowest
    ]
    servers = [each for process in snapshot.processes for each in process.servers]
    unread = [each.error for each in servers if each.error and each.enabled]
    for why in dict.fromkeys([source.server_error, *unread]):
        if why:
            print(f"poolwatch: server view: {one_line(why)}", file=sys.stderr)
    if options.json:
        findings = wire.list_to_json([finding for _, finding in found], "findings")
        members = wire.list_to_json(snapshot.unreachable, "unreachable")
        print(json.dumps({**json.loads(findings), **json.loads(members)}))
    else:
        for lost in silent:
            print(f"critical unreachable: pid {lost.pid}: {one_line(lost.why)}")
        for process, finding in found:
            who = f"{process_name(process)} (pid {process.pid})"
            print(
                one_line(f"{finding.severity} {finding.kind}: {finding.text} [{who}]")
            )
    if not snapshot.processes and not silent:
        return NoProcessError.exit_code
    return 1 if found or silent or source.server_down else 0


def _add_advise(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    advise = commands.add_parser(
        "advise",
        help="the size of a pool, from what is measured",
        description="Record who asks for connections and how long they hold them, then "
        "say which pool would do: the recorded requests are replayed with other sizes, "
        "and queueing theory is asked as well. Run it under load.",
        epilog=_EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    advise.add_argument(
        "--seconds",
        type=_seconds,
        default=10.0,
        metavar="N",
        help="how long to record (default 10, 600 at most)",
    )
    advise.add_argument(
        "--target",
        type=_milliseconds,
        default=10.0,
        metavar="MS",
        help="the wait that 99 %% of all requests may have (default 10 ms)",
    )
    advise.add_argument("--json", action="store_true", help="print the advice as JSON")
    advise.add_argument(
        "--dir",
        type=Path,
        metavar="DIRECTORY",
        help="where the sockets are (default: POOLWATCH_DIR or the user's own)",
    )
    advise.set_defaults(command=_advise)


def _advise(options: argparse.Namespace) -> int:
    from poolwatch.client.client import Client
    from poolwatch.commands.advise.advise import advise
    from poolwatch.commands.advise.report import in_words
    from poolwatch.protocol import document as wire

    seconds = min(options.seconds, 600.0)
    client = Client(options.dir)
    client.agents()  # say at once if there is nobody
    print(f"poolwatch: recording for {seconds:g} s ...", file=sys.stderr)
    told, unreachable = client.all_traces(seconds)
    for lost in unreachable:
        print(f"poolwatch: pid {lost.pid}: {lost.why}", file=sys.stderr)
    if not told:
        return NoProcessError.exit_code
    advice = [
        (address.pid, advise(trace, options.target / 1e3))
        for address, traces in told
        for trace in traces
    ]
    if options.json:
        print(wire.list_to_json([each for _, each in advice], "advice"))
    else:
        print("\n\n".join(f"pid {pid}  {in_words(each)}" for pid, each in advice))
    return 0


def _add_bench(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    bench = commands.add_parser(
        "bench",
        help="what pooling saves and what poolwatch costs, on your own database",
        description="Take a connection and do something small with it, many times: a "
        "new connection each time against the pools that are installed, with and "
        "without poolwatch. The ways take turns, so that noise hits all alike.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    bench.add_argument(
        "--dsn",
        help="your own PostgreSQL; a table poolwatch_bench is made and dropped "
        "(default: an embedded server)",
    )
    bench.add_argument(
        "--operations",
        type=_count,
        default=1000,
        metavar="N",
        help="of each workload in each way (default 1000)",
    )
    bench.add_argument(
        "--latency",
        type=_milliseconds,
        default=0.0,
        metavar="MS",
        help="add a network's delay to each message, by a local proxy",
    )
    bench.add_argument("--json", action="store_true", help="print the figures as JSON")
    bench.set_defaults(command=_bench)


def _bench(options: argparse.Namespace) -> int:
    from poolwatch.commands.demo import server

    server.require(embedded=options.dsn is None)
    from poolwatch.commands.bench.command import run_bench

    report = run_bench(
        dsn=options.dsn,
        operations=options.operations,
        latency_ms=options.latency,
        as_json=options.json,
    )
    print(report)
    return 0


def _count(text: str) -> int:
    try:
        value = int(text)
    except ValueError:
        value = 0
    if not 10 <= value <= 10_000_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 10 on")
    return value


def _milliseconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 10_000:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of milliseconds")
    return value


def _add_demo(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    demo = commands.add_parser(
        "demo",
        help="PostgreSQL, a small application with real faults, and the dashboard",
        description="Start PostgreSQL and a small real application with faults that "
        "people really write, and show them in the dashboard.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    demo.add_argument(
        "--headless", action="store_true", help="no terminal: run, then print"
    )
    demo.add_argument(
        "--seconds",
        type=_seconds,
        metavar="N",
        help="how long to run before printing (default 10)",
    )
    demo.add_argument("--json", action="store_true", help="print the snapshot document")
    demo.add_argument(
        "--dsn", help="your own PostgreSQL; a schema poolwatch_demo is made and removed"
    )
    demo.add_argument("--dir", type=Path, help="socket directory (default: its own)")
    demo.set_defaults(command=_demo)


def _add_sources(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--dir",
        type=Path,
        metavar="DIRECTORY",
        help="where the sockets are (default: POOLWATCH_DIR or the user's own)",
    )
    parser.add_argument(
        "--dsn",
        metavar="DSN",
        help="read pg_stat_activity here: a SQLAlchemy URL or a libpq string (default: "
        "POOLWATCH_DSN, or each process reads its own server)",
    )


def _add_refresh(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--refresh",
        type=_seconds,
        default=1.0,
        metavar="SECONDS",
        help="time between two looks (default 1)",
    )


def _port(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError(f"{text!r} is no port")
    return int(text)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0.1 <= seconds <= 86400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds >= 0.1")
    return seconds


def _live(options: argparse.Namespace, *, linger_s: float) -> LiveSource:
    from poolwatch.client.client import Client
    from poolwatch.client.live import LiveSource

    dsn = options.dsn or os.environ.get("POOLWATCH_DSN") or None
    return LiveSource(Client(options.dir), dsn=dsn, linger_s=linger_s)


def _ps(options: argparse.Namespace) -> int:
    if options.frozen:
        return _ps_frozen(options)
    from poolwatch.commands import ps_table
    from poolwatch.protocol import document as wire

    source = _live(options, linger_s=0.0)
    try:
        snapshot = source.snapshot()
    finally:
        source.close()
    if source.server_error:
        print(f"poolwatch: server view: {source.server_error}", file=sys.stderr)
    if options.json:
        print(wire.to_json(snapshot))
    else:
        print(ps_table.render(snapshot, _style(options)))
    return 0


def _ps_frozen(options: argparse.Namespace) -> int:
    if options.dsn:
        raise UsageError("--dsn reads the server of now: it does not go with --frozen")
    from poolwatch.client.client import Client
    from poolwatch.commands import ps_table
    from poolwatch.text.format import one_line

    pictures, unreachable = Client(options.dir).all_frozen()
    if options.json:
        for lost in unreachable:
            why = f"pid {lost.pid} could not be read: {one_line(lost.why)}"
            print(f"poolwatch: {why}", file=sys.stderr)
        print(_frozen_document(pictures))
    else:
        print(ps_table.render_frozen(pictures, unreachable, _style(options)))
    return 0


def _frozen_document(pictures: Sequence[Frozen]) -> str:
    """The public fields only, as in the snapshot document."""
    from poolwatch.model import SCHEMA, Snapshot
    from poolwatch.protocol import document as wire

    frozen = []
    for picture in pictures:
        snapshot = wire.to_document(Snapshot(processes=(picture.process,)))
        (process,) = snapshot["processes"]
        head = {"pool": picture.pool, "kind": picture.kind, "at": picture.at}
        frozen.append({**head, "process": process})
    return json.dumps({"schema": SCHEMA, "frozen": frozen})


def _style(options: argparse.Namespace) -> Style:
    from poolwatch.commands.ps_table import Style

    columns = shutil.get_terminal_size((120, 24)).columns
    verbose = options.verbose
    by: Literal["site", "caller"] = options.by or "site"
    sites = options.sites or options.by is not None
    return Style(columns, verbose=verbose, sites=sites, by=by)


class _WhenAsked:
    """A live source whose modules are loaded by its first look.

    The dashboard looks from a thread of its own, so its first frame need not wait.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self._options = options
        self._source: LiveSource | None = None

    def snapshot(self) -> Snapshot:
        if self._source is None:
            self._source = _live(self._options, linger_s=5.0)
        return self._source.snapshot()

    def all_frozen(self) -> tuple[tuple[Frozen, ...], tuple[Unreachable, ...]]:
        """Asked by another thread than snapshot(): over a client of its own."""
        from poolwatch.client.client import Client

        return Client(self._options.dir).all_frozen()

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


def _tui(options: argparse.Namespace) -> int:
    from poolwatch import tui

    source = _WhenAsked(options)
    tui.run(source, refresh=options.refresh, on_close=source.close)
    return 0


def _serve(options: argparse.Namespace) -> int:
    dashboard = ["--refresh", f"{options.refresh:g}"]
    if options.dir is not None:
        dashboard += ["--dir", str(options.dir.absolute())]
    if options.dsn:  # may carry a password, and stay for days: out of the process list
        _begin_again(options, dashboard)
    from poolwatch.commands import serve as browser

    browser.run(
        ["tui", *dashboard],
        host=options.host,
        port=options.port,
        anyone_may_look=options.anyone_may_look,
    )
    return 0


def _begin_again(options: argparse.Namespace, dashboard: Sequence[str]) -> None:
    """As the same process, with the DSN in the environment instead of the arguments."""
    from poolwatch.runtime.installation import python_path

    command = [sys.executable, "-P", "-m", "poolwatch", "serve", *dashboard]
    command += [f"--host={options.host}", f"--port={options.port}"]
    command += ["--anyone-may-look"] * options.anyone_may_look
    changes = {"POOLWATCH_DSN": options.dsn, "PYTHONPATH": python_path()}
    sys.stdout.flush()
    os.execve(sys.executable, command, {**os.environ, **changes})  # noqa: S606 - ourselves


def _demo(options: argparse.Namespace) -> int:
    from poolwatch.commands.demo.command import run_demo

    return run_demo(
        headless=options.headless,
        seconds=options.seconds,
        as_json=options.json,
        dsn=options.dsn,
        directory=options.dir,
    )
