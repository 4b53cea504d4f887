"""Whose code a frame is: the user's, a library's, or plumbing nobody wants to see.

The call site of a hold is the first frame of the user's own code. That is code outside
the standard library and outside site-packages. In a container the application itself
is often installed into site-packages; then the first frame there that is no known
database or framework package counts.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from enum import IntEnum
from functools import cache, lru_cache
from pathlib import Path
from types import ModuleType


class Owner(IntEnum):
    """Whose code it is, from the least to the most interesting for a call site."""

    PLUMBING = 0
    """poolwatch, the standard library, database libraries, web and task frameworks."""
    PACKAGE = 1
    """Anything else that is installed: a third-party library, or an application
    that was installed as a package."""
    USER = 2
    """Code that is not installed: the project at hand."""


# Packages between an application and its connection pool, or around the application.
# They matter only when no frame at all lies outside site-packages.
# fmt: off
_KNOWN = frozenset({
    "sqlalchemy", "sqlmodel", "flask_sqlalchemy", "fastapi_async_sqlalchemy",
    "databases", "advanced_alchemy", "alembic", "geoalchemy2", "sqlalchemy_utils",
    "pandas", "ormar", "piccolo", "psycopg", "psycopg_pool", "psycopg2", "asyncpg",
    "aiosqlite", "pg8000", "aiopg", "greenlet", "gevent", "eventlet", "anyio", "trio",
    "sniffio", "uvloop", "fastapi", "starlette", "uvicorn", "hypercorn", "gunicorn",
    "waitress", "uwsgi", "flask", "werkzeug", "django", "aiohttp", "sanic", "quart",
    "litestar", "falcon", "bottle", "tornado", "pyramid", "strawberry", "graphene",
    "celery", "kombu", "billiard", "rq", "dramatiq", "huey", "arq", "apscheduler",
    "click", "typer", "pytest", "_pytest", "pluggy", "pytest_asyncio", "xdist",
    "execnet", "__channelexec__",  # what xdist's workers run in
    "opentelemetry", "ddtrace", "sentry_sdk", "newrelic", "elasticapm", "wrapt",
    "tenacity",
})
# fmt: on
_INSTALLED = ("site-packages", "dist-packages")
_HERE = str(Path(__file__).parent) + os.sep
_DEMO = str(Path(__file__).parent / "demo" / "app") + os.sep


@cache
def _standard_library() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    return tuple({paths[key] + os.sep for key in ("stdlib", "platstdlib")})


@cache
def _script_directories() -> tuple[str, ...]:
    """Where console scripts live: ``bin/uvicorn`` is nobody's call site."""
    return tuple({sysconfig.get_path("scripts"), str(Path(sys.executable).parent)})


def is_ours(file: str) -> bool:
    """Whether a file is poolwatch's own; its demo application is the user's."""
    return file.startswith(_HERE) and not file.startswith(_DEMO)


@lru_cache(maxsize=2048)
def owner_of(file: str, module: object) -> Owner:
    """Tell whose code a frame of ``file`` in ``module`` (its ``__name__``) is."""
    if file.startswith(_HERE):
        return Owner.USER if file.startswith(_DEMO) else Owner.PLUMBING
    package = module.partition(".")[0] if isinstance(module, str) else ""
    if file.startswith("<"):
        return _generated(file, package)
    if any(f"{sep}{name}{sep}" in file for name in _INSTALLED for sep in "/\\"):
        return Owner.PLUMBING if package in _KNOWN else Owner.PACKAGE
    if file.startswith(_standard_library()):
        return Owner.PLUMBING
    if module == "__main__" and str(Path(file).parent) in _script_directories():
        return Owner.PLUMBING
    return Owner.USER


@lru_cache(maxsize=2048)
def owner_by_place(file: str, function: str) -> Owner:
    """The same where nobody knows the module any more: its package is on the path.

    A function that was made of a string is nobody's: libraries wrap others in such, as
    SQLAlchemy 2.0 does its own.
    """
    if file == "<string>" and function != "<module>":
        return Owner.PLUMBING
    for separator in "/\\":
        for name in _INSTALLED:
            _, _, within = file.partition(f"{separator}{name}{separator}")
            if within:
                package = within.partition(separator)[0].removesuffix(".py")
                return owner_of(file, package)
    return owner_of(file, None)


def _generated(file: str, package: str) -> Owner:
    """Code without a file: typed at a prompt, ``python -c``, or made by a library."""
    if file.startswith(
        ("<frozen", "<attrs", "<decorator", "<template", "<__array", "<sqlalchemy")
    ):
        return Owner.PLUMBING
    if package in _KNOWN or package in sys.stdlib_module_names:
        return Owner.PLUMBING
    home = file_of(sys.modules.get(package))
    if package and package != "__main__" and home:
        return owner_of(home, package)
    return Owner.USER


def file_of(module: object) -> str | None:
    """The file of a module, which may have ideas of its own about attributes."""
    if not issubclass(type(module), ModuleType):
        return None
    file = ModuleType.__getattribute__(module, "__dict__").get("__file__")
    return file if type(file) is str else None
