"""Test suites that are run by a separate pytest with the plugin switched on."""

from __future__ import annotations

import json
import re
import textwrap
from pathlib import Path
from typing import Any

import pytest

DB = """
    import gc, threading, time, weakref
    from concurrent.futures import ThreadPoolExecutor
    import pytest
    from sqlalchemy import create_engine, text
    from sqlalchemy.orm import Session, scoped_session, sessionmaker
    from sqlalchemy.pool import QueuePool

    def make(name="test.db", **settings):
        return create_engine(
            f"sqlite:///{name}", poolclass=QueuePool, pool_size=40, max_overflow=40,
            connect_args={"check_same_thread": False}, **settings,
        )

    engine = make()
    kept = []
"""


class Ran:
    """Output and report of one run."""

    def __init__(self, home: Path, result: Any) -> None:
        self.result = result
        self.home = home
        self.text = result.stdout.str() + result.stderr.str()
        path = home / "found.json"
        self.found = json.loads(path.read_text()) if path.exists() else {"leaks": []}
        self.leaks: list[dict[str, Any]] = self.found["leaks"]

    def _summary(self, word: str) -> list[str]:
        line = re.compile(rf"^{word} ([^\s]+(?: \(.*\))?)(?: - .*)?$", re.MULTILINE)
        names = line.findall(self.text)
        return sorted(name.split("::", 1)[-1] for name in names)

    @property
    def errors(self) -> list[str]:
        return self._summary("ERROR")

    @property
    def passed(self) -> list[str]:
        return self._summary("PASSED")

    @property
    def failed(self) -> list[str]:
        return self._summary("FAILED")

    @property
    def blamed(self) -> list[str]:
        return sorted(str(leak["test"]).split("::", 1)[-1] for leak in self.leaks)

    def accuses_the_right_ones(self) -> None:
        """The tests with "leaks" in their name, once each, at lines marked "# here"."""
        assert self.result.ret == 1, self.text
        guilty = [name for name in self.passed if "leaks" in name]
        assert guilty
        assert self.errors == guilty, self.text
        assert self.blamed == guilty, self.text
        for leak in self.leaks:
            line = Path(leak["site"]["file"]).read_text().splitlines()
            assert "# here" in line[leak["site"]["line"] - 1], leak

    def accuses_nobody(self) -> None:
        assert self.leaks == [], self.text
        assert self.errors == [], self.text
        assert "pool leaks" not in self.text
        assert "PoolLeak" not in self.text


class Suites:
    """Writes and runs suites. Each has ``from db import *``: an engine on a file."""

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.home = pytester.path
        self._pytester = pytester
        self.write("db", DB, plain=True)
        pytester.makeini("[pytest]\nasyncio_mode = auto\n")

    def write(self, name: str, source: str, *, plain: bool = False) -> Path:
        path = self.home / f"{name}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        head = "" if plain else "from db import *\n"
        path.write_text(head + textwrap.dedent(source).lstrip("\n"))
        return path

    def run(self, *args: str, mode: str | None = "error", order: bool = True) -> Ran:
        (self.home / "found.json").unlink(missing_ok=True)
        options = [] if mode is None else [f"--pool-leaks={mode}"]
        options += ["--pool-leaks-json=found.json", "-rA", "-p", "no:benchmark"]
        if not {"-n", "--reruns"} & set(args):
            options += ["-p", "no:xdist", "-p", "no:rerunfailures"]
        if order:
            options += ["-p", "no:randomly"]
        return Ran(self.home, self._pytester.runpytest_subprocess(*options, *args))


@pytest.fixture
def suites(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, socket_dir: Path
) -> Suites:
    monkeypatch.delenv("GITHUB_ACTIONS", raising=False)
    monkeypatch.setenv("POOLWATCH_DIR", str(socket_dir / "not made yet"))
    return Suites(pytester)
