"""What a case of the zoo is, and the two decorators that register one.

A case is a small program the way people write it. Lines that a finding has to name are
marked by a trailing comment, ``# site: name``, and looked up: no line numbers.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

SQLITE = "sqlite"
AIOSQLITE = "aiosqlite"
POSTGRES = "psycopg2"
PSYCOPG = "psycopg"
"""asynchronous"""
ASYNCPG = "asyncpg"

ON_SERVER = (POSTGRES, PSYCOPG, ASYNCPG)
ASYNC = (AIOSQLITE, PSYCOPG, ASYNCPG)

MODULES = (
    "sync_core",
    "orm",
    "async_core",
    "requests_async",
    "frameworks_like",
    "services",
    "threads",
    "exceptions",
    "elsewhere",
    "waiting",
    "long_not_leaked",
    "large_data",
    "in_use",
    "resume",
    "at_hand",
    "server",
    "contention",
    "lost",
    "last_user",
    "circumstances",
    "configuration",
    "concurrent",
    "innocent_sync",
    "innocent_orm",
    "innocent_services",
    "innocent_async",
    "innocent_threads",
    "innocent_server",
    "innocent_contention",
    "innocent_lost",
    "graph",
    "innocent_graph",
    "innocent_configuration",
    "innocent_concurrent",
    "django_faults",
    "django_innocents",
)

NEVER = 30.0
"""The default threshold: no case lasts that long."""

_MARK = re.compile(r"#\s*site:\s*(?P<names>[\w, ]+)$")


@dataclass(frozen=True)
class Case:
    """One pattern, the world it needs, and what is true of it."""

    name: str
    module: str
    about: str
    run: Callable[[Any], Any]
    world: str
    pool: dict[str, Any]
    long_after: float
    kinds: tuple[str, ...]
    """The main finding; of several, any one is right. None: an innocent."""
    marks: tuple[str, ...]
    """The lines that the main finding names."""
    also: frozenset[str]
    """Other findings that are true at the same time."""
    bystanders: tuple[str, ...]
    """Further lines that a finding may name."""
    seen: int
    """An innocent proves nothing unless so many holds were seen at once."""
    says: str | None
    """What the evidence of some hold must contain."""
    lasts: float
    """Seconds for which an innocent is looked at, if the default is too short."""
    remedy: str | None
    """What the remedy of the main finding must contain."""

    @property
    def innocent(self) -> bool:
        """Whether nothing is wrong here."""
        return not self.kinds

    @property
    def on_server(self) -> bool:
        """Whether it needs a PostgreSQL."""
        return self.world in ON_SERVER

    def lines(self, names: Iterable[str]) -> set[tuple[str, int]]:
        """The places of marks, as (file, line)."""
        file = inspect.getsourcefile(self.run)
        assert file is not None
        known = marked_lines(file)
        missing = [name for name in names if name not in known]
        assert not missing, f"{self.name}: no line of {file} is marked {missing}"
        return {(place(file), known[name]) for name in names}


CASES: dict[str, Case] = {}


def fault(
    *kinds: str,
    at: str | None = None,
    also: str = "",
    bystanders: str = "",
    world: str = SQLITE,
    long_after: float = 0.3,
    remedy: str | None = None,
    **pool: Any,
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Something is wrong: ``kinds`` at the marks ``at`` (else the function's name).

    ``also`` and ``bystanders``: further kinds and marks that may be named; words
    separated by blanks, like ``at``. ``remedy``: words of the remedy.
    """
    return _registering(
        kinds, at, also, bystanders, world, long_after, 0, None, 0.0, remedy, pool
    )


def innocent(
    *,
    also: str = "",
    bystanders: str = "",
    world: str = SQLITE,
    long_after: float = NEVER,
    seen: int = 1,
    says: str | None = None,
    lasts: float = 0.0,
    **pool: Any,
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    """Nothing is wrong, whatever it looks like.

    ``also`` and ``bystanders``: what is true of it all the same, as of a busy pool.
    """
    return _registering(
        (), "", also, bystanders, world, long_after, seen, says, lasts, None, pool
    )


def _registering(
    kinds: tuple[str, ...],
    at: str | None,
    also: str,
    bystanders: str,
    world: str,
    long_after: float,
    seen: int,
    says: str | None,
    lasts: float,
    remedy: str | None,
    pool: dict[str, Any],
) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
    def register(run: Callable[[Any], Any]) -> Callable[[Any], Any]:
        name = run.__name__
        assert name not in CASES, f"two cases are called {name}"
        assert run.__doc__, f"{name} does not say what it is"
        CASES[name] = Case(
            name=name,
            module=run.__module__.rpartition(".")[2],
            about=" ".join(run.__doc__.split()),
            run=run,
            world=world,
            pool=pool,
            long_after=long_after,
            kinds=kinds,
            marks=tuple((name if at is None else at).split()),
            also=frozenset(also.split()),
            bystanders=tuple(bystanders.split()),
            seen=seen,
            says=says,
            lasts=lasts,
            remedy=remedy,
        )
        return run

    return register


def load(*modules: str) -> dict[str, Case]:
    """Return all cases, or those of some modules."""
    for module in modules or MODULES:
        import_module(f"zoo.{module}")
    return CASES


def place(file: str) -> str:
    """A path in the form that is compared."""
    return str(Path(file).resolve())


@cache
def marked_lines(file: str) -> dict[str, int]:
    """The marks of a source file, and their lines."""
    marks: dict[str, int] = {}
    for number, line in enumerate(Path(file).read_text("utf-8").splitlines(), 1):
        found = _MARK.search(line)
        for name in found["names"].split(",") if found else ():
            assert name.strip() not in marks, f"{file}: two marks {name.strip()}"
            marks[name.strip()] = number
    return marks
