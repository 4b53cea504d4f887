"""What the sidecar costs: itself, and the application that it looks at.

    python tests/benchmarks/sidecar_cost.py [SECONDS] [SIDECAR OPTION ...]

Five processes with ten pools and a hundred holds, in all and then each, on a driver
that does nothing. A sixth one serves requests over and over again, in turns with and
without a sidecar.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from statistics import median

TESTS = Path(__file__).parent.parent
PROCESSES = 5
SIZES = {"in all": (2, 20), "each": (10, 100)}
"""Pools and holds of each process."""
ROUND_S = 5.0

HOLDER = """
import sys, threading
from sqlalchemy.pool import QueuePool
import poolwatch
from helpers import Driver

POOLS, HOLDS = int(sys.argv[1]), int(sys.argv[2])
pools = [QueuePool(Driver, pool_size=20, max_overflow=0) for _ in range(POOLS)]
for number, pool in enumerate(pools):
    poolwatch.instrument(pool, name=f"pool{number}", long_after=3600)

done = threading.Event()

def request(number, depth):
    if depth:
        return request(number, depth - 1)
    with poolwatch.label(endpoint=f"/{number % 7}"):
        held = pools[number % POOLS].connect()
    taken.release()
    done.wait()
    held.close()

taken = threading.Semaphore(0)
threading.stack_size(256 * 1024)
for number in range(HOLDS):
    threading.Thread(target=request, args=(number, 25), daemon=True).start()
for number in range(HOLDS):
    taken.acquire()
print("ready", flush=True)
sys.stdin.read()
"""

SERVICE = """
import sys, time
from sqlalchemy.pool import QueuePool
import poolwatch
from helpers import Driver

pool = QueuePool(Driver, pool_size=5)
poolwatch.instrument(pool, name="service")
print("ready", flush=True)
for line in sys.stdin:
    ends, times = time.perf_counter() + float(line), []
    clock = time.perf_counter
    while clock() < ends:
        began = clock()
        for _ in range(100):  # a request: a hundred checkouts
            pool.connect().close()
        times.append(clock() - began)
    times.sort()
    print(times[len(times) // 2] / 100, times[int(0.99 * len(times))], flush=True)
"""


@contextmanager
def program(
    command: Sequence[str], environ: dict[str, str]
) -> Iterator[subprocess.Popen[str]]:
    """A program that has printed its first line."""
    started = subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environ,
    )
    try:
        assert started.stdout is not None
        print("#", started.stdout.readline().strip())
        yield started
    finally:
        started.send_signal(signal.SIGTERM)
        started.communicate()


def cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def peak_mib(pid: int) -> float:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) / 1024
    raise AssertionError


def main(seconds: float, options: Sequence[str]) -> None:
    with ExitStack() as stack:
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="pw", dir="/tmp"))
        environ = {
            **os.environ,
            "POOLWATCH_DIR": f"{home}/d",
            "XDG_STATE_HOME": home,
            "PYTHONPATH": f"{TESTS.parent}:{TESTS}",
        }

        def start(*command: str) -> subprocess.Popen[str]:
            return stack.enter_context(program([sys.executable, *command], environ))

        sidecar = ["-m", "poolwatch", "sidecar", *options]
        for name, (pools, holds) in SIZES.items():
            command = ["-c", HOLDER, str(pools), str(holds)]
            holders = [start(*command) for _ in range(PROCESSES)]
            watching = start(*sidecar)
            time.sleep(5)  # the first looks search for reference paths
            pids = [watching.pid, *(each.pid for each in holders)]
            before, began = [cpu_s(pid) for pid in pids], time.monotonic()
            time.sleep(seconds)
            took = time.monotonic() - began
            used = [(cpu_s(p) - b) / took for p, b in zip(pids, before, strict=True)]
            print(
                f"{PROCESSES} processes with 10 pools and 100 holds {name}: "
                f"sidecar {used[0]:.2%} of a core, {peak_mib(pids[0]):.0f} MiB; "
                f"applications {sum(used[1:]) / PROCESSES:.2%} of a core each"
            )
            watching.send_signal(signal.SIGTERM)
            watching.wait()
            for each in holders:
                each.kill()
                each.wait()
        service = start("-c", SERVICE)
        rounds = max(3, int(seconds / ROUND_S / 2))
        found: dict[bool, list[list[float]]] = {False: [], True: []}
        for _ in range(rounds):  # in turns: what else runs here hits both alike
            found[False].append(serve(service))
            with program([sys.executable, *sidecar], environ):
                found[True].append(serve(service))
        print(f"one process that does nothing else, median of {rounds} rounds:")
        for with_sidecar, rows in found.items():
            cycle, p99 = (median(column) for column in zip(*rows, strict=True))
            print(
                f"  {'with' if with_sidecar else 'without'} a sidecar: "
                f"checkout and return {cycle * 1e6:.2f} us, "
                f"p99 of a request of 100 {p99 * 1e3:.2f} ms"
            )


def serve(service: subprocess.Popen[str]) -> list[float]:
    """Seconds of one checkout and return, and the p99 of a request."""
    assert service.stdin is not None
    assert service.stdout is not None
    service.stdin.write(f"{ROUND_S}\n")
    service.stdin.flush()
    return [float(each) for each in service.stdout.readline().split()]


if __name__ == "__main__":
    main(float(sys.argv[1]) if sys.argv[1:] else 60.0, sys.argv[2:])
