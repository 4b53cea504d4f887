"""The whole cost contract, and how it grows, on this Python.

    python tests/benchmarks/contract.py [long | PATH OF PG_ACTIVITY]

All is measured side by side in one run. ``long`` also measures the pytest plugin, for
25 minutes; with pg_activity's path the dashboard is run beside it.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

HERE = Path(__file__).parent
PACKAGES = ("SQLAlchemy", "psycopg2-binary", "psycopg", "psycopg-pool", "asyncpg")


def run(*command: str) -> None:
    """Run a part; of what pytest prints, only the figures are shown."""
    done = subprocess.run(
        [sys.executable, *command],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
        cwd=HERE.parents[1],
    )
    _, found, figures = done.stdout.partition(" cost contract ")
    print((figures.partition("\n\n")[0] if found else done.stdout).lstrip("=\n"))
    if done.returncode:
        sys.exit(f"{' '.join(command)} failed\n{done.stdout[-2000:]}")


def benchmark(*names: str) -> None:
    paths = [f"tests/benchmarks/{name}" for name in names]
    run("-m", "pytest", "-q", "-p", "no:randomly", "--benchmark-only", *paths)


def installed(package: str) -> str:
    try:
        return f"{package} {version(package)}"
    except PackageNotFoundError:
        return f"no {package}"


def main(more: str) -> None:
    print(time.strftime("%Y-%m-%d"), f"Python {platform.python_version()}", sep=", ")
    print(f"{os.cpu_count()} processors, load {os.getloadavg()[0]:.1f}")
    print(", ".join(map(installed, PACKAGES)), end="\n\n", flush=True)
    benchmark("test_cost.py", "test_growth.py")
    run("tests/benchmarks/sidecar_cost.py", "30", "--no-metrics")
    if more == "long":
        benchmark("test_plugin_cost.py")
    elif more:
        run("tests/benchmarks/dashboard_beside.py", more)


if __name__ == "__main__":
    main(*sys.argv[1:] or [""])
