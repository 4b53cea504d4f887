"""The names of processes, pools and tasks, the same in every user interface."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import replace
from pathlib import PurePath
from urllib.parse import parse_qs, unquote, urlsplit

from poolwatch.model import Hold, PoolStats, Process, Unreachable, Wait
from poolwatch.text.format import one_line

_FRAMEWORKS = frozenset({
    "aiohttp", "anyio", "asgiref", "asyncio", "celery", "django", "fastapi",
    "hypercorn", "litestar", "quart", "sanic", "starlette", "tornado", "uvicorn",
})  # fmt: skip
"""Packages that start tasks, whose names are those of the package's functions."""
OTHER_POOLS = "(other pools)"
"""Stands for all pools of a process beyond ``_MAX_NAMES`` names."""
_MAX_NAMES = 256
_MAX_NAME = 128
"""Length of the longest name of a pool in metrics, in characters."""


def process_name(process: Process) -> str:
    """The given name of a process, or else its program; with the number of a worker."""
    name = process.name or process.program
    return name if process.worker is None else f"{name}, worker {process.worker}"


def unreachable_name(lost: Unreachable) -> str:
    """The pid of a process that gave no answer, with its host if that is known."""
    host = "" if lost.host is None else f" on {lost.host}"
    return f"pid {lost.pid or '?'}{host}"


def numbered(processes: Sequence[Process]) -> list[Process]:
    """Number the workers of one parent that share a name, by their start times."""
    siblings: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for at, process in enumerate(processes):
        if process.parent is not None:
            name = process.name or process.program
            siblings[process.host, process.parent, name].append(at)
    found = list(processes)
    for group in siblings.values():
        group.sort(key=lambda at: (processes[at].started_at, processes[at].pid))
        for number, at in enumerate(group if len(group) > 1 else (), 1):
            found[at] = replace(processes[at], worker=number)
    return found


def with_names(process: Process) -> Process:
    """Return the process, with the database added to pool names that are not unique."""
    same_name: dict[str, list[PoolStats]] = defaultdict(list)
    for pool in process.pools:
        same_name[pool.name].append(pool)
    names: dict[str, str] = {}
    for name, pools in same_name.items():
        for qualify in (_database, _host_and_database) if len(pools) > 1 else ():
            qualifiers = {pool.id: qualify(pool.url or "") for pool in pools}
            if len(set(qualifiers.values())) > 1:
                names |= {pool: _with(name, each) for pool, each in qualifiers.items()}
                break
    if not names:
        return process
    pools = [
        replace(each, name=names.get(each.id, each.name)) for each in process.pools
    ]
    return replace(process, pools=tuple(pools))


class PoolNames:
    """Gives each pool of a process a name that no other living pool of it has.

    For metrics: a name stays while its pool lives, and then goes to the next pool, so
    that pools that come and go are one series.
    """

    def __init__(self) -> None:
        self._names: dict[str, tuple[str, str]] = {}
        """By pool id: its own name, and the one it was given."""
        self._given: set[str] = set()

    def of(self, pool: PoolStats) -> str:
        """The name of a pool; its host and database, or a number, tell it apart."""
        own, given = self._names.get(pool.id, ("", ""))
        if given and own == pool.name:
            return given
        taken = {each for key, (_, each) in self._names.items() if key != pool.id}
        name = one_line(pool.name, _MAX_NAME)
        where = _host_and_database(pool.url or "")
        elsewhere = name if where.startswith("/") else _with(name, where)
        numbers = (f"{name} ({number})" for number in itertools.count(2))
        candidates = itertools.chain((name, one_line(elsewhere, _MAX_NAME)), numbers)
        given = next(each for each in candidates if each not in taken)
        if given not in self._given and len(self._given) >= _MAX_NAMES:
            given = OTHER_POOLS
        self._given.add(given)
        self._names[pool.id] = pool.name, given
        return given

    def forget(self, pool_id: str) -> None:
        """Free the name of a pool that is no more."""
        self._names.pop(pool_id, None)

    def keep(self, pool_ids: Collection[str]) -> None:
        """Free the names of all other pools."""
        for each in self._names.keys() - pool_ids:
            self.forget(each)


def _with(name: str, qualifier: str) -> str:
    if not qualifier or qualifier == name:
        return name
    return qualifier if qualifier.endswith(f"/{name}") else f"{name} ({qualifier})"


def _database(url: str) -> str:
    return "/".join(PurePath(unquote(_split(url)[1])).parts[-2:]).lstrip("/")


def _host_and_database(url: str) -> str:
    host, path = _split(url)
    return f"{host}/{unquote(path).lstrip('/')}"


def _split(url: str) -> tuple[str, str]:
    """Return the host with its port, or the socket directory; and the path."""
    try:
        parts = urlsplit(url)
        host = parts.netloc.rpartition("@")[2] or "".join(
            parse_qs(parts.query).get("host", [])[:1]
        )
    except ValueError:
        return "", ""
    return host, parts.path.removeprefix("/")


def holder_name(request: Hold | Wait) -> str:
    """The task's name if there is a task, else the thread's.

    If it is unknown: what has the connection now.
    """
    if request.task:
        return task_name(request.task)
    return request.thread or getattr(request, "user", None) or "?"


def task_name(name: str) -> str:
    """The task's name; for a function of a framework, only its last two parts."""
    parts = [part for part in name.split(".") if part != "<locals>"]
    if len(parts) < 3 or parts[0] not in _FRAMEWORKS:
        return name
    return ".".join([part for part in parts if not part.startswith("__")][-2:])
