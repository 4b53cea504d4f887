"""The known leaks of a project: the file of ``--pool-leaks-baseline``.

A leak is known by its kind and by the file and function of its call site, so that it
stays known when lines are added above it. Paths are relative to the root directory of
the tests: the file is the same on every machine.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, get_args

import pytest

from poolwatch.testing.leak import Leak, LeakKind
from poolwatch.text.format import one_line, plural

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator

_HEAD = """\
# Known connection leaks: pytest --pool-leaks-baseline with this file fails for others
# only. Written by --pool-leaks-update: kind of the leak, file and function of the line
# that checked the connection out. A comment at the end of a line is kept.
"""
_LINE = re.compile(rf"({'|'.join(get_args(LeakKind))})\s+(\S.*)::(\S+?)(?:\s+(#.*))?")
_MAX_NAMED = 5
_MAX_FILES = 20_000
"""Most files of the project that are searched for tests which did not run."""
_NARROWING = (
    *("keyword", "markexpr", "lf", "deselect", "stepwise", "pyargs"),
    *("collectonly", "setuponly", "setupplan"),
    *("showfixtures", "show_fixtures_per_test"),
)
"""pytest's options by which a part of the tests is chosen, or none runs."""
_COLLECTING = r"(testpaths|norecursedirs|python_(files|classes|functions))\s*="
"""Beginning of a value of ``--override-ini`` that changes which tests there are."""


class KnownLeak(NamedTuple):
    """One line of the file."""

    file: str
    function: str
    kind: str

    @classmethod
    def of(cls, leak: Leak, root: Path) -> KnownLeak:
        """The line by which a leak is known."""
        if leak.site is None:
            return cls("?", "?", leak.kind)
        file = os.path.relpath(leak.site.file, root)
        return cls(Path(file).as_posix(), leak.site.function, leak.kind)

    def __str__(self) -> str:
        """The line, without its comment."""
        return f"{self.kind:<9} {self.file}::{self.function}"


