"""What every face says of every state: real processes, a real server.

``python tests/tui/states.py`` prints the table; ``test_states.py`` judges it. The
stages do not disturb each other, so they run at once.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from fix_postgres import Postgres, drop_postgres, make_postgres
from fix_processes import Apps
from helpers import LONG_S, stopped, until_async

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.tui.app import Dashboard

APP = """
import re, sys, threading
from sqlalchemy import create_engine
import poolwatch

engine = create_engine(sys.argv[1], pool_size=3, max_overflow=0)
poolwatch.instrument(engine, name=sys.argv[2], long_after=600)

def keep(kept=[]):
    kept.append(engine.connect())

held = engine.connect()
if "leak" in sys.argv:
    thread = threading.Thread(target=keep, name="boot")
    thread.start()
    thread.join()
print("ready", flush=True)
if sys.stdin.readline() == "starve\\n":
    re.match(r"(a+)+$", "a" * 60 + "b")  # keeps the interpreter's lock
"""


@dataclass
class Evidence:
    """What the faces have said of one state."""

    state: str
    lines: list[str]
    """The header, and the WHY lines."""
    rows: list[str]
    """The lines of the screen below, with a call site of an application."""
    ps: str
    document: dict[str, Any]
    check: str
    code: int
    seen: set[str] = field(default_factory=set)
    """All header and WHY lines that were drawn meanwhile."""

    @property
    def text(self) -> str:
        """Header and WHY lines."""
        return "\n".join(self.lines)


class Stage:
    """A socket directory with its processes, and a dashboard that looks at them."""

    def __init__(self, apps: Apps, dashboard: Dashboard, dsn: str | None) -> None:
        self.apps = apps
        self.dashboard = dashboard
        self._options = () if dsn is None else ("--dsn", dsn)

    def lines(self) -> list[str]:
        widgets = (self.dashboard.query_one(part) for part in ("#header", "#why"))
        texts = [
            "".join(text for text, *_ in each._line(at))
            for each in widgets
            for at in range(each.count)
        ]
        return [text.rstrip() for text in texts]

    async def shows(self, *words: str) -> None:
        """Wait until header and WHY lines have all of these words."""
        try:
            await until_async(
                lambda: all(word in "\n".join(self.lines()) for word in words)
            )
        except AssertionError:
            raise AssertionError(f"{words} not in {self.lines()}") from None

    async def tell(self, state: str, *words: str) -> Evidence:
        """What all faces say now, once the dashboard shows these words."""
        await self.shows(*words)
        seen: set[str] = set()
        work = asyncio.gather(
            *(
                asyncio.to_thread(self.apps.poolwatch, *command, *self._options)
                for command in (["ps"], ["ps", "--json"], ["check"])
            )
        )
        while not work.done():
            seen.update(self.lines())
            await asyncio.sleep(0.05)
        ps, document, check = work.result()
        await self.shows(*words)
        strips = self.dashboard.screen._compositor.render_strips()
        drawn = [strip.text.rstrip() for strip in strips][len(self.lines()) :]
        return Evidence(
            state,
            self.lines(),
            [line for line in drawn if ".py:" in line],
            ps.stdout + ps.stderr,
            json.loads(document.stdout or "{}"),
            check.stdout + check.stderr,
            check.returncode,
            seen,
        )


@asynccontextmanager
async def stage(dsn: str | None = None) -> AsyncIterator[Stage]:
    """A stage of its own; its processes end with it."""
    directory = Path(tempfile.mkdtemp(prefix="pw", dir="/tmp"))
    home = Path(tempfile.mkdtemp(prefix="pwhome", dir="/tmp"))
    apps = Apps(directory, home)
    source = LiveSource(Client(directory), dsn=dsn, environ={})
    dashboard = Dashboard(source, refresh=0.5)
    try:
        async with dashboard.run_test(size=(200, 50)):
            yield Stage(apps, dashboard, dsn)
    finally:
        for app in apps.running:
            with suppress(ProcessLookupError):
                os.kill(app.pid, signal.SIGCONT)
            app.kill()
            app.wait()
            for stream in (app.stdin, app.stdout):
                with suppress(OSError):
                    stream.close()
        source.close()
        shutil.rmtree(directory, ignore_errors=True)
        shutil.rmtree(home, ignore_errors=True)


def start(stage: Stage, name: str, server: Postgres, *more: str) -> Awaitable[Any]:
    """Start an application with one hold, or with a leaked one besides."""
    url = server.url()
    return asyncio.to_thread(stage.apps.start, APP, f"{name}.py", url, name, *more)


async def of_a_server(shared: Postgres) -> list[Evidence]:
    """Two processes on a server that hangs, goes and comes back; one on another."""
    server = await asyncio.to_thread(make_postgres)
    found = []
    try:
        async with stage() as s:
            await asyncio.gather(
                start(s, "orders", server),
                start(s, "billing", server),
                start(s, "search", shared),
            )
            await s.shows("3 processes", "✓ healthy")
            use = "2 pools of 2 processes use it"
            with stopped(*server.pids):
                found.append(await s.tell("database hung", "db DOWN", use))
            found.append(await s.tell("all is well", "✓ healthy", "3 processes"))
            await asyncio.to_thread(server.stop, "immediate")
            found.append(await s.tell("database down", "db DOWN", use))
            await asyncio.to_thread(server.start)
            found.append(await s.tell("database restarted", "restarted"))
    finally:
        await asyncio.to_thread(drop_postgres, server)
    return found


async def three(stage: Stage, server: Postgres) -> tuple[Any, str]:
    """Start three processes, one with a leak; returns that one and its name."""
    billing, *_ = await asyncio.gather(
        start(stage, "billing", server, "leak"),
        start(stage, "orders", server),
        start(stage, "search", server),
    )
    await stage.shows("3 processes", "checked out 1 connection")
    return billing, f"billing.py {billing.pid}"


async def of_a_stopped_process(server: Postgres) -> list[Evidence]:
    """One of three."""
    async with stage() as s:
        billing, who = await three(s, server)
        with stopped(billing.pid):
            return [await s.tell("process stopped", f"■ {who} is stopped (state T)")]


async def of_a_starved_process(server: Postgres) -> list[Evidence]:
    """One of three, whose socket is removed, and which is killed in the end."""
    async with stage() as s:
        billing, who = await three(s, server)
        billing.stdin.write("starve\n")
        billing.stdin.flush()
        said = f"{who} is alive and has not answered for"
        found = [await s.tell("process starved", said)]
        (path,) = s.apps.directory.glob(f"{billing.pid}-*.sock")
        path.unlink()
        said = f"{who} is alive, its socket file is gone"
        found.append(await s.tell("socket removed, starved", said))
        billing.kill()
        billing.wait()
        found.append(await s.tell("process killed", f"{who} ended at", "✓ healthy"))
    return found


async def of_a_removed_socket(server: Postgres) -> list[Evidence]:
    """Its agent makes it again."""
    async with stage() as s:
        app = await start(s, "orders", server)
        await s.shows("✓ healthy")
        (path,) = s.apps.directory.glob(f"{app.pid}-*.sock")
        path.unlink()
        await until_async(path.exists)
        return [await s.tell("socket removed", "LIVE", "✓ healthy")]


async def of_the_only_process(server: Postgres) -> list[Evidence]:
    async with stage() as s:
        app = await start(s, "orders", server)
        await s.shows("✓ healthy")
        with stopped(app.pid):
            silent = await s.tell("the only process stopped", "SILENT", "■ orders.py")
        await s.shows("✓ healthy")
        app.kill()
        app.wait()
        return [silent, await s.tell("the only process killed", "LOST", "ended at")]


async def of_nothing() -> list[Evidence]:
    async with stage() as s:
        return [await s.tell("no process", "NO PROCESS")]


async def of_a_role(server: Postgres) -> list[Evidence]:
    """A DSN whose role sees nothing of other roles' sessions."""
    server.execute("create role watcher login")
    async with stage(server.as_role("watcher").dsn) as s:
        await start(s, "orders", server)
        return [await s.tell("role without rights", "1 connection checked out")]


