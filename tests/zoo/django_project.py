"""A small Django project, and servers for it: what the cases of Django have in common.

``start`` is called before anything else is imported from here: models need settings.
"""

from __future__ import annotations

import asyncio
import threading
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from socketserver import ThreadingMixIn
from types import ModuleType
from typing import Any
from urllib.parse import urlsplit
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import poolwatch


def start(zoo: Any, urls: dict[str, Any] | None = None, **database: Any) -> None:
    """Instrument everything, and configure Django with one database and these views."""
    poolwatch.instrument(long_after=zoo.long_after)
    import django
    from django.conf import settings
    from django.urls import path

    urlconf = ModuleType("zoo_urls")
    urlconf.urlpatterns = [path(name, view) for name, view in (urls or {}).items()]  # type: ignore[attr-defined]
    settings.configure(
        ALLOWED_HOSTS=["*"],
        DATABASES={"default": _database(zoo) | database},
        ROOT_URLCONF=urlconf,
        SECRET_KEY="zoo",
        USE_TZ=True,
    )
    django.setup()


def _database(zoo: Any) -> dict[str, Any]:
    if zoo.file is not None:
        return {"ENGINE": "django.db.backends.sqlite3", "NAME": str(zoo.file)}
    url = urlsplit(zoo.dsn)
    query = dict(part.split("=") for part in url.query.split("&") if part)
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.path.strip("/"),
        "USER": url.username or query.get("user", ""),
        "PASSWORD": url.password or "",
        "HOST": url.hostname or query.get("host", "").replace("%2F", "/"),
        "PORT": str(url.port or query.get("port", "")),
    }


def account_model() -> Any:
    """The model of the accounts; made once."""
    from django.apps import apps
    from django.db import models

    if "accounts" in apps.all_models["shop"]:
        return apps.all_models["shop"]["accounts"]

    class Accounts(models.Model):
        owner = models.TextField()
        balance = models.IntegerField()

        class Meta:
            app_label = "shop"
            db_table = "accounts"
            managed = False

    return Accounts


class _Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        pass


class _ThreadForEach(ThreadingMixIn, WSGIServer):
    """Starts a thread for each request, as Django's own development server does."""

    daemon_threads = True


class _FixedThreads(WSGIServer):
    """Serves in four threads that stay, as most servers do."""

    workers = ThreadPoolExecutor(4, "server")

    def process_request(self, request: Any, client_address: Any) -> None:
        self.workers.submit(self._serve, request, client_address)

    def _serve(self, request: Any, client_address: Any) -> None:
        self.finish_request(request, client_address)
        self.shutdown_request(request)


def serve(*, a_thread_for_each: bool = False) -> str:
    """Serve the project by WSGI; returns the URL."""
    from django.core.handlers.wsgi import WSGIHandler

    server = make_server(
        "127.0.0.1",
        0,
        WSGIHandler(),
        _ThreadForEach if a_thread_for_each else _FixedThreads,
        _Quiet,
    )
    threading.Thread(target=server.serve_forever, name="server", daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}/"


def serve_asgi() -> str:
    """Serve the project by ASGI, under uvicorn; returns the URL."""
    import uvicorn
    from django.core.handlers.asgi import ASGIHandler

    config = uvicorn.Config(ASGIHandler(), port=0, log_level="error", lifespan="off")
    server = uvicorn.Server(config)
    server.install_signal_handlers = lambda: None  # type: ignore[attr-defined]
    threading.Thread(
        target=lambda: asyncio.run(server.serve()), name="uvicorn", daemon=True
    ).start()
    while not server.started:
        time.sleep(0.01)
    return f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"


def get(url: str) -> bytes:
    """Make one request."""
    with urllib.request.urlopen(url, timeout=60) as answer:
        return bytes(answer.read())


def in_background(call: Callable[..., Any], *args: Any, forever: bool = False) -> None:
    """Call it in a thread of its own, again and again with ``forever``."""

    def run() -> None:
        with suppress(OSError):
            call(*args)
        while forever:
            with suppress(OSError):
                call(*args)
            time.sleep(0.005)

    threading.Thread(target=run, name="client", daemon=True).start()