class Baseline:
    """The known leaks, and those that one run has seen. Also a plugin of pytest."""

    def __init__(self, path: Path, config: pytest.Config, *, update: bool) -> None:
        """Read the file; raises UsageError, in one sentence."""
        self._path = path
        self._name = one_line(os.path.relpath(path, config.invocation_params.dir))
        self._config = config
        self._update = update
        self._known = self._read()
        """The known leaks, each with the comment of its line."""
        self._seen: Counter[KnownLeak] = Counter()
        self._is_partial = False
        """Whether a part of the tests did not run, as far as this process knows."""
        self.notes: list[str] = []
        """Notes about the file, for the summary."""

    # -- the file ----------------------------------------------------------------------

    def _read(self) -> dict[KnownLeak, str]:
        try:
            text = self._path.read_text(encoding="utf-8")
        except FileNotFoundError:
            if self._update:
                return {}
            why = "there is no such file; --pool-leaks-update writes it"
            raise self._unusable(why) from None
        except OSError as error:
            raise self._unusable(f"cannot be read: {error.strerror}") from None
        except UnicodeDecodeError:
            raise self._unusable("is not a text file in UTF-8") from None
        lines = enumerate(map(str.strip, text.splitlines()), 1)
        return dict(
            self._parsed(*each) for each in lines if each[1][:1] not in ("", "#")
        )

    def _parsed(self, number: int, line: str) -> tuple[KnownLeak, str]:
        match = _LINE.fullmatch(line)
        if match is None:
            raise self._unusable(
                f"line {number} is not a known leak, such as "
                f"'held app/db.py::load': {one_line(line, 60)!r}"
            )
        kind, file, function, comment = match.groups()
        if file.startswith(("/", "~")) or re.match(r"[A-Za-z]:", file):
            raise self._unusable(
                f"line {number} has a path of one machine, {one_line(file)}: make it "
                "relative to the root directory of the tests"
            )
        return KnownLeak(file, function, kind), comment or ""

    def _unusable(self, why: str) -> pytest.UsageError:
        return pytest.UsageError(f"pool leaks: baseline {self._name}: {why}")

    def _write(self, leaks: Iterable[KnownLeak]) -> None:
        lines = [f"{leak}  {self._known.get(leak, '')}".rstrip() for leak in leaks]
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_text(_HEAD + "".join(f"{each}\n" for each in lines), "utf-8")

    # -- the run -----------------------------------------------------------------------

    def new(self, leaks: Sequence[Leak]) -> list[Leak]:
        """Return the leaks that are not known; note the others."""
        root = self._config.rootpath
        known = [KnownLeak.of(leak, root) for leak in leaks]
        accepted = [self._update or each in self._known for each in known]
        self._seen.update(k for k, yes in zip(known, accepted, strict=True) if yes)
        return [leak for leak, yes in zip(leaks, accepted, strict=True) if not yes]

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_collection_modifyitems(
        self, items: Sequence[Any]
    ) -> Generator[None, None, None]:
        """Note that tests were left out, whether the plugin tells it or not."""
        collected = len(items)
        yield
        self._is_partial |= len(items) < collected

    def for_controller(self) -> dict[str, Any]:
        """The leaks that a worker of xdist reports to the controller."""
        seen = [[*leak, count] for leak, count in self._seen.items()]
        return {"seen": seen, "partial": self._is_partial}

    def receive(self, sent: dict[str, Any] | None) -> None:
        """In xdist's controller: add what a worker has seen; None if it crashed."""
        if sent is None:
            self._is_partial = True
            return
        self._is_partial |= sent["partial"]
        for *leak, count in sent["seen"]:
            self._seen[KnownLeak(*leak)] += count

    def finish(self, session: pytest.Session) -> None:
        """Write the file if it is to be updated; compose the notes."""
        unseen = sorted(self._known.keys() - self._seen.keys())
        if unseen and self._is_complete(session):
            gone, kept = unseen, []
        else:
            gone, kept = [], unseen
        if self._update:
            self._rewrite(session, gone, kept)
        elif self._seen:
            total = plural(sum(self._seen.values()), "known leak")
            places = plural(len(self._seen), "place")
            self.notes.append(f"{total} at {places}, as in {self._name}")
        if gone and not self._update:
            self.notes.append(
                f"no longer seen, to be removed from {self._name}: {_named(gone)}"
            )

    def _rewrite(
        self,
        session: pytest.Session,
        gone: Sequence[KnownLeak],
        kept: Sequence[KnownLeak],
    ) -> None:
        leaks = sorted({*self._seen, *kept})
        try:
            self._write(leaks)
        except OSError as error:
            self.notes.append(f"{self._name} cannot be written: {error.strerror}")
            session.exitstatus = pytest.ExitCode.USAGE_ERROR
            return
        added = len(self._seen.keys() - self._known.keys())
        note = f"{self._name} has {plural(len(leaks), 'known leak')} now: "
        note += f"{added} added, {len(gone)} removed"
        if kept:
            note += f", {len(kept)} kept that these tests did not show"
        self.notes.append(note)

    def _is_complete(self, session: pytest.Session) -> bool:
        """Whether all tests of the project ran to their end."""
        if self._is_partial or session.testsfailed:
            return False
        if session.shouldstop or session.shouldfail:
            return False
        if session.exitstatus != pytest.ExitCode.OK:
            return False
        if self._is_narrowed():
            return False
        given = self._config.args_source is pytest.Config.ArgsSource.ARGS
        return not given or self._covers_all_tests(self._config.args)

    def _is_narrowed(self) -> bool:
        """Whether options leave tests out that the ini file does not always ignore."""
        option, usual = self._config.option, " ".join(self._config.getini("addopts"))
        if any(getattr(option, name, None) for name in _NARROWING):
            return True
        ignored = *(option.ignore or ()), *(option.ignore_glob or ())
        return any(each not in usual for each in ignored) or any(
            re.match(_COLLECTING, each) for each in option.override_ini or ()
        )

    def _covers_all_tests(self, arguments: Sequence[str]) -> bool:
        """Whether every test file of the project is below one of the arguments."""
        if any("::" in each for each in arguments):
            return False
        base = self._config.invocation_params.dir
        covered = [(base / each).resolve() for each in arguments]
        for count, file in enumerate(self._files()):
            if count > _MAX_FILES:
                return False
            if self._is_test_file(file) and not any(
                file.is_relative_to(each) for each in covered
            ):
                return False
        return True

    def _files(self) -> Iterator[Path]:
        """The Python files of the project."""
        root = self._config.rootpath.resolve()
        ignored = self._config.getini("norecursedirs")
        for top in self._config.getini("testpaths") or ["."]:
            for directory, names, files in os.walk(root / top):
                if "pyvenv.cfg" in files:
                    names.clear()
                    continue
                names[:] = [
                    name
                    for name in names
                    if not any(fnmatch(name, glob) for glob in ignored)
                ]
                yield from (Path(directory, each) for each in files)

    def _is_test_file(self, file: Path) -> bool:
        globs = self._config.getini("python_files")
        return file.suffix == ".py" and any(fnmatch(file.name, each) for each in globs)


def _named(leaks: Sequence[KnownLeak]) -> str:
    names = [f"{leak.kind} {leak.file}::{leak.function}" for leak in leaks]
    more = f" and {len(leaks) - _MAX_NAMED} more" if len(leaks) > _MAX_NAMED else ""
    return ", ".join(names[:_MAX_NAMED]) + more
