"""Commands compared side by side, on a machine whose speed changes.

On a shared machine one run takes twice as long as the next: of two that follow each
other nobody can tell which is the slower one to within a few percent. Here all run
during the same seconds, in turns of a tenth of one: all others are stopped meanwhile.
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
"""How long a process may have ended before it is noticed."""
_STOPPED_FIRST = ["/bin/sh", "-c", 'kill -STOP $$; exec "$@"', "sh"]


@dataclass(slots=True)
class Run:
    """One command."""

    command: Sequence[str]
    directory: Path
    environment: Mapping[str, str]

    @property
    def log(self) -> Path:
        """What it writes."""
        return self.directory / "log.txt"


@dataclass(slots=True)
class Took:
    """In seconds."""

    wall: float = 0.0
    """In its turns."""
    cpu: float = 0.0


def in_turns(runs: Mapping[str, Run]) -> dict[str, Took]:
    """Run all to their ends. Raises CalledProcessError for one that fails."""
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
    """Stopped before it begins; all on the same processor."""
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
    """Let it have its turn."""
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
