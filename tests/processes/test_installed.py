"""An application that is installed: the same sites, callers and verdicts however it is
started, and the same as from its own directory.
"""

from __future__ import annotations

import json
import os
import shutil
import site
import subprocess
import sys
import textwrap
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from fix_processes import ROOT
from serving import free_port, knock, until

APPLICATION = {
    "stockroom/__init__.py": "",
    "stockroom/__main__.py": """
        import sys
        from stockroom.cli import main

        if __name__ == "__main__":
            sys.exit(main())
        """,
    "stockroom/cli.py": """
        import sys, threading
        from stockroom import jobs

        def main():
            jobs.count()
            jobs.count()
            jobs.Report().print()
            done, ordered = threading.Event(), threading.Event()
            wait = lambda: (ordered.set(), done.wait())
            threading.Thread(target=jobs.order, args=[wait], daemon=True).start()
            ordered.wait()
            with jobs.quietly():
                print("ready", flush=True)
                sys.stdin.read()
        """,
    "stockroom/jobs.py": """
        import contextlib, os
        from sqlalchemy import create_engine
        import helpful, poolwatch

        engine = create_engine(os.environ["STOCKROOM"], pool_size=9)
        poolwatch.instrument(engine, long_after=0.5)
        KEPT = []

        def count():
            KEPT.append(helpful.take(engine))  # in a global

        class Report:
            last = None

            def print(self):
                Report.last = helpful.take(engine)  # in a class

        def order(wait):
            with helpful.lent(engine):  # in use
                wait()

        @contextlib.contextmanager
        def quietly():
            connection = engine.connect()  # in a with
            yield
            connection.close()
        """,
    "stockroom/wsgi.py": """
        import time
        from stockroom import jobs

        def application(environ, start_response):
            start_response("200 OK", [])
            if environ["PATH_INFO"] == "/order":
                jobs.order(lambda: time.sleep(60))
            elif environ["PATH_INFO"] == "/count":
                jobs.count()
            return [b"done"]
        """,
}
HELPER = {
    "helpful/__init__.py": "from helpful.inner import lent, take",
    "helpful/inner.py": """
        import contextlib

        def take(engine):
            return _really(engine)

        def _really(engine):
            return engine.connect()

        @contextlib.contextmanager
        def lent(engine):
            with take(engine) as connection:
                yield connection
        """,
}
SCRIPT = """#!{python}
import sys
from stockroom.cli import main
if __name__ == '__main__':
    sys.argv[0] = sys.argv[0].removesuffix('.exe')
    sys.exit(main())
"""
LAUNCHER = "from stockroom.cli import main\nmain()\n"
MANAGE = """
def main():
    from stockroom.cli import main
    main()

if __name__ == "__main__":
    main()
"""


@dataclass
class Environment:
    """A virtual environment with the helper in it, and maybe the application."""

    home: Path
    environ: dict[str, str]
    started: list[Any] = field(default_factory=list)

    @property
    def python(self) -> str:
        return str(self.home / "bin" / "python")

    @property
    def packages(self) -> Path:
        return next((self.home / "lib").glob("python*/site-packages"))

    def start(self, *command: str, cwd: Path | None = None) -> Any:
        pipe = subprocess.PIPE
        started = subprocess.Popen(
            command, env=self.environ, cwd=cwd, stdin=pipe, stdout=pipe, text=True
        )
        self.started.append(started)
        return started

    def looked_at(self, *, verbose: bool = False) -> Any:
        command = [sys.executable, "-m", "poolwatch", "ps"]
        command.append("-v" if verbose else "--json")
        done = subprocess.run(
            command, env=self.environ, capture_output=True, text=True, check=True
        )
        return done.stdout if verbose else json.loads(done.stdout)["processes"][0]


def write(home: Path, files: dict[str, str]) -> None:
    for name, source in files.items():
        file = home / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(textwrap.dedent(source).lstrip())


@pytest.fixture
def environment(tmp_path: Path, socket_dir: Path, postgres: Any) -> Iterator[Environment]:
    home = tmp_path / "venv"
    subprocess.run(
        [sys.executable, "-m", "venv", "--without-pip", str(home)], check=True
    )
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
        "POOLWATCH_DIR": str(socket_dir),
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",
        "STOCKROOM": postgres.url(),
    }
    made = Environment(home, environ)
    (made.packages / "others.pth").write_text("\n".join(site.getsitepackages()))
    write(made.packages, HELPER)
    yield made
    for started in made.started:
        started.kill()
        started.wait()
        started.stdin.close()
        started.stdout.close()


def by_script(environment: Environment, home: Path) -> list[str]:
    script = environment.home / "bin" / "stockroom"
    script.write_text(SCRIPT.format(python=environment.python))
    script.chmod(0o755)
    return [str(script)]


