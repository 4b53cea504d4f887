"""``poolwatch attach``: watch a process that runs and was never instrumented."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from poolwatch.commands.arguments import (
    Parsers,
    add_dir,
    environment,
    seconds,
)
from poolwatch.errors import NoProcessError, PoolwatchError, UsageError
from poolwatch.protocol import sockets
from poolwatch.text.format import one_line, plural

if TYPE_CHECKING:
    from poolwatch.commands.attach.arming import Armed
    from poolwatch.commands.attach.target import Target

_DESCRIPTION = """\
Watch a process that runs already, and whose code knows nothing of poolwatch. Every pool
of it is instrumented, as if the program had called poolwatch.instrument(); then ps, tui
and all other viewers see it.

It needs Python 3.14 or later in that process, on Linux, and its user or root. The main
thread runs a script that starts a thread and returns at once. poolwatch is loaded from
the environment of the process or else from here; nothing is installed.

What an attach can know of a connection that was out before it: what refers to it (a
variable of a running function, a task, a global), the stack of that thread or task now,
its statements from now on, and what PostgreSQL says about it.

What it cannot know: the line that checked it out, which thread or task did, and since
when. These are null in ps --json and never guessed; ">5m" is the time that it was seen
out. All that is checked out after the attach is known, with its line.
"""

_EPILOG = """\
The script runs when the main thread next runs Python: in milliseconds in a busy
program, but not inside of a long sleep or a wait for events. Then the script stays
armed, for a minute or more, until something wakes the thread: a request, a signal, the
end of the sleep. --wake stops the process and continues it, which wakes an idle event
loop. Without --wake no signal is sent.

--undo removes all hooks, the thread, the socket and the files, and takes back a script
that is still armed. What stays are modules in memory and handlers that do nothing.

examples:
  poolwatch attach 4711
  poolwatch ps                        who holds what, by line where it can be known
  poolwatch attach --undo 4711

