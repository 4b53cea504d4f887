"""Compares commands side by side, on a machine whose speed changes.

On a shared machine one run may take twice as long as the next, so consecutive runs
cannot be compared to within a few percent. Here all commands run during the same
seconds, in turns of a tenth of a second; the others are stopped meanwhile.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

TURN_S = 0.1
_LOOK_S = 0.002
"""Interval in seconds at which the end of a process is checked."""
_STOPPED_FIRST = ["/bin/sh", "-c", 'kill -STOP $$; exec "$@"', "sh"]


@dataclass(slots=True)
class Run:
    """One command."""

    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str]

    @property
    def log(self) -> Path:
        """Its output."""
        return self.directory / "log.txt"


@dataclass(slots=True)
class Took:
    """Times of one run, in seconds."""

    wall: float = 0.0
    """Only its own turns."""
    cpu: float = 0.0


def in_turns(runs: Mapping[str, Run]) -> dict[str, Took]:
    """Run all commands to their end. Raises CalledProcessError if one fails."""
    took = {name: Took() for name in runs}
    left: dict[str, subprocess.Popen[bytes]] = {}
    try:
        for name, run in runs.items():
            left[name] = _started(run)
        while left:
            for name in random.sample(list(left), len(left)):
                if _has_ended(left[name], took[name]):
                    process = left.pop(name)
                    if process.returncode:
                        raise subprocess.CalledProcessError(
                            process.returncode,
                            list(runs[name].command),
                            runs[name].log.read_bytes(),
                        )
    finally:
        for process in left.values():
            process.kill()
            process.wait()
    return took


def _started(run: Run) -> subprocess.Popen[bytes]:
    """Start a command, stopped before it begins; all on the same processor."""
    with run.log.open("wb") as output:
        process = subprocess.Popen(
            [*_STOPPED_FIRST, *run.command],
            cwd=run.directory,
            env=dict(run.environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
    os.waitpid(process.pid, os.WUNTRACED)
    return process


def _has_ended(process: subprocess.Popen[bytes], took: Took) -> bool:
    """Give a process one turn; returns whether it has ended."""
    began = time.perf_counter()
    os.kill(process.pid, signal.SIGCONT)
    ended = 0
    while not ended and time.perf_counter() - began < TURN_S:
        time.sleep(_LOOK_S)
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
    if not ended:
        os.kill(process.pid, signal.SIGSTOP)
        _, status, usage = os.wait4(process.pid, os.WUNTRACED)
        ended = not os.WIFSTOPPED(status)
    took.wall += time.perf_counter() - began
    if ended:
        process.returncode = os.waitstatus_to_exitcode(status)
        took.cpu = usage.ru_utime + usage.ru_stime
    return bool(ended)
