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
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from textual_serve.server import Server

from poolwatch.browser.peers import may_look
from poolwatch.errors import UsageError

MOST_PAGES = 8
"""Dashboards at once: each is a process of some 50 MiB."""

_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(
    dashboard: Sequence[str], *, host: str, port: int, anyone_may_look: bool
) -> None:
    """Serve until SIGINT or SIGTERM; raises UsageError if that cannot begin."""
    addresses = _addresses(host, port)
    private = all(ip_address(address[0]).is_loopback for address in addresses)
    if not private and not anyone_may_look:
        raise UsageError(
            f"{host} can be reached from other machines, and there is no password: "
            "stay on 127.0.0.1 (and come by an SSH tunnel), or say --anyone-may-look"
        )
    listening = _listen(addresses, host, port)
    if not private:
        _say(
            f"warning: anyone who can reach {host} sees your statements, call sites "
            "and labels; there is no password"
        )
    home = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    os.environ["PYTHONPATH"] = path  # the dashboards' own, as -P takes away the cwd
    command = [sys.executable, "-P", "-m", "poolwatch", *dashboard]
    asyncio.run(_run(_Server(f"exec {shlex.join(command)}", private), listening))


def _addresses(host: str, port: int) -> list[tuple[str, int]]:
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        found = []
    if not host or not found:
        raise UsageError(f"there is no host {host!r} here to listen on")
    return list(dict.fromkeys((str(each[4][0]), port) for each in found))


def _listen(
    addresses: list[tuple[str, int]], host: str, port: int
) -> list[socket.socket]:
    """Listen on all that can be had; on none, say why."""
    listening: list[socket.socket] = []
    why = ""
    for address in addresses:
        family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        try:
            listening.append(socket.create_server(address, family=family))
        except OSError as error:
            why = os.strerror(error.errno or 0)
    if not listening:
        raise UsageError(f"cannot listen on {host} port {port}: {why}")
    return listening


async def _run(server: _Server, listening: list[socket.socket]) -> None:
    runner = web.AppRunner(
        await server.application(), access_log=None, shutdown_timeout=1.0
    )
    await runner.setup()
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    try:
        for one in listening:
            await web.SockSite(runner, one).start()
        _say(f"the dashboard is at {_url(listening[0])} (Ctrl+C ends it)")
        await ended.wait()
    finally:
        await runner.cleanup()


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
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
        if self._private and not _is_loopback(request.host):
            return "ask for it by the name localhost or by its address"  # or: rebinding
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc != request.host:
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


def _is_loopback(host: str) -> bool:
    """Of a Host header: what leads here, and to no name of somebody else's."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost":
        return True
    try:
        return ip_address(name).is_loopback
    except ValueError:
        return False


def _is_ours(request: web.Request) -> bool:
    transport = request.transport
    if transport is None:
        return False
    peer, own = (
        transport.get_extra_info("peername"),
        transport.get_extra_info("sockname"),
    )
    return may_look(peer[:2], own[:2])
