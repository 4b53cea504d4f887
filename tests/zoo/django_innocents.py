"""Honest Django projects that look like the faults."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from zoo.django_project import account_model, get, in_background, serve, serve_asgi
from zoo.django_project import start as django
from zoo.registry import POSTGRES, innocent

_SLOW = "SELECT pg_sleep(0.05)"


def _slow_query() -> None:
    from django.db import connection

    with connection.cursor() as cursor:
        cursor.execute(_SLOW)


@innocent(world=POSTGRES)
def django_plain_views(zoo: Any) -> None:
    """Requests in threads of their own; Django closes each connection."""
    from django.http import HttpResponse

    def view(request: Any) -> Any:
        _slow_query()
        return HttpResponse(str(account_model().objects.count()))

    django(zoo, {"": view})
    url = serve(a_thread_for_each=True)
    for _ in range(3):
        in_background(get, url, forever=True)
    zoo.go_on()


@innocent(world=POSTGRES, long_after=0.3, seen=0)
def django_persistent_connections(zoo: Any) -> None:
    """CONN_MAX_AGE with threads that stay: between two requests the connections are
    idle, not held (what DefectDojo #14452 sets)."""
    from django.http import HttpResponse

    def view(request: Any) -> Any:
        return HttpResponse(str(account_model().objects.count()))

    django(zoo, {"": view}, CONN_MAX_AGE=300)
    url = serve()
    for _ in range(8):
        get(url)
    zoo.go_on()


@innocent(world=POSTGRES)
def django_streamed_queryset(zoo: Any) -> None:
    """A long export reads rows from a server-side cursor, for a client that is slow
    (unlike PostHog #61509, it needs them)."""
    from django.http import StreamingHttpResponse

    def rows() -> Iterator[bytes]:
        accounts = account_model().objects.order_by("pk")
        for account in accounts.iterator(chunk_size=1):
            yield f"{account.pk},{account.owner}\n".encode()
            time.sleep(0.5)

    def view(request: Any) -> Any:
        return StreamingHttpResponse(rows(), content_type="text/csv")

    django(zoo, {"": view})
    in_background(get, serve(), forever=True)
    zoo.go_on()


@innocent(world=POSTGRES)
def django_async_views(zoo: Any) -> None:
    """Async views with the async ORM and with sync_to_async, connections closed at the
    end of each request, as the documentation says (unlike penn-clubs #879)."""
    from asgiref.sync import sync_to_async
    from django.http import HttpResponse

    async def view(request: Any) -> Any:
        await sync_to_async(_slow_query)()
        account = await account_model().objects.aget(pk=1)
        return HttpResponse(account.owner)

    django(zoo, {"": view})
    url = serve_asgi()
    for _ in range(3):
        in_background(get, url, forever=True)
    zoo.go_on()


@innocent(world=POSTGRES, long_after=0.3, seen=0)
def django_worker_that_closes(zoo: Any) -> None:
    """Jobs between close_old_connections(), in threads that stay (threadmill #43,
    DefectDojo #14452)."""
    from django.db import close_old_connections

    def job(number: int) -> None:
        close_old_connections()
        try:
            list(account_model().objects.filter(pk=number))
        finally:
            close_old_connections()

    django(zoo)
    executor = ThreadPoolExecutor(2)
    list(executor.map(job, range(8)))
    zoo.go_on()


@innocent(world=POSTGRES, long_after=0.3)
def django_command_between_rounds(zoo: Any) -> None:
    """A command that polls keeps the connection of its thread between two rounds; the
    next one uses it (django #14082: outside of requests that is up to the program)."""

    def poll() -> None:
        list(account_model().objects.filter(balance__lt=0))

    django(zoo)
    while True:
        poll()
        time.sleep(2)


@innocent(world=POSTGRES, long_after=0.3, seen=0)
def django_thread_that_closes(zoo: Any) -> None:
    """Threads of a view close their connections (openedx/xqueue #45, as fixed)."""
    from django.db import connections
    from django.http import HttpResponse

    def count() -> None:
        try:
            account_model().objects.count()
        finally:
            connections.close_all()

    def view(request: Any) -> Any:
        threading.Thread(target=count).start()
        return HttpResponse("begun")

    django(zoo, {"": view})
    url = serve(a_thread_for_each=True)
    for _ in range(5):
        get(url)
    zoo.go_on()


@innocent(world=POSTGRES)
def django_notification_on_commit(zoo: Any) -> None:
    """The notification waits for the end of the transaction (PostHog #58219)."""
    from django.db import transaction
    from django.http import HttpResponse

    def view(request: Any) -> Any:
        with transaction.atomic():
            account_model().objects.filter(pk=1).update(balance=90)
            transaction.on_commit(lambda: time.sleep(0.3))
        return HttpResponse("sent")

    django(zoo, {"": view})
    in_background(get, serve(), forever=True)
    zoo.go_on()


@innocent(world=POSTGRES)
def django_view_calls_a_service(zoo: Any) -> None:
    """A view asks a service after its query, outside of a transaction: the connection
    is its own thread's, and goes with the request."""
    from django.http import HttpResponse

    def view(request: Any) -> Any:
        account_model().objects.get(pk=1)
        time.sleep(0.4)
        return HttpResponse("done")

    django(zoo, {"": view})
    url = serve()
    for _ in range(4):
        in_background(get, url, forever=True)
    zoo.go_on()


@innocent(world=POSTGRES)
def django_pool_in_short_requests(zoo: Any) -> None:
    """Django's pool, with enough connections for the threads of the server and one
    more that closes its connection after each round."""
    from django.http import HttpResponse

    def view(request: Any) -> Any:
        return HttpResponse(str(account_model().objects.count()))

    pool = {"min_size": 1, "max_size": 6, "timeout": 10}
    django(zoo, {"": view}, OPTIONS={"pool": pool})
    url = serve()
    for _ in range(3):
        in_background(get, url, forever=True)
    in_background(_slow_for_ever)
    zoo.go_on()


def _slow_for_ever() -> None:
    from django.db import close_old_connections

    while True:
        _slow_query()
        close_old_connections()
        time.sleep(0.01)


@innocent(world=POSTGRES, long_after=0.3)
def django_thread_at_work(zoo: Any) -> None:
    """A consumer waits for messages, in a thread that has a connection and no end."""
    from queue import Queue

    messages: Queue[int] = Queue()

    def consume() -> None:
        while True:
            handle(messages.get())

    def handle(number: int) -> None:
        list(account_model().objects.filter(pk=number))

    django(zoo)
    threading.Thread(target=consume, name="consumer", daemon=True).start()
    messages.put(1)
    zoo.go_on()


@innocent(world=POSTGRES)
def django_two_databases(zoo: Any) -> None:
    """A view reads from the replica while it has a connection to the primary."""
    from django.db import connections
    from django.http import HttpResponse

    def view(request: Any) -> Any:
        account_model().objects.get(pk=1)
        with connections["replica"].cursor() as cursor:
            cursor.execute(_SLOW)
        return HttpResponse("done")

    django(zoo, {"": view})
    connections.settings["replica"] = connections.settings["default"].copy()
    url = serve()
    for _ in range(3):
        in_background(get, url, forever=True)
    zoo.go_on()


@innocent(seen=0)
def django_async_shell(zoo: Any) -> None:
    """An async program without requests: asgiref's one thread keeps its connection."""
    import asyncio

    django(zoo)

    async def program() -> None:
        while True:
            await account_model().objects.acount()
            await asyncio.sleep(0.5)

    asyncio.run(program())
