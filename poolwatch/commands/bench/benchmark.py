"""Runs the benchmark: server, proxy, progress bar, report."""

from __future__ import annotations

import json
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg2
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import SQLAlchemyError

from poolwatch.commands.bench import report
from poolwatch.commands.bench.cases import ways, workloads
from poolwatch.commands.bench.latency import delayed
from poolwatch.commands.bench.measuring import SLICES, SLICES_WITH_DELAY, measure
from poolwatch.commands.demo.lease import sqlalchemy_url, unusable
from poolwatch.commands.demo.server import embedded


def run_bench(
    dsn: str | None, operations: int, latency_ms: float, as_json: bool
) -> str:
    """Measure all cases and return the report.

    Raises PoolwatchError if the database cannot be used.
    """
    with _server(dsn) as url, _network(url, latency_ms) as bench_url:
        try:
            server = _server_info(bench_url, dsn, latency_ms)
            all_workloads, all_ways = workloads(operations), ways()
            slices = SLICES_WITH_DELAY if latency_ms else SLICES
            with _progress(len(all_workloads) * len(all_ways) * slices) as advance:
                rows = measure(bench_url, all_workloads, all_ways, advance, slices)
        except (SQLAlchemyError, psycopg2.Error) as error:
            raise unusable(error) from None
    if as_json:
        return json.dumps(report.document(rows, server), indent=2)
    return report.table(rows, server)


@contextmanager
def _server(dsn: str | None) -> Iterator[URL]:
    """Yield the URL of the user's database, or of an embedded one."""
    if dsn is not None:
        yield sqlalchemy_url(dsn)
        return
    with (
        tempfile.TemporaryDirectory(prefix="poolwatch-") as directory,
        embedded(Path(directory)) as url,
    ):
        yield make_url(url)


@contextmanager
def _network(url: URL, latency_ms: float) -> Iterator[URL]:
    """Yield the server's URL, or that of a delaying proxy in front of it."""
    if not latency_ms:
        yield url
        return
    with delayed(_connector(url), latency_ms / 1e3) as port:
        query = {k: v for k, v in url.query.items() if k not in ("host", "port")}
        yield url.set(host="127.0.0.1", port=port, query=query)


def _connector(url: URL) -> Callable[[], socket.socket]:
    host = str(url.query.get("host") or url.host or "localhost")
    port = int(str(url.query.get("port") or url.port or 5432))

    def connect() -> socket.socket:
        if host.startswith("/"):
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.connect(f"{host}/.s.PGSQL.{port}")
        else:
            server = socket.create_connection((host, port))
            server.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return server

    return connect


def _server_info(url: URL, dsn: str | None, latency_ms: float) -> dict[str, Any]:
    engine = create_engine(url)
    try:
        with engine.connect() as connection:
            version = str(connection.scalar(text("SHOW server_version")))
            tls = connection.scalar(
                text("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
            )
    finally:
        engine.dispose()
    return {
        "version": f"PostgreSQL {version.split(maxsplit=1)[0]}",
        "where": ("embedded" if dsn is None else "the given server")
        + (", with TLS" if tls else ", without TLS"),
        "tls": bool(tls),
        "latency_ms": latency_ms,
    }


@contextmanager
def _progress(total: int) -> Iterator[Callable[[str], None]]:
    """Show a progress bar if standard error is a terminal; yields advance()."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = BarColumn(), TimeRemainingColumn(), TextColumn("{task.description}")
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True) as progress:
        task = progress.add_task("", total=total)

        def advance(what: str) -> None:
            progress.update(task, advance=1, description=what)

        yield advance
