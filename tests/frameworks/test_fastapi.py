"""FastAPI under uvicorn: a session a request, in threads and in tasks."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from helpers import line_of, until
from serving import APPS, place, places

pytestmark = [pytest.mark.slow, pytest.mark.processes]

UVICORN = ("uvicorn", "--port", "{port}", "--log-level", "error")
SYNC, ASYNC = "fastapi_sync.py", "fastapi_async.py"


@pytest.fixture
def shop(serve):
    """Plain ``def`` endpoints on psycopg2, in starlette's threads."""
    return serve(*UVICORN, "fastapi_sync:app")


@pytest.fixture
def async_shop(serve):
    """``async def`` endpoints on asyncpg."""
    return serve(*UVICORN, "fastapi_async:app", driver="asyncpg")


def test_an_open_request_in_a_thread(shop):
    """The line that took the connection, and the label that a middleware gave."""
    shop.begin("/orders", "/stock")
    holds = {hold["labels"]["endpoint"]: hold for hold in shop.held(2)}
    assert places([holds["/orders"]["site"]]) == {place(SYNC, "orders", "orders")}
    # taken by the dependency: its line, while the label says for whom
    assert places([holds["/stock"]["site"]]) == {
        place(SYNC, "connection", "get_connection")
    }
    until(lambda: holds["/orders"]["id"] in shop.in_transaction())


def test_a_slow_request_is_no_leak(shop):
    """Nor one whose connection was taken by another thread than the endpoint's."""
    waiting = shop.begin("/orders", "/stock", "/stock", "/stock")

    def all_judged():
        verdicts = [hold["verdict"] for hold in shop.held(4)]
        return "ok" not in verdicts and verdicts

    assert set(until(all_judged)) == {"long"}
    shop.get("/open")
    for request in waiting:
        request.result(60)
    until(shop.quiet)


def test_what_a_slow_request_is_doing(shop):
    """The endpoint's line: not the middleware's, which waits for the whole request and
    leads to the generator that will close the connection."""
    shop.begin("/stock")
    waiting = f"{SYNC}:{line_of(APPS / SYNC, 'stock')}: waiting"
    until(lambda: waiting in shop.finding("held_across_io")["proof"])
    assert " of label at " not in shop.finding("held_across_io")["proof"]


@pytest.mark.parametrize("kind", ["shop", "async_shop"])
def test_nothing_is_told_of_a_clean_application(kind, request):
    """Requests at once and one after the other, and a look in between."""
    shop = request.getfixturevalue(kind)
    for _ in range(3):
        answers = [r.result(60) for r in shop.begin(*["/"] * 6)]
        assert answers == ['"fine"'] * 6
        assert shop.findings() == []
    until(shop.quiet)


def test_slow_but_honest_work(serve):
    """Streams, background tasks, dependencies whose thread has gone on to others: all
    of it is slow here, and none of it is a leak. What was declared long is fine."""
    shop = serve(*UVICORN, "fastapi_busy:app", driver="psycopg")
    paths = ["/lines", "/async-lines", "/mail", "/mixed", "/idle", "/gather"]
    waiting = shop.begin(*paths, "/lines", "/mixed")
    verdicts = Counter({path: (2 if path == "/gather" else 1) for path in paths})
    verdicts.update(["/lines", "/mixed"])

    def all_judged():
        holds = [(h["labels"]["endpoint"], h["verdict"]) for h in shop.held(10)]
        return len(holds) - 1 == sum(v != "ok" for _, v in holds) and holds

    expected = Counter((path, "long") for path in verdicts.elements())
    expected["lifespan", "ok"] = 1
    assert Counter(until(all_judged)) == expected
    assert not [f for f in shop.findings() if f["kind"].startswith("leaked")]
    shop.get("/open")
    for request in waiting:
        request.result(60)
    (hold,) = shop.held(1)
    assert hold["evidence"][-1].startswith("declared long: listens as long as")
    until(lambda: not shop.findings())


def test_a_dependency_that_does_not_close(shop):
    """Dropped with its request: proven as soon as the garbage is collected."""
    shop.get("/unclosed")
    found = shop.finding("leaked.abandoned", "leaked.collected")
    assert places(found["sites"]) == {place(SYNC, "unclosed", "unclosed")}


def test_a_dependency_that_keeps_its_session(shop):
    """The thread lives on in its pool; the request that took the connection is over."""
    shop.get("/kept")
    found = shop.finding("leaked.abandoned")
    assert places(found["sites"]) == {place(SYNC, "kept", "kept_open")}
    assert "global 'kept' of module fastapi_sync" in found["proof"]
    (hold,) = shop.holds()
    assert hold["labels"] == {"endpoint": "/kept"}


def test_open_requests_in_tasks(async_shop):
    """Each task's own line, and the route's path from a dependency of all."""
    waiting = async_shop.begin("/orders/7", "/orders/8")
    holds = async_shop.held(2)
    assert places([hold["site"] for hold in holds]) == {
        place(ASYNC, "orders", "orders")
    }
    assert [hold["labels"] for hold in holds] == [{"endpoint": "/orders/{number}"}] * 2
    assert len({hold["task"] for hold in holds}) == 2
    async_shop.get("/open")
    for request in waiting:
        request.result(60)
    until(async_shop.quiet)


def test_a_label_reaches_the_threads_of_an_async_application(async_shop):
    """The dependency is a task's; the plain endpoint runs in a thread."""
    assert json.loads(async_shop.get("/report")) == {"endpoint": "/report"}


def test_an_async_dependency_that_does_not_close(async_shop):
    """The task has ended; then the garbage collector ends the connection."""
    async_shop.get("/unclosed")
    found = async_shop.finding("leaked.orphaned", "leaked.collected")
    assert places(found["sites"]) == {place(ASYNC, "unclosed", "unclosed")}


def test_an_async_dependency_that_keeps_its_session(async_shop):
    async_shop.get("/kept")
    found = async_shop.finding("leaked.orphaned")
    assert places(found["sites"]) == {place(ASYNC, "kept", "kept_open")}
    (hold,) = async_shop.holds()
    assert hold["labels"] == {"endpoint": "/kept"}
