"""MLflow's tracking server on PostgreSQL, under concurrent ``log_batch``.

``log_batch`` holds one session and takes a second for the parameters, for the metrics
and for the tags. One call alone is nested; forty at once stop each other.

    python tests/applications/mlflow_rig.py --venv /tmp/mlflow --make-venv

Another checkout of poolwatch: ``--poolwatch PATH``. Exits with 1 if what is expected
is not said, or something else is.
"""

from __future__ import annotations

import ast
import json
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from rig import LEAKS, Rig, options, report, rig, together, until, version
from serving import free_port

CALLS = 40
INNER = ("_log_params", "_log_metrics_once", "_set_tags")
TRUE = {"nested", "pool_deadlock", "exhausted", "undersized", "idle_in_transaction"}


class Tracking:
    """The REST interface of a tracking server."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        name = {"name": f"rig {time.time_ns()}"}
        self.experiment = self.post("experiments/create", name)["experiment_id"]

    def post(self, path: str, body: dict[str, Any]) -> Any:
        request = urllib.request.Request(
            f"{self.url}/api/2.0/mlflow/{path}",
            json.dumps(body).encode(),
            {"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=300) as answer:
            return json.load(answer)

    def run(self) -> str:
        body = {"experiment_id": self.experiment, "start_time": 1}
        return str(self.post("runs/create", body)["run"]["info"]["run_id"])

    def log_batch(self, run: str, step: int) -> None:
        metrics = [
            {"key": f"m{n}", "value": n, "timestamp": 1, "step": step} for n in range(5)
        ]
        params = [{"key": f"p{step}-{n}", "value": str(n)} for n in range(5)]
        tags = [{"key": f"t{n}", "value": str(step)} for n in range(2)]
        body = {"run_id": run, "metrics": metrics, "params": params, "tags": tags}
        self.post("runs/log-batch", body)


def jammed_for(process: dict[str, Any]) -> Iterator[tuple[str, float]]:
    """Pools whose every connection is held by a call that waits for another one, and
    the seconds since the last of them began to wait.

    Its threads all have one name: a wait of a holder is known by its stack.
    """
    for pool in process["pools"]:
        of_pool = [wait for wait in process["waits"] if wait["pool"] == pool["id"]]
        waited = [
            wait["waited_s"]
            for wait in of_pool
            if {frame["function"] for frame in wait["stack"]} & set(INNER)
        ]
        if waited and len(waited) == pool["size"] + pool["max_overflow"]:
            yield pool["id"], min(waited)


def deadlocks(made: Rig) -> tuple[str, str | None]:
    """When it was first said, and what is wrong with that."""
    met, first, wrong = 0, None, None
    for _, process in made.looks.processes():
        kinds = {(found["kind"], found["pool"]) for found in process["findings"]}
        said = {pool for kind, pool in kinds if kind == "pool_deadlock"}
        jams = dict(jammed_for(process))
        met += bool(jams)
        for pool, age in jams.items():
            if pool in said:
                first = first or f"{age:.2f} s old when first said"
            elif age > 1:
                wrong = wrong or f"not said when it was {age:.1f} s old"
            if age > 1 and ("undersized", pool) in kinds:
                wrong = wrong or f"called undersized when it was {age:.1f} s old"
        if said - set(jams):
            wrong = wrong or "said of a pool whose holders do not all wait"
    return f"{met} looks, {first}", wrong if met else "there was none"


@cache
def calls_of_get_run(venv: Path) -> dict[str, int]:
    """For each method of the store, the line where it has its session look up the run:
    there the session takes its connection."""
    (store,) = venv.glob(
        "lib/*/site-packages/mlflow/store/tracking/sqlalchemy_store.py"
    )
    return {
        method.name: call.lineno
        for method in ast.walk(ast.parse(store.read_text("utf-8")))
        if isinstance(method, ast.FunctionDef)
        for call in ast.walk(method)
        if isinstance(call, ast.Attribute) and call.attr == "_get_run"
    }


def both_lines(found: dict[str, Any], venv: Path) -> bool:
    """Whether a finding names the call in ``log_batch`` and the one inside it."""
    calls = calls_of_get_run(venv)
    said = json.dumps([found["text"], found["proof"], found["sites"]])
    named = [name for name in ("log_batch", *INNER) if str(calls[name]) in said]
    return named[:1] == ["log_batch"] and len(named) > 1


def load(made: Rig, port: int) -> None:
    """One call after the other, and then many at once."""
    tracking = Tracking(port)
    runs = [tracking.run() for _ in range(CALLS)]
    for step in range(5):
        tracking.log_batch(runs[0], step)
    made.look()
    with made.watching():
        for step in range(5, 8):
            began = time.monotonic()
            raised = together(CALLS, lambda n, s=step: tracking.log_batch(runs[n], s))
            failed = sum(error is not None for error in raised)
            took = time.monotonic() - began
            print(f"{failed} of {CALLS} concurrent calls failed, in {took:.0f} s")
        until(lambda: not any(p["holds"] for p in made.look()["processes"]), 60)


def checks(made: Rig, venv: Path) -> dict[str, str | None]:
    """What is expected, and what is wrong with it."""
    looks = made.looks
    when, wrong = deadlocks(made)
    nested = [f for at, _, f in looks.findings("nested") if at == looks.documents[0][0]]
    dead = [found for _, _, found in looks.findings("pool_deadlock")]
    return {
        "nested is said before any deadlock, with both lines": None
        if any(both_lines(found, venv) for found in nested)
        else f"{[found['text'] for found in nested]}",
        f"the deadlock is said within a second ({when})": wrong,
        "... with both lines": None
        if dead and all(both_lines(found, venv) for found in dead)
        else f"{sorted({found['text'] for found in dead})}",
        "no leak": "; ".join(looks.leaks() + made.leaks_logged()) or None,
        "nothing else": ", ".join(set(looks.kinds()) - TRUE - set(LEAKS)) or None,
    }


def main() -> int:
    chosen = options(__doc__).parse_args()
    port = free_port()
    with rig(chosen, "mlflow", "psycopg2-binary") as made:
        made.start(
            *("mlflow", "server", "--port", port, "--workers", "1"),
            *("--backend-store-uri", made.postgres.url()),
            *("--artifacts-destination", made.home / "artifacts"),
            MLFLOW_SQLALCHEMYSTORE_POOL_SIZE="5",
            MLFLOW_SQLALCHEMYSTORE_MAX_OVERFLOW="10",
        )
        made.until_served(f"http://127.0.0.1:{port}/health")
        load(made, port)
        name = version(chosen, "mlflow")
        return report(name, made.looks, checks(made, chosen.venv))


if __name__ == "__main__":
    sys.exit(main())