def by_file(source: str, name: str) -> Callable[[Environment, Path], list[str]]:
    def start(environment: Environment, home: Path) -> list[str]:
        write(home, {name: source})
        return [environment.python, str(home / name)]

    return start


def by_module(environment: Environment, home: Path) -> list[str]:
    return [environment.python, "-m", "stockroom"]


def by_command(environment: Environment, home: Path) -> list[str]:
    return [environment.python, "-c", LAUNCHER]


def by_zip(environment: Environment, home: Path) -> list[str]:
    write(home / "zipped", {"__main__.py": LAUNCHER})
    archive = shutil.make_archive(str(home / "stockroom"), "zip", home / "zipped")
    return [environment.python, archive]


def beside_its_launcher(environment: Environment, home: Path) -> list[str]:
    """In the directory of the console scripts."""
    scripts = environment.home / "bin"
    write(scripts, {**APPLICATION, "run.py": LAUNCHER})
    return [environment.python, str(scripts / "run.py")]


def in_its_own_directory(environment: Environment, home: Path) -> list[str]:
    write(home / "site-packages of mine", APPLICATION)
    environment.environ["PYTHONPATH"] += f":{home / 'site-packages of mine'}"
    return [environment.python, "-m", "stockroom"]


def below_a_misleading_name(environment: Environment, home: Path) -> list[str]:
    write(home / "site-packages", {**APPLICATION, "run.py": LAUNCHER})
    return [environment.python, str(home / "site-packages" / "run.py")]


def without_argv(environment: Environment, home: Path) -> list[str]:
    source = f"import sys\nsys.argv.clear()\n{LAUNCHER}"
    return by_file(source, "run.py")(environment, home)


def with_odd_argv(environment: Environment, home: Path) -> list[str]:
    source = f"import sys\nsys.argv = [None]\n{LAUNCHER}"
    return by_file(source, "run.py")(environment, home)


STARTS = [
    by_script,
    by_module,
    by_file(LAUNCHER, "run.py"),
    by_file(MANAGE, "manage.py"),
    by_command,
    by_zip,
    beside_its_launcher,
    in_its_own_directory,
    below_a_misleading_name,
    without_argv,
    with_odd_argv,
]
NAMES = (
    "script module launcher manage command zip beside_its_launcher own_directory "
    "misleading_name without_argv with_odd_argv"
).split()


def line(marker: str) -> int:
    source = textwrap.dedent(APPLICATION["stockroom/jobs.py"]).lstrip()
    (found,) = [n for n, text in enumerate(source.splitlines(), 1) if marker in text]
    return found


@pytest.mark.parametrize("start", STARTS, ids=NAMES)
def test_every_start(environment: Environment, tmp_path: Path, start: Any) -> None:
    command = start(environment, tmp_path)
    if start not in (beside_its_launcher, in_its_own_directory, below_a_misleading_name):
        write(environment.packages, APPLICATION)
    app = environment.start(*command, cwd=tmp_path)
    assert app.stdout.readline().strip() == "ready"
    process = until(lambda: settled(environment.looked_at()))

    told = {
        (each["site"]["function"], each["site"]["line"]): each["verdict"]
        for each in process["holds"]
    }
    assert told == {
        ("count", line("# in a global")): "leaked",
        ("print", line("# in a class")): "leaked",
        ("quietly", line("# in a with")): "long",
        ("order", line("# in use")): "long",
    }
    assert len(process["holds"]) == 5
    found = {finding["kind"] for finding in process["findings"]}
    assert "leaked.abandoned" in found
    assert not found & {"nested", "pool_deadlock"}
    evidence = [" ".join(each["evidence"]) for each in process["holds"]]
    assert sum("global 'KEPT' of module stockroom.jobs" in e for e in evidence) == 2
    assert sum("Report" in each for each in evidence) == 1, evidence

    text = environment.looked_at(verbose=True)
    shown = [each.split("taken here")[1].strip() for each in text.splitlines()
             if "taken here" in each]  # fmt: skip
    assert len(shown) == 5
    assert "in main" in text
    for library in ("helpful", "<module>", "_connection_for_bind", "contextlib"):
        assert library not in "\n".join(stacks(text)), text


def settled(process: Any) -> Any:
    """The document, once every hold is over the threshold and was searched for."""
    over = all(hold["verdict"] != "ok" for hold in process["holds"])
    return process if over and len(process["holds"]) == 5 else None


def stacks(text: str) -> list[str]:
    """The lines of stacks."""
    return [each for each in text.splitlines() if " in " in each[16:] and ".py:" in each]
