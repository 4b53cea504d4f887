"""textual-serve with a door: it has none of its own.

It starts one dashboard for each page and passes bytes between the two. Here is added
who may look, how many, and that the page works under whatever name it was asked for.
"""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from urllib.parse import urlsplit

from aiohttp import web
from textual_serve.server import Server

from poolwatch.commands.serve import listening
from poolwatch.commands.serve.peers import may_look
from poolwatch.errors import UsageError
from poolwatch.runtime.installation import python_path

MOST_PAGES = 8
"""Dashboards at once: each is a process of some 50 MiB."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(
    dashboard: Sequence[str], *, host: str, port: int, anyone_may_look: bool
) -> None:
    """Serve until SIGINT or SIGTERM; raises UsageError if that cannot begin."""
    addresses = listening.addresses(host)
    private = listening.is_private(addresses)
    if not private and not anyone_may_look:
        raise UsageError(
            f"{host} can be reached from other machines, and there is no password: "
            "stay on 127.0.0.1 (and come by an SSH tunnel), or say --anyone-may-look"
        )
    sockets = listening.listen(addresses, host, port)
    if not private:
        _say(
            f"warning: anyone who can reach {host} sees your statements, call sites "
            "and labels; there is no password"
        )
    os.environ["PYTHONPATH"] = (
        python_path()
    )  # the dashboards' own, as -P takes away the cwd
    command = [sys.executable, "-P", "-m", "poolwatch", *dashboard]
    asyncio.run(_run(_Server(f"exec {shlex.join(command)}", private), sockets))


async def _run(server: _Server, sockets: list[socket.socket]) -> None:
    runner = web.AppRunner(
        await server.application(), access_log=None, shutdown_timeout=1.0
    )
    await runner.setup()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        for one in sockets:
            await web.SockSite(runner, one).start()
        _say(f"the dashboard is at {_url(sockets[0])} (Ctrl+C ends it)")
        await ended.wait()
    finally:
        await runner.cleanup()


def _url(one: socket.socket) -> str:
    host, port = one.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _say(sentence: str) -> None:
    sys.stderr.write(f"poolwatch: {sentence}\n")
    sys.stderr.flush()


class _Server(Server):
    """The pages and the way from each to its dashboard."""

    def __init__(self, command: str, private: bool) -> None:
        super().__init__(command, title="poolwatch")
        self._private = private
        """Only reachable from this machine: then only this user may look."""
        self._pages = 0

    async def application(self) -> web.Application:
        """Return what is served."""
        application = await self._make_app()
        application.middlewares.append(self._door)
        return application

    async def on_startup(self, app: web.Application) -> None:
        """Say nothing: it would print the command."""

    @web.middleware
    async def _door(
        self, request: web.Request, handler: _Handler
    ) -> web.StreamResponse:
        """Let in whom the sockets of the applications let in, and no foreign page."""
        refused = self._refused(request)
        if refused:
            raise web.HTTPForbidden(text=f"poolwatch: {refused}\n")
        return await handler(request)

    def _refused(self, request: web.Request) -> str:
        if self._private and not _leads_here(request.host):
            return "ask for it by its address, or as localhost"
        origin = request.headers.get("Origin")
        if origin is not None and _host_of(origin) != request.host:
            return "another site's page may not look"
        if self._private and not _is_ours(request):
            return "only the user who has started it may look"
        return ""

    async def handle_index(self, request: web.Request) -> web.StreamResponse:
        """Give the page, with addresses that work where it was asked for."""
        self.public_url = f"http://{request.host}"
        response: web.StreamResponse = await super().handle_index(request)
        response.headers["Content-Security-Policy"] = (
            "default-src 'self' 'unsafe-inline' data:; frame-ancestors 'none'; "
            f"connect-src 'self' ws://{request.host}"
        )
        return response

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Start a dashboard for a page, if there are not too many."""
        if self._pages >= MOST_PAGES:
            raise web.HTTPServiceUnavailable(
                text=f"poolwatch: {MOST_PAGES} pages are open already\n"
            )
        self._pages += 1
        try:
            return await super().handle_websocket(request)
        finally:
            self._pages -= 1


def _leads_here(host: str) -> bool:
    """Of a Host header: whether it is an address of this machine, or localhost.

    Any other name may be somebody else's who lets it lead here now.
    """
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return False
    return name == "localhost" or listening.is_loopback(name)


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _is_ours(request: web.Request) -> bool:
    transport = request.transport
    if transport is None:
        return False
    peer, own = (
        transport.get_extra_info("peername"),
        transport.get_extra_info("sockname"),
    )
    return may_look(peer[:2], own[:2])