"""
_PAUSE_S = 0.01
_BEFORE_WAKE_S = 0.5
_STAYS_ARMED_S = 60.0
_WORKS_S = 60.0
"""Limit for an attach that has begun, in a process that is very busy."""
_EXIT_CODES = """\
exit codes: 0 fine, 1 the process has not answered yet, 2 usage, or it cannot be
watched, 3 there is no such process, 4 permission denied
"""


def add(parsers: Parsers) -> argparse.ArgumentParser:
    """Add the parser of ``poolwatch attach``."""
    parser = parsers.add_parser(
        "attach",
        help="watch a process that runs already (Python 3.14 and later)",
        description=_DESCRIPTION,
        epilog=f"{_EPILOG}{environment('POOLWATCH_DIR')}\n{_EXIT_CODES}",
    )
    parser.add_argument("pid", metavar="PID", help="the process")
    parser.add_argument(
        "--undo", action="store_true", help="detach: leave nothing behind"
    )
    parser.add_argument(
        "--seconds",
        type=seconds,
        default=5.0,
        metavar="N",
        help="how long to wait for its answer (default 5)",
    )
    parser.add_argument(
        "--wake",
        action="store_true",
        help="if it does not answer, stop the process and continue it",
    )
    add_dir(parser)
    return parser


def run(options: argparse.Namespace) -> int:
    """Attach to a process, or undo that."""
    from poolwatch.commands.attach.target import Target

    began = time.monotonic()
    target = Target.find(options.pid)
    try:
        return _run(target, options, began)
    except (OSError, PoolwatchError):
        if target.has_ended():
            raise NoProcessError(f"process {target.pid} has ended") from None
        raise


def _run(target: Target, options: argparse.Namespace, began: float) -> int:
    from poolwatch.commands.attach import arming

    _ = target.version
    pending = arming.taken_back(target)
    socket = target.agent_socket()
    begun = any(each.has_begun() for each in arming.of_process(target))
    if options.undo and socket is None and not begun:
        print(
            f"the attach to process {target.pid} is taken back; it had not begun"
            if pending
            else f"poolwatch is not attached to process {target.pid}"
        )
        return 0
    if not options.undo and socket is not None:
        where = target.outside(str(socket.parent))
        print(f"process {target.pid} is already watched; its socket is in {where}")
        return 0
    return _order(target, options, pending, began)


def _order(
    target: Target,
    options: argparse.Namespace,
    earlier: Sequence[Armed],
    began: float,
) -> int:
    """Have the process run an order, and tell the outcome.

    The process knows of one script at a time: those of ``earlier`` will not run.
    """
    from poolwatch.commands.attach import arming, calling

    now = time.time()
    until = now + options.seconds + _STAYS_ARMED_S
    until += -until % 60  # told in minutes
    order = {
        "undo": options.undo,
        "directory": None if options.dir is None else str(options.dir.absolute()),
        "deadline": until,
    }
    armed = arming.Armed.make(target, order)
    try:
        calling.run_in(target, armed.script)
    except PoolwatchError:
        armed.remove(all_of_it=True)
        raise
    try:
        answer = _answer(target, armed, options)
    except KeyboardInterrupt:
        if armed.is_pending():
            armed.disarm()
        armed.give_up()
        raise
    if answer is None and armed.has_begun():
        print(
            f"process {target.pid} has begun and not finished in {_WORKS_S:g} s: it "
            "is very busy. Look again later: poolwatch ps",
            file=sys.stderr,
        )
        return 1
    if answer is None:
        return _not_answered(target, until, undo=options.undo, wake=options.wake)
    armed.remove(all_of_it=answer.get("said") != "attached")
    is_undone = answer.get("said") in ("undone", "not attached")
    for each in arming.of_process(target) if is_undone else earlier:
        each.remove(all_of_it=True)
    return _told(target, answer, time.monotonic() - began)


def _answer(
    target: Target, armed: Armed, options: argparse.Namespace
) -> dict[str, Any] | None:
    from poolwatch.commands.attach.calling import wake

    now = time.monotonic()
    until, wakes_at = now + options.seconds, now + min(_BEFORE_WAKE_S, options.seconds)
    has_begun, woken = False, not options.wake
    while True:
        answer = armed.answer()
        if answer is not None:
            return answer
        if target.has_ended():
            armed.remove(all_of_it=True)
            raise NoProcessError(f"process {target.pid} has ended")
        now = time.monotonic()
        if not has_begun and armed.has_begun():
            has_begun, until = True, now + _WORKS_S
        if not woken and now >= wakes_at:
            wake(target)
            woken = True
        if now > until:
            return armed.give_up()
        time.sleep(_PAUSE_S)


def _not_answered(target: Target, until: float, *, undo: bool, wake: bool) -> int:
    at = f"{datetime.fromtimestamp(until).astimezone():%H:%M}"
    print(
        f"process {target.pid} has not answered: {target.state()}. The script stays "
        f"armed until {at}; it runs as soon as the main thread runs Python again"
        + ("" if wake else ": a request, a signal or --wake may bring that about")
        + ("" if undo else f". To take it back: poolwatch attach --undo {target.pid}"),
        file=sys.stderr,
    )
    return 1


def _told(target: Target, answer: dict[str, Any], took: float) -> int:
    said = answer.get("said")
    if "refused" in answer:
        error = UsageError(one_line(str(answer["refused"])))
        if answer.get("exit_code") == 4:
            error.exit_code = 4
        raise error
    if said == "already":
        print(f"process {target.pid} is already instrumented")
    elif said == "undone":
        print(f"detached from process {target.pid} in {took:.2f} s")
    elif said == "not attached":
        print(
            f"poolwatch is not attached to process {target.pid}: its own code has "
            "instrumented it"
        )
    elif said == "attached":
        _tell_attached(target, answer, took)
    else:
        why = one_line(str(answer.get("failed", "unknown answer")))
        raise UsageError(f"process {target.pid} could not carry it out: {why}")
    return 0


def _tell_attached(target: Target, answer: dict[str, Any], took: float) -> None:
    pools, holds = (_number(answer, key) for key in ("pools", "holds"))
    program = one_line(str(answer.get("program", "")), 40)
    print(
        f"attached to process {target.pid} ({program}) in {took:.2f} s: "
        f"{plural(pools, 'pool')}, {plural(holds, 'connection')} out"
    )
    if holds:
        bold, plain = ("\x1b[1m", "\x1b[0m") if sys.stdout.isatty() else ("", "")
        these, them = ("these", "they were") if holds > 1 else ("this one", "it was")
        print(
            f"{bold}Not known for {these}: the line of the checkout, its thread or "
            f"task, and since when; {them} out before.{plain} What is checked out from "
            "now on has its line."
        )
    where = target.outside(one_line(str(answer.get("directory", ""))))
    usual = where == str(sockets.runtime_directory())
    there = "" if usual else f" --dir {where}"
    print(f"see it: poolwatch ps{there}, poolwatch tui{there}")
    print(f"undo:   poolwatch attach --undo {target.pid}")


def _number(answer: dict[str, Any], key: str) -> int:
    value = answer.get(key)
    return value if type(value) is int else 0