async def of_a_network(server: Postgres) -> list[Evidence]:
    """The way to the server of the DSN goes; the application has another one."""
    network = Network(("127.0.0.1", server.port))
    through = Postgres(server.directory, network.port, "127.0.0.1", server.control)
    async with stage(through.dsn) as s:
        await start(s, "orders", server)
        await s.shows("✓ healthy")
        network.cut()
        return [await s.tell("network of the DSN gone", "the server of the DSN cannot")]


class Network:
    """A way to a server that can be cut: then it takes bytes and answers none."""

    def __init__(self, target: tuple[str, int]) -> None:
        self._target = target
        self._there = threading.Event()
        self._there.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        self._there.clear()

    def _accept(self) -> None:
        while True:
            near, _ = self._listener.accept()
            far = socket.create_connection(self._target)
            for pair in ((near, far), (far, near)):
                threading.Thread(target=self._pass, args=pair, daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                self._there.wait()
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


async def _all() -> list[Evidence]:
    server = await asyncio.to_thread(make_postgres)
    stages: tuple[Callable[[], Awaitable[list[Evidence]]], ...] = (
        lambda: of_a_server(server),
        lambda: of_a_stopped_process(server),
        lambda: of_a_starved_process(server),
        lambda: of_a_removed_socket(server),
        lambda: of_the_only_process(server),
        of_nothing,
        lambda: of_a_role(server),
        lambda: of_a_network(server),
    )
    try:
        found = await asyncio.gather(*(each() for each in stages))
    finally:
        await asyncio.to_thread(drop_postgres, server)
    return [evidence for each in found for evidence in each]


def table() -> list[Evidence]:
    """Go through all states; returns what was said of each."""
    return asyncio.run(asyncio.wait_for(_all(), 3 * LONG_S))


def _print(evidence: Evidence) -> None:
    print(f"== {evidence.state} ".ljust(100, "="))
    for title, lines in {
        "dashboard": [*evidence.lines, *evidence.rows],
        "ps": evidence.ps.splitlines(),
        "unreachable": map(json.dumps, evidence.document.get("unreachable", ())),
        f"check: {evidence.code}": evidence.check.splitlines(),
    }.items():
        print(f"-- {title}")
        for line in lines:
            print(f"   {line.rstrip()[:190]}")
    print()


if __name__ == "__main__":
    for each in table():
        _print(each)
