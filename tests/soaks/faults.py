"""Faults in the application's process: the pool goes on, and so does the agent.

    python tests/soaks/faults.py [--length N] [NAME ...]

Each fault is made in a real process with an instrumented pool. Afterwards the pool must
work, nothing may have been raised, at most one line may have been logged, and the
counters must be right. Prints a table; exits with 1 if something was not so. Without
names, all of them; ``--length`` multiplies the numbers of requests, forks and the like.
"""

from __future__ import annotations

import argparse
import sys
import time

from fault_ends import ENDS
from fault_forks import FORKS
from fault_hooks import HOOKS
from fault_servers import SERVERS
from fault_sockets import SOCKETS
from faulty import Fault, Skipped

FAULTS: dict[str, Fault] = {**HOOKS, **SOCKETS, **ENDS, **FORKS, **SERVERS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(FAULTS))
    parser.add_argument("--length", type=float, default=1.0)
    options = parser.parse_args()
    unknown = set(options.names) - set(FAULTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}")
    failed = 0
    print("| fault | what was done | what was seen | ok |\n|---|---|---|---|")
    for name in options.names or FAULTS:
        began = time.monotonic()
        try:
            done, seen, fine = FAULTS[name](options.length)
            ok = "yes" if fine else "NO"
        except Skipped as why:
            done, seen, ok = "-", str(why), "skipped"
        except Exception as error:
            done, seen, ok = "-", f"{type(error).__name__}: {error}", "NO"
        failed += ok == "NO"
        took = time.monotonic() - began
        print(f"| {name} | {done} | {seen} ({took:.1f} s) | {ok} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
