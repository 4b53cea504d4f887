"""An installed application (``installed/``), started by its console script, by
``python -m``, by a two-line launcher, and from its own directory.

Ten runs of honest work by the console script: nothing is called leaked, nested or
deadlocked. Then one leak, kept in a global, in each of the four starts: it is found at
its line, nothing else is, and the sites are the same.

    python tests/applications/installed_rig.py --venv /tmp/shopd --make-venv

Another checkout of poolwatch: ``--poolwatch PATH``. Exits with 1 if what is expected
is not said, or something else is.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

from rig import LEAKS, Looks, Rig, options, report, rig, until

HERE = Path(__file__).parent / "installed"
FALSE = {*LEAKS, "nested", "pool_deadlock", "exhausted", "undersized"}
WATCHED_S = 6.0
LOOKS = 10


def watched(made: Rig, *command: object, **environ: str) -> Looks:
    """What is said of one run."""
    made.looks = Looks()
    made.start(*command, **environ)
    made.until_said("ready")
    with made.watching():
        time.sleep(WATCHED_S)
        until(lambda: len(made.looks.documents) >= LOOKS)
    made.stop()
    return made.looks


def accused(looks: Looks) -> list[str]:
    said = [f"{f['kind']}: {f['text']}" for _, _, f in looks.findings(*FALSE)]
    return sorted({*said, *looks.leaks()})


def sites(looks: Looks) -> set[tuple[str, int, str]]:
    """File within the application, line and function of every call site."""
    rows = [row for _, process in looks.processes() for row in process["sites"]]
    return {
        (Path(row["site"]["file"]).name, row["site"]["line"], row["site"]["function"])
        for row in rows
    }


def of_a_leak(looks: Looks) -> str | None:
    """What is wrong with what is said of the leak."""
    line = next(
        number
        for number, text in enumerate((HERE / "shopd" / "jobs.py").open(), 1)
        if text.endswith("# leak\n")
    )
    found = [f for _, _, f in looks.findings(*FALSE)]
    kinds = {f["kind"] for f in found}
    places = {(Path(s["file"]).name, s["line"]) for f in found for s in f["sites"]}
    if kinds == {"leaked.abandoned"} and places == {("jobs.py", line)}:
        return None
    return f"{sorted(kinds)} at {sorted(places)}"


def starts(made: Rig) -> dict[str, tuple[list[object], dict[str, str]]]:
    launcher = made.home / "start.py"
    launcher.write_text("from shopd.main import main\nmain()\n")
    path = f"{HERE}:{made.environ['PYTHONPATH']}"
    return {
        "console script": (["shopd"], {}),
        "python -m": (["python", "-m", "shopd"], {}),
        "launcher": (["python", launcher], {}),
        "own directory": (["python", "-m", "shopd"], {"PYTHONPATH": path}),
    }


def main() -> int:
    parser = options(__doc__)
    parser.add_argument("--runs", type=int, default=10)
    chosen = parser.parse_args()
    checks: dict[str, str | None] = {}
    with rig(chosen, str(HERE)) as made:
        url: Any = made.postgres.url()
        for run in range(1, chosen.runs + 1):
            looks = watched(made, "shopd", url)
            checks[f"honest, run {run}"] = "; ".join(accused(looks)) or None
        found = {
            how: watched(made, *command, url, "leak", **environ)
            for how, (command, environ) in starts(made).items()
        }
        for how, looks in found.items():
            checks[f"a leak, {how}"] = of_a_leak(looks)
            other = sites(looks) ^ sites(found["own directory"])
            checks[f"the same sites, {how}"] = str(sorted(other)) if other else None
        return report("installed application", found["console script"], checks)


if __name__ == "__main__":
    sys.exit(main())
