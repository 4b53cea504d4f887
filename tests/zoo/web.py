"""Real web servers for the zoo, in threads, and clients who do not give up."""

from __future__ import annotations

import threading
import time
import urllib.request
from contextlib import suppress
from typing import Any


def start(target: Any, *arguments: Any) -> threading.Thread:
    """Run something in a daemon thread."""
    thread = threading.Thread(target=target, args=arguments, daemon=True)
    thread.start()
    return thread


def serve(app: Any) -> str:
    """Serve an ASGI application with uvicorn; return its address."""
    import uvicorn

    server = uvicorn.Server(
        uvicorn.Config(app, port=0, log_level="critical", lifespan="on")
    )
    start(server.run)
    while not server.started:
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    return f"http://127.0.0.1:{port}"


def visit(address: str, clients: int, *, again: bool = False) -> None:
    """Ask for a page, with several clients at once; again and again on demand."""

    def client() -> None:
        while True:
            with suppress(OSError), urllib.request.urlopen(address, timeout=60) as page:
                page.read()
            if not again:
                return

    for _ in range(clients):
        start(client)
