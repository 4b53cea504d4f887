"""Faults of Django projects: connections that no request closes, or not for long."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from zoo.django_project import account_model, get, in_background, serve, serve_asgi
from zoo.django_project import start as django
from zoo.registry import NEVER, POSTGRES, fault

_LEFT_OPEN = ("leaked.orphaned", "leaked.collected")
"""Until the garbage collector has run, and after that."""


# -- threads -----------------------------------------------------------------------


@fault(*_LEFT_OPEN, at="thread_in_view", world=POSTGRES)
def django_thread_never_closes(zoo: Any) -> None:
    """A view starts a thread that queries and ends: Django closes the connection of
    the request's thread only (openedx/xqueue #45, carrotquest/django-clickhouse #25).
    """
    from django.http import HttpResponse

    def count() -> None:
        account_model().objects.count()  # site: thread_in_view

    def view(request: Any) -> Any:
        account_model().objects.count()
        threading.Thread(target=count).start()
        return HttpResponse("begun")

    django(zoo, {"": view})
    get(serve())
    zoo.go_on()


@fault(*_LEFT_OPEN, at="thread_sqlite")
def django_thread_never_closes_sqlite(zoo: Any) -> None:
    """The same without a server, in a management command (nautobot-app-golden-config
    #352, archivematica #304)."""

    def sync_device(number: int) -> None:
        list(account_model().objects.filter(pk=number))  # site: thread_sqlite

    django(zoo)
    threads = [threading.Thread(target=sync_device, args=(n,)) for n in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    zoo.go_on()


@fault(*_LEFT_OPEN, at="executor_per_request", world=POSTGRES)
def django_executor_per_request(zoo: Any) -> None:
    """A view queries in the threads of an executor of its own, which it shuts down
    (django-health-check #242)."""
    from django.http import HttpResponse

    def balance(number: int) -> int:
        account = account_model().objects.get(pk=number)  # site: executor_per_request
        return int(account.balance)

    def view(request: Any) -> Any:
        with ThreadPoolExecutor(2) as executor:
            total = sum(executor.map(balance, [1, 2, 3]))
        return HttpResponse(str(total))

    django(zoo, {"": view})
    get(serve())
    zoo.go_on()


@fault("leaked.abandoned", at="idle_worker_thread", world=POSTGRES)
def django_idle_worker_threads(zoo: Any) -> None:
    """Outside of requests nothing closes the connections of an executor's threads,
    which stay idle (PostHog #57839, DefectDojo #14452)."""

    def job(number: int) -> bool:
        accounts = account_model().objects.filter(pk=number)
        return bool(accounts.exists())  # site: idle_worker_thread

    django(zoo)
    executor = ThreadPoolExecutor(3)
    for number in (1, 2, 3):
        executor.submit(job, number).result()
    zoo.go_on()


# -- persistent connections, where no thread stays -----------------------------------


@fault(*_LEFT_OPEN, at="max_age_asgi", world=POSTGRES)
def django_max_age_under_asgi(zoo: Any) -> None:
    """Under ASGI every request has a thread of its own, which ends with it: a
    connection that CONN_MAX_AGE keeps is never used again (penn-clubs #879, channels
    #871)."""
    from django.http import HttpResponse

    async def view(request: Any) -> Any:
        count = await account_model().objects.acount()  # site: max_age_asgi
        return HttpResponse(str(count))

    django(zoo, {"": view}, CONN_MAX_AGE=600)
    url = serve_asgi()
    for _ in range(3):
        get(url)
    zoo.go_on()


@fault(*_LEFT_OPEN, at="max_age_threads", world=POSTGRES)
def django_max_age_thread_for_each(zoo: Any) -> None:
    """The same under a server that starts a thread for each request (gunicorn #996)."""
    from django.http import HttpResponse

    def view(request: Any) -> Any:
        count = account_model().objects.count()  # site: max_age_threads
        return HttpResponse(str(count))

    django(zoo, {"": view}, CONN_MAX_AGE=None)
    url = serve(a_thread_for_each=True)
    for _ in range(3):
        get(url)
    zoo.go_on()


@fault(*_LEFT_OPEN, at="max_age_gevent", world=POSTGRES)
def django_max_age_gevent(zoo: Any) -> None:
    """The same with a greenlet for each request (gunicorn #996, commcare-cloud
    #2429)."""
    from gevent.monkey import patch_all

    patch_all()
    from django.http import HttpResponse
    from gevent import spawn
    from gevent.pywsgi import WSGIServer

    def view(request: Any) -> Any:
        count = account_model().objects.count()  # site: max_age_gevent
        return HttpResponse(str(count))

    django(zoo, {"": view}, CONN_MAX_AGE=60)
    from django.core.handlers.wsgi import WSGIHandler

    server = WSGIServer(("127.0.0.1", 0), WSGIHandler(), log=None)
    server.start()
    for _ in range(3):
        spawn(get, f"http://127.0.0.1:{server.server_port}/").join()
    zoo.go_on()


# -- held while something else is done -----------------------------------------------


@fault("held_across_io", "idle_in_transaction", at="atomic_http", world=POSTGRES)
def django_atomic_around_http(zoo: Any) -> None:
    """A notification is sent inside of an atomic block (getsentry/sentry #71878,
    Metaculus #2117)."""
    from django.db import transaction
    from django.http import HttpResponse

    def view(request: Any) -> Any:
        with transaction.atomic():
            account_model().objects.filter(pk=1).update(balance=90)  # site: atomic_http
            get(zoo.slow_url)
        return HttpResponse("sent")

    django(zoo, {"": view})
    in_background(get, serve())
    zoo.go_on()


@fault(
    "held_across_io", "long_hold", at="sse_view", bystanders="sse_sleep", world=POSTGRES
)
def django_stream_keeps_connection(zoo: Any) -> None:
    """A stream of events that needs no database any more keeps the connection of the
    check before it until the client goes (PostHog #61509, #66282)."""
    from django.http import StreamingHttpResponse

    def events() -> Iterator[bytes]:
        while True:
            yield b": keep-alive\n\n"
            time.sleep(30)  # site: sse_sleep

    def view(request: Any) -> Any:
        account_model().objects.get(pk=1)  # site: sse_view
        return StreamingHttpResponse(events(), content_type="text/event-stream")

    django(zoo, {"": view})
    in_background(get, serve())
    zoo.go_on()


@fault("held_across_io", at="async_view_http", world=POSTGRES)
def django_async_view_across_http(zoo: Any) -> None:
    """An async view waits for a service after its query: its thread and connection wait
    with it (PostHog #56781)."""
    from django.http import HttpResponse

    async def view(request: Any) -> Any:
        account = await account_model().objects.aget(pk=1)  # site: async_view_http
        await asyncio.sleep(30)
        return HttpResponse(account.owner)

    django(zoo, {"": view})
    in_background(get, serve_asgi())
    zoo.go_on()


@fault("idle_in_transaction", "held_across_io", at="autocommit_off", world=POSTGRES)
def django_autocommit_switched_off(zoo: Any) -> None:
    """A command switches autocommit off, reads, and sleeps: the transaction stays open
    (revel-backend #684)."""
    from django.db import transaction

    django(zoo)
    transaction.set_autocommit(False)
    list(account_model().objects.all())  # site: autocommit_off
    zoo.go_on()


# -- Django's pool -------------------------------------------------------------------

_POOL = {"min_size": 1, "max_size": 2, "timeout": 20}


@fault(
    "pool_deadlock",
    "exhausted",
    at="async_outer",
    also="exhausted nested pool_deadlock undersized",
    bystanders="async_inner",
    world=POSTGRES,
    long_after=NEVER,
)
def django_pool_nested_threads(zoo: Any) -> None:
    """Each async view has a connection of Django's pool, and waits for a thread that
    needs another one (procrastinate #1435, PostHog #57839)."""
    from asgiref.sync import sync_to_async
    from django.db import connection
    from django.http import HttpResponse

    arrived: list[Any] = []
    both = asyncio.Event()

    def owner() -> str:
        try:
            return str(account_model().objects.get(pk=1).owner)  # site: async_inner
        finally:
            connection.close()

    async def view(request: Any) -> Any:
        await account_model().objects.acount()  # site: async_outer
        arrived.append(request)
        if len(arrived) == 2:
            both.set()
        await both.wait()
        return HttpResponse(await sync_to_async(owner, thread_sensitive=False)())

    django(zoo, {"": view}, OPTIONS={"pool": _POOL})
    url = serve_asgi()
    for _ in range(2):
        in_background(get, url)
    zoo.go_on()


@fault(
    *_LEFT_OPEN,
    at="pool_thread",
    also="exhausted",
    world=POSTGRES,
)
def django_pool_loses_slots(zoo: Any) -> None:
    """Threads that end without close() take the slots of Django's pool with them
    (procrastinate #1316)."""

    def job() -> None:
        account_model().objects.count()  # site: pool_thread

    django(zoo, OPTIONS={"pool": _POOL})
    for _ in range(2):
        thread = threading.Thread(target=job)
        thread.start()
        thread.join()
    zoo.go_on()


@fault(
    "leaked.abandoned",
    at="pool_worker",
    also="exhausted",
    bystanders="pool_view",
    world=POSTGRES,
)
def django_pool_idle_workers(zoo: Any) -> None:
    """Idle threads of an executor keep the whole pool, and requests wait for it
    (DefectDojo #14452: connections that are never returned to the pool)."""
    from django.http import HttpResponse

    def job(number: int) -> None:
        list(account_model().objects.filter(pk=number))  # site: pool_worker

    def view(request: Any) -> Any:
        return HttpResponse(str(account_model().objects.count()))  # site: pool_view

    django(zoo, {"": view}, OPTIONS={"pool": _POOL})
    executor = ThreadPoolExecutor(2)
    both = threading.Barrier(2)
    for _ in executor.map(lambda n: (both.wait(), job(n)), [1, 2]):
        pass
    in_background(get, serve())
    zoo.go_on()


# -- processes -----------------------------------------------------------------------


@fault("fork_shared", at="after_fork", also="leaked.orphaned", world=POSTGRES)
def django_connection_of_the_parent(zoo: Any) -> None:
    """A worker that was forked after the first query uses the connection of its parent
    (celery #2453)."""
    django(zoo)
    account_model().objects.count()
    if os.fork() == 0:
        account_model().objects.count()  # site: after_fork
    zoo.go_on()
