"""Has a process run a script, by ``sys.remote_exec`` of its own interpreter.

Another minor version refuses, and so does another build. In another root (a container,
a chroot) the interpreter is started inside of it. An interpreter that others can have
changed runs as the user of the process, with its capabilities. In another pid namespace
it may trace the other processes there, too.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

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
_ENTER = """\
import ctypes, os, struct, sys
(pid, uid, gid, wanted), command = map(int, sys.argv[1:5]), sys.argv[5:]
libc = ctypes.CDLL(None, use_errno=True)
KEEPCAPS, BOUNDING_DROP, AMBIENT, RAISE, VERSION = 8, 24, 47, 2, 0x20080522

def check(failed):
    if failed:
        sys.exit("cannot enter it: " + os.strerror(ctypes.get_errno()))

with open("/proc/self/status") as status:
    own = next(line for line in status if line.startswith("CapPrm:"))
kept = wanted & int(own.split()[1], 16)
names = ("root", "ns/mnt", "ns/pid")
root, *spaces = [os.open(f"/proc/{pid}/{name}", os.O_RDONLY) for name in names]
for each in spaces:
    check(libc.setns(each, 0))
os.fchdir(root)
os.chroot(".")
child = os.fork()  # only a child is in the pid namespace
if child:
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
for number in range(64):
    if not kept >> number & 1:
        libc.prctl(BOUNDING_DROP, number, 0, 0, 0)
check(libc.prctl(KEEPCAPS, 1, 0, 0, 0))
os.setgroups([])
os.setgid(gid)
os.setuid(uid)
halves = [kept & 0xFFFFFFFF] * 3 + [kept >> 32] * 3
check(libc.capset(struct.pack("Ii", VERSION, 0), struct.pack("6I", *halves)))
for number in range(64):
    if kept >> number & 1:
        check(libc.prctl(AMBIENT, RAISE, number, 0, 0))
try:
    os.execvp(command[0], command)
except OSError as error:
    sys.exit(f"cannot run {command[0]} there: {error.strerror}")
"""
"""Runs a command in the root and the namespaces of a process, as its user.

Of root's capabilities only ``wanted`` are kept, a set of bits.
"""
_SYS_PTRACE = 1 << 19
_PATIENCE_S = 20.0
_STOP_S = 1.0


def run_in(target: Target, script: str) -> None:
    """Have the main thread of a process run a script, as soon as it runs Python."""
    is_elsewhere = target.has_other_root or target.has_other_pids
    if is_elsewhere and os.geteuid() != 0:
        raise ForbiddenError(
            f"process {target.pid} is in a container or chroot: attach as root, or "
            "from inside of it"
        )
    python, is_trusted = target.interpreter()
    command = [python, "-I", "-S", "-c", _CALL, str(target.inner_pid), script]
    if is_elsewhere or not is_trusted:
        wanted = target.capabilities | (_SYS_PTRACE if target.has_other_pids else 0)
        user = (target.pid, target.uid, target.gid, wanted)
        command = [sys.executable, "-I", "-S", "-c", _ENTER, *map(str, user), *command]
    try:
        done = subprocess.run(  # noqa: S603 - see interpreter()
            command,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            check=False,
            cwd="/",
            encoding="utf-8",
            errors="replace",
            env={"PATH": os.environ.get("PATH", os.defpath)},
            start_new_session=True,
            timeout=_PATIENCE_S,
        )
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
        advice = "attach as root"
        if os.geteuid() == 0:
            advice = f"put {target.python_name} on root's PATH, or set it to 0"
        return ForbiddenError(
            f"the kernel does not let this user write into process {target.pid} "
            f"(kernel.yama.ptrace_scope): {advice}"
        )
    if error == "ProcessLookupError":
        return NoProcessError(f"process {target.pid} has ended")
    return UsageError(f"cannot attach to process {target.pid}: {one_line(last[0])}")


def wake(target: Target) -> None:
    """Stop a process and continue it: that ends a wait for events."""
    peer = Peer(target.pid, target.started)
    if liveness.state(peer) != "running":
        return
    with suppress(ProcessLookupError):  # it may end at any time
        _stop_and_continue(target.pid, peer)


def _stop_and_continue(pid: int, peer: Peer) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        until = time.monotonic() + _STOP_S
        while liveness.state(peer) == "running" and time.monotonic() < until:
            time.sleep(0.001)
    finally:
        os.kill(pid, signal.SIGCONT)
