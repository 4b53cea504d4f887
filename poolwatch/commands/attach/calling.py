"""Has a process run a script, by ``sys.remote_exec`` of its own interpreter.

Another minor version refuses, and so does another build. In another root (a container,
a chroot) the interpreter is started inside of it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time

from poolwatch.commands.attach.target import Target
from poolwatch.errors import (
    ForbiddenError,
    NoProcessError,
    PoolwatchError,
    UsageError,
)
from poolwatch.protocol import liveness
from poolwatch.protocol.liveness import Peer
from poolwatch.text.format import one_line

_CALL = """\
import sys
try:
    sys.remote_exec(int(sys.argv[1]), sys.argv[2])
except BaseException as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""
_PATIENCE_S = 20.0
_STOP_S = 1.0


def run_in(target: Target, script: str) -> None:
    """Have the main thread of a process run a script, as soon as it runs Python."""
    python = [target.interpreter(), "-I", "-S", "-c", _CALL, str(target.inner_pid)]
    enter = []
    if target.has_other_root or target.has_other_pids:
        if os.geteuid() != 0:
            raise ForbiddenError(
                f"process {target.pid} is in a container or chroot: attach as root, or "
                "from inside of it"
            )
        enter = ["nsenter", f"--target={target.pid}", "--mount", "--pid", "--root"]
    try:
        done = subprocess.run(  # noqa: S603 - it is the interpreter of the process
            [*enter, *python, script],
            capture_output=True,
            check=False,
            cwd="/",
            encoding="utf-8",
            errors="replace",
            env={"PATH": os.environ.get("PATH", os.defpath)},
            timeout=_PATIENCE_S,
        )
    except FileNotFoundError as error:
        raise UsageError(f"attach needs {error.filename} on the PATH") from None
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UsageError(f"cannot run its interpreter: {error}") from None
    if done.returncode != 0:
        raise _refusal(target, done.stderr)


def _refusal(target: Target, said: str) -> PoolwatchError:
    """The error for what the interpreter said."""
    last = said.strip().splitlines()[-1:] or [""]
    error, _, why = last[0].partition(": ")
    if "not enabled" in why or "disabled" in why or error == "AttributeError":
        return UsageError(
            f"remote debugging is disabled in process {target.pid} "
            "(PYTHON_DISABLE_REMOTE_DEBUG, -X disable-remote-debug, or its build)"
        )
    if error == "PermissionError":
        return ForbiddenError(
            f"the kernel does not let this user write into process {target.pid} "
            "(kernel.yama.ptrace_scope): attach as root"
        )
    if error == "ProcessLookupError":
        return NoProcessError(f"process {target.pid} has ended")
    return UsageError(f"cannot attach to process {target.pid}: {one_line(last[0])}")


def wake(target: Target) -> None:
    """Stop a process and continue it: that ends a wait for events."""
    peer = Peer(target.pid, target.started)
    if liveness.state(peer) != "running":
        return
    os.kill(target.pid, signal.SIGSTOP)
    try:
        until = time.monotonic() + _STOP_S
        while liveness.state(peer) == "running" and time.monotonic() < until:
            time.sleep(0.001)
    finally:
        os.kill(target.pid, signal.SIGCONT)
