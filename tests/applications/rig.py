"""What the rigs share: an environment, a server, a watched program, and its looks.

A rig starts a real application from the package index by its own console script, under
``poolwatch run``, on a PostgreSQL of its own, and checks what poolwatch says of it.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS)]

from fix_postgres import drop_postgres, make_postgres  # noqa: E402 - a script's path
from helpers import until  # noqa: E402

LEAKS = ("leaked.collected", "leaked.orphaned", "leaked.abandoned")
LOOK_EVERY_S = 0.2


def options(description: str | None) -> argparse.ArgumentParser:
    """The command line that all rigs have in common."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--venv", type=Path, required=True, help="its environment")
    parser.add_argument("--make-venv", action="store_true", help="make it if missing")
    parser.add_argument(
        "--poolwatch", type=Path, default=TESTS.parent, help="a checkout of poolwatch"
    )
    parser.add_argument(
        "--save", type=Path, help="write all looks there, as JSON lines"
    )
    return parser


@dataclass
class Looks:
    """What ``poolwatch ps --json`` said, look by look."""

    documents: list[tuple[float, Any]] = field(default_factory=list)

    def processes(self) -> Iterator[tuple[float, Any]]:
        for at, document in self.documents:
            for process in document["processes"]:
                yield at, process

    def findings(self, *kinds: str) -> Iterator[tuple[float, Any, Any]]:
        for at, process in self.processes():
            for found in process["findings"]:
                if not kinds or found["kind"] in kinds:
                    yield at, process, found

    def kinds(self) -> collections.Counter[str]:
        """How many looks said so."""
        said = {(at, found["kind"]) for at, _, found in self.findings()}
        return collections.Counter(kind for _, kind in said)

    def leaks(self) -> list[str]:
        """All that is called leaked: by a finding, a verdict or a counter."""
        said = [found["text"] for _, _, found in self.findings(*LEAKS)]
        for _, process in self.processes():
            said += [
                f"verdict: {hold['evidence']}"
                for hold in process["holds"]
                if hold["verdict"] == "leaked"
            ]
            said += [
                f"counter: {pool['counters'][name]} {name}"
                for pool in process["pools"]
                for name in ("leaked", "collected")
                if pool["counters"][name]
            ]
        return sorted(set(said))


class Rig:
    """One application, its server and its viewer."""

    def __init__(self, venv: Path, poolwatch: Path, home: Path) -> None:
        self.scripts = venv.absolute() / "bin"
        self.home = home
        self.postgres = make_postgres()
        self.looks = Looks()
        self._program: subprocess.Popen[bytes] | None = None
        (home / "sockets").mkdir(mode=0o700)
        self.environ = {
            **{k: v for k, v in os.environ.items() if not k.startswith("PYTEST")},
            "POOLWATCH_DIR": str(home / "sockets"),
            "PYTHONPATH": str(poolwatch.absolute()),
        }

    def start(self, *command: object, **environ: str) -> None:
        """Start a console script of the environment under ``poolwatch run``."""
        script, *arguments = map(str, command)
        run = [sys.executable, "-m", "poolwatch", "run", "--"]
        with (self.home / "log").open("wb") as log:
            self._program = subprocess.Popen(
                [*run, str(self.scripts / script), *arguments],
                cwd=self.home,
                env={**self.environ, **environ},
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return (self.home / "log").read_text("utf-8", "replace")

    def leaks_logged(self) -> list[str]:
        """What the application's log says of leaks."""
        return re.findall(r".*(?:leak on pool|leaked at).*", self.log)

    def runs(self) -> bool:
        assert self._program is not None
        assert self._program.poll() is None, "it ended early"
        return True

    def until_said(self, words: str) -> None:
        """Return when this is in the log."""
        until(lambda: self.runs() and words in self.log)

    def until_served(self, url: str, seconds: float = 180.0) -> None:
        """Return when it answers."""

        def answers() -> bool:
            with suppress(OSError), urllib.request.urlopen(url, timeout=10):
                return True
            return False

        until(lambda: self.runs() and answers(), seconds)

    def look(self) -> Any:
        """Take one look and keep it."""
        done = subprocess.run(
            [sys.executable, "-m", "poolwatch", "ps", "--json"],
            cwd=self.home,
            env=self.environ,
            capture_output=True,
            check=False,
            text=True,
        )
        assert done.returncode in (0, 3), done.stderr
        document = json.loads(done.stdout) if done.stdout else {"processes": []}
        self.looks.documents.append((time.monotonic(), document))
        return document

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Look again and again meanwhile."""
        enough = threading.Event()

        def watch() -> None:
            while not enough.wait(LOOK_EVERY_S):
                self.look()

        watcher = threading.Thread(target=watch)
        watcher.start()
        try:
            yield
        finally:
            enough.set()
            watcher.join()

    def stop(self) -> None:
        """End the program and what it has started."""
        if self._program is not None:
            with suppress(ProcessLookupError):
                os.killpg(self._program.pid, signal.SIGKILL)
            self._program.communicate()
            self._program = None

    def close(self) -> None:
        self.stop()
        drop_postgres(self.postgres)


@contextmanager
def rig(chosen: argparse.Namespace, *packages: str) -> Iterator[Rig]:
    """A rig in a directory of its own, with these packages in its environment."""
    if chosen.make_venv and not (chosen.venv / "bin" / "python").exists():
        subprocess.run([sys.executable, "-m", "venv", chosen.venv], check=True)
        pip = [chosen.venv / "bin" / "python", "-m", "pip", "install", "-q"]
        subprocess.run([*pip, *packages], check=True)
    with ExitStack() as stack:
        # short: the path of a Unix socket has room for 107 bytes
        home = stack.enter_context(tempfile.TemporaryDirectory(prefix="pw", dir="/tmp"))
        made = Rig(chosen.venv, chosen.poolwatch, Path(home))
        stack.callback(made.close)
        try:
            yield made
        except Exception:
            print(made.log, file=sys.stderr)
            raise
        finally:
            if chosen.save:
                lines = [json.dumps(document) for _, document in made.looks.documents]
                chosen.save.write_text("\n".join(lines))


def report(title: str, looks: Looks, checks: dict[str, str | None]) -> int:
    """Print what was found and what was expected; returns the exit code."""
    print(f"{title}: {len(looks.documents)} looks")
    for kind, count in looks.kinds().most_common():
        *_, (_, _, found) = looks.findings(kind)
        places = ", ".join(
            f"{Path(s['file']).name}:{s['line']}" for s in found["sites"]
        )
        print(f"  {kind:<20} in {count:>4} looks  {places}\n{'':23}{found['text']}")
        print(f"{'':23}{found['proof']}")
    for what, wrong in checks.items():
        print(
            f"  {'FAILED' if wrong else 'ok':<7}{what}{f': {wrong}' if wrong else ''}"
        )
    return 1 if any(checks.values()) else 0


def version(chosen: argparse.Namespace, package: str) -> str:
    """The version that is installed there."""
    code = f"from importlib.metadata import version; print(version({package!r}))"
    python = chosen.venv / "bin" / "python"
    done = subprocess.run([python, "-c", code], capture_output=True, check=True)
    return f"{package} {done.stdout.decode().strip()}"


def together(count: int, call: Callable[[int], None]) -> list[BaseException | None]:
    """Run a call in so many threads at once; what each one raised."""
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(count) as threads:
        return [
            job.exception() for job in [threads.submit(call, n) for n in range(count)]
        ]
