"""The benchmark's report: as a table, and as the document of ``bench --json``."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from poolwatch.commands.bench.measuring import Row

SCHEMA = 1


def _machine() -> dict[str, Any]:
    """Return the facts about this machine."""
    return {
        "system": f"{platform.system()} {platform.release()}",
        "processor": _processor(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
    }


def document(rows: Sequence[Row], server: dict[str, Any]) -> dict[str, Any]:
    """Return the document of ``bench --json``."""
    return {
        "schema": SCHEMA,
        "machine": _machine(),
        "server": server,
        "rows": [asdict(row) for row in rows],
    }


def table(rows: Sequence[Row], server: dict[str, Any]) -> str:
    """Return the report as text."""
    machine = _machine()
    where = f"{server['version']}, {server['where']}"
    on = f"{machine['processor']}, {machine['cores']} cores, Python {machine['python']}"
    lines = [f"{on}; {where}"]
    for workload in dict.fromkeys(row.workload for row in rows):
        of_workload = [row for row in rows if row.workload == workload]
        lines += ["", f"{workload} ({of_workload[0].operations:,} operations)", _HEAD]
        lines += [_line(row) for row in of_workload]
    return "\n".join([*lines, "", *_conclusions(rows, server)])


_HEAD = f"  {'':40}{'total':>10}{'each':>12}{'ratio':>8}"


def _line(row: Row) -> str:
    return (
        f"  {row.way:40}{row.seconds:>8.2f} s{row.per_operation_ms:>9.3f} ms"
        f"{row.ratio:>8.2f}"
    )


def _conclusions(rows: Sequence[Row], server: dict[str, Any]) -> Iterable[str]:
    new, pooled = rows[0], next(row for row in rows if row.ratio == 1)
    saved = new.per_operation_ms - pooled.per_operation_ms
    yield (
        f"A pooled connection saves {saved:.1f} ms per operation here. The ratio is "
        "the time divided by that of SQLAlchemy's pool."
    )
    if not server["latency_ms"]:
        yield (
            "No network delay was added. The 50 to "
            "200 ms that a new connection is said to cost come from the network "
            "(five and more round trips with TLS and SCRAM) and from TLS itself: try "
            "--latency 20."
        )
    else:
        yield (
            f"With {server['latency_ms']:g} ms added to each message by a local proxy, "
            "both ways: a round trip takes twice that."
        )


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:  # noqa: PTH123 - no file
            for line in file:
                if line.startswith("model name"):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
