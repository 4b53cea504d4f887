"""The web server: textual-serve, with the access control that it lacks.

textual-serve starts a dashboard process for each page and forwards bytes between them.
This module checks each request, limits the number of pages, and makes the page work
under any name of the host.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shlex
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from aiohttp import web
from textual_serve.server import Server

from poolwatch.commands.serve import listening
from poolwatch.commands.serve.peers import is_allowed
from poolwatch.errors import UsageError
from poolwatch.runtime.installation import python_path

MAX_PAGES = 8
"""Maximum number of open pages: each runs a process of about 50 MiB."""

_PAGE = Path(__file__).with_name("page")
"""Our own page: textual-serve's has another program's logo, and loads a font from
another host."""
_Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def serve(
    dashboard: Sequence[str], *, host: str, port: int, anyone_may_look: bool
) -> None:
    """Serve the dashboard until SIGINT or SIGTERM.

    Args:
        dashboard: the command with its arguments that each page runs.
        host: a name or address of this machine.
        port: 0 selects a free port.
        anyone_may_look: allow a host that other machines can reach.

    Raises UsageError for a host or port that cannot be used.
    """
    addresses = listening.resolve(host)
    private = all(map(listening.is_loopback, addresses))
    if not private and not anyone_may_look:
        raise UsageError(
            f"{host} can be reached from other machines, and there is no password: "
            "use 127.0.0.1 (with an SSH tunnel), or add --anyone-may-look"
        )
    sockets = listening.listen(addresses, host, port)
    if not private:
        _print(
            f"warning: anyone who can reach {host} sees your statements, call sites "
            "and labels; there is no password"
        )
    # for the dashboards: -P keeps the current directory off their path
    os.environ["PYTHONPATH"] = python_path()
    command = [sys.executable, "-P", "-m", "poolwatch", *dashboard]
    logging.getLogger("textual-serve").addFilter(_is_told)
    asyncio.run(_run(_Server(f"exec {shlex.join(command)}", private), sockets))


async def _run(server: _Server, sockets: list[socket.socket]) -> None:
    runner = web.AppRunner(
        await server.application(), access_log=None, shutdown_timeout=1.0
    )
    await runner.setup()
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        for listener in sockets:
            await web.SockSite(runner, listener).start()
        _print(f"the dashboard is at {_url(sockets[0])} (Ctrl+C to stop)")
        await stopped.wait()
    finally:
        await runner.cleanup()


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def _print(sentence: str) -> None:
    print(f"poolwatch: {sentence}", file=sys.stderr, flush=True)


def _is_told(record: logging.LogRecord) -> bool:
    """Whether a message of textual-serve is news: that a page has gone is none."""
    return not (record.exc_info and isinstance(record.exc_info[1], ConnectionError))


class _Server(Server):
    """Serves the pages and runs a dashboard for each."""

    def __init__(self, command: str, private: bool) -> None:
        super().__init__(command, title="poolwatch", templates_path=_PAGE)
        self._private = private
        """Whether to admit only this user and root: only this machine has access."""
        self._pages = 0

    async def application(self) -> web.Application:
        """Return the application with the access check."""
        application = await self._make_app()
        application.middlewares.append(self._check)
        return application

    async def on_startup(self, app: web.Application) -> None:
        """Override: the inherited method prints the command."""

    @web.middleware
    async def _check(
        self, request: web.Request, handler: _Handler
    ) -> web.StreamResponse:
        """Reject other users, foreign origins and foreign host names."""
        error = self._access_error(request)
        if error:
            raise web.HTTPForbidden(text=f"poolwatch: {error}\n")
        return await handler(request)

    def _access_error(self, request: web.Request) -> str:
        if self._private and not _is_this_machine(request.host):
            return "use the address of this machine, or localhost"
        origin = request.headers.get("Origin")
        if origin is not None and _host_of(origin) != request.host:
            return "a page of another site has no access"
        if self._private and not _is_this_user(request):
            return "only the user who started the server has access"
        return ""

    async def handle_index(self, request: web.Request) -> web.StreamResponse:
        """Return the page, with URLs for the host name of the request."""
        self.public_url = f"http://{request.host}"
        response: web.StreamResponse = await super().handle_index(request)
        response.headers["Content-Security-Policy"] = (
            "default-src 'self' 'unsafe-inline' data:; frame-ancestors 'none'; "
            f"connect-src 'self' ws://{request.host}"
        )
        return response

    async def handle_websocket(self, request: web.Request) -> web.WebSocketResponse:
        """Start a dashboard for a page, up to MAX_PAGES."""
        if self._pages >= MAX_PAGES:
            raise web.HTTPServiceUnavailable(
                text=f"poolwatch: {MAX_PAGES} pages are open already\n"
            )
        self._pages += 1
        try:
            return await super().handle_websocket(request)
        except ConnectionError:  # the page went in the middle of a picture
            raise web.HTTPGone from None
        finally:
            self._pages -= 1


def _is_this_machine(host: str) -> bool:
    """Whether a Host header is a loopback address or localhost.

    Any other name may be an attacker's that resolves here (DNS rebinding).
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


def _is_this_user(request: web.Request) -> bool:
    transport = request.transport
    if transport is None:
        return False
    peer = transport.get_extra_info("peername")
    own = transport.get_extra_info("sockname")
    return is_allowed(peer[:2], own[:2])
