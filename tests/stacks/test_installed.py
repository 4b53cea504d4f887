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
from helpers import line_of, until
from serving import free_port, knock

pytestmark = [pytest.mark.slow, pytest.mark.processes]

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
def environment(
    tmp_path: Path, socket_dir: Path, postgres: Any
) -> Iterator[Environment]:
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


STARTS: dict[str, Callable[[Environment, Path], list[str]]] = {
    "script": by_script,
    "module": by_module,
    "launcher": by_file(LAUNCHER, "run.py"),
    "manage": by_file(MANAGE, "manage.py"),
    "command": by_command,
    "zip": by_zip,
    "beside its launcher": beside_its_launcher,
    "own directory": in_its_own_directory,
    "misleading name": below_a_misleading_name,
    "empty argv": by_file(f"import sys\nsys.argv.clear()\n{LAUNCHER}", "run.py"),
    "odd argv": by_file(f"import sys\nsys.argv = [None]\n{LAUNCHER}", "run.py"),
    "no argv": by_file(f"import sys\ndel sys.argv\n{LAUNCHER}", "run.py"),
}
NOT_INSTALLED = ("beside its launcher", "own directory", "misleading name")


def line(marker: str) -> int:
    source = textwrap.dedent(APPLICATION["stockroom/jobs.py"]).lstrip()
    return line_of(source, marker)


@pytest.mark.parametrize("start", STARTS)
def test_every_start(environment: Environment, tmp_path: Path, start: str) -> None:
    command = STARTS[start](environment, tmp_path)
    if start not in NOT_INSTALLED:
        write(environment.packages, APPLICATION)
    app = environment.start(*command, cwd=tmp_path)
    assert app.stdout.readline().strip() == "ready"
    process = until(lambda: settled(environment.looked_at()))

    told = {
        (each["site"]["function"], each["site"]["line"]): each["verdict"]
        for each in process["holds"]
    }
    assert told == {
        ("count", line("in a global")): "leaked",
        ("print", line("in a class")): "leaked",
        ("quietly", line("in a with")): "long",
        ("order", line("in use")): "long",
    }
    assert len(process["holds"]) == 5
    found = {finding["kind"] for finding in process["findings"]}
    assert "leaked.abandoned" in found
    assert not found & {"nested", "pool_deadlock"}
    evidence = [" ".join(each["evidence"]) for each in process["holds"]]
    assert sum("global 'KEPT' of module stockroom.jobs" in e for e in evidence) == 2
    assert sum("Report" in each for each in evidence) == 1, evidence

    text = environment.looked_at(verbose=True)
    stacks = [
        each for each in text.splitlines() if each.startswith("    checked out here")
    ]
    assert len(stacks) == 5
    shown = {each.rpartition(" in ")[2] for each in text.splitlines() if ".py:" in each}
    assert {"main", "count", "print", "order", "quietly", "<lambda>"} <= shown
    for library in ("take", "_really", "lent", "inner", "<module>"):
        assert library not in shown, text


def test_under_a_server(environment: Environment, tmp_path: Path) -> None:
    """What gunicorn calls is the application's, whatever has started gunicorn."""
    write(environment.packages, APPLICATION)
    port = free_port()
    serve = f"-m gunicorn -b 127.0.0.1:{port} --threads 4 stockroom.wsgi:application"
    environment.start(environment.python, *serve.split(), cwd=tmp_path)
    until(lambda: knock(port))
    knock(port, "/count")
    request = threading.Thread(target=knock, args=[port, "/order"], daemon=True)
    request.start()
    until(lambda: len(environment.looked_at()["holds"]) == 2)
    told = {
        (each["site"]["function"], each["site"]["line"]): each["verdict"]
        for each in until(lambda: over(environment.looked_at()))
    }
    assert told == {
        ("count", line("in a global")): "leaked",
        ("order", line("in use")): "long",
    }
    until(lambda: "now stockroom/wsgi.py:" in environment.looked_at(verbose=True))


def test_a_script_of_the_projects_own(environment: Environment, tmp_path: Path) -> None:
    """Its top level is the site of what it takes itself, and its functions are the
    user's although a library stands between them and the pool."""
    script = """
        import os, sys
        from sqlalchemy import create_engine
        import helpful, poolwatch

        engine = create_engine(os.environ["STOCKROOM"])
        poolwatch.instrument(engine, long_after=0.5)

        def work():
            global inner
            inner = helpful.take(engine)  # by a function
            print("ready", flush=True)
            sys.stdin.read()

        outer = engine.connect()  # by the top level
        work()
        """
    write(tmp_path, {"script.py": script})
    app = environment.start(environment.python, str(tmp_path / "script.py"))
    assert app.stdout.readline().strip() == "ready"
    holds = until(lambda: over(environment.looked_at()))
    assert {
        (each["site"]["function"], each["site"]["line"], each["verdict"])
        for each in holds
    } == {("work", 10, "long"), ("<module>", 14, "long")}
    findings = environment.looked_at()["findings"]
    assert "nested" in {each["kind"] for each in findings}


def test_a_with_block_at_the_top_level(
    environment: Environment, tmp_path: Path
) -> None:
    """What a launcher's own ``with`` keeps is in use, though no variable has it."""
    launcher = """
        import sys
        from stockroom import jobs

        with jobs.quietly():
            print("ready", flush=True)
            sys.stdin.read()
        """
    write(environment.packages, APPLICATION)
    write(tmp_path, {"run.py": launcher})
    app = environment.start(environment.python, str(tmp_path / "run.py"))
    assert app.stdout.readline().strip() == "ready"
    (hold,) = until(lambda: over(environment.looked_at()))
    assert (hold["verdict"], hold["site"]["function"]) == ("long", "quietly")


def over(process: Any) -> Any:
    """The holds, once each is over the threshold."""
    holds = process["holds"]
    return holds if holds and all(each["verdict"] != "ok" for each in holds) else None


def settled(process: Any) -> Any:
    """The document, once all five holds are over the threshold."""
    return process if len(process["holds"]) == 5 and over(process) else None
