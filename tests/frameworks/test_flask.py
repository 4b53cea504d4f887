"""Flask-SQLAlchemy under werkzeug's threads and under gunicorn's workers."""

from __future__ import annotations

import pytest
from helpers import until
from serving import place, places

pytestmark = pytest.mark.processes

FILE = "flask_shop.py"
THREADED = ("flask", "--app", "flask_shop", "run", "--port", "{port}")
GUNICORN = ("gunicorn", "--bind", "127.0.0.1:{port}", "flask_shop:app")
SERVERS = {
    "werkzeug": THREADED,
    "workers": (*GUNICORN, "--workers", "2"),
    "gthread": (*GUNICORN, "--worker-class", "gthread", "--threads", "4"),
}


@pytest.fixture(params=SERVERS)
def shop(serve, request):
    return serve(*SERVERS[request.param])


def test_an_open_request(shop):
    """Two at once, in two threads or in two processes: each with line and label."""
    shop.begin("/orders", "/orders")
    holds = shop.held(2)
    assert places([hold["site"] for hold in holds]) == {place(FILE, "orders", "orders")}
    assert [hold["labels"] for hold in holds] == [{"endpoint": "/orders"}] * 2
    assert until(lambda: [h["verdict"] for h in shop.held(2)] == ["long", "long"])


def test_nothing_is_told_of_a_clean_application(shop):
    """The session goes with the application context, and the label with the request."""
    for _ in range(3):
        assert [r.result(60) for r in shop.begin(*["/"] * 6)] == ["1"] * 6
        assert shop.findings() == []
    until(shop.quiet)


@pytest.mark.parametrize(
    ("path", "marker", "function"),
    [("/raw", "raw", "raw"), ("/session", "session", "own_session")],
)
def test_what_a_request_leaves_behind(shop, path, marker, function):
    """A connection beside the scoped session is nobody's to remove."""
    shop.get(path)
    found = shop.finding("leaked.abandoned", "leaked.orphaned")
    assert places(found["sites"]) == {place(FILE, marker, function)}
    assert "global 'kept' of module flask_shop" in found["proof"]
    (hold,) = shop.holds()
    assert hold["labels"] == {"endpoint": path}


def test_a_thread_of_a_request(shop):
    """It has ended, and so has the request that it worked for."""
    shop.get("/thread")
    found = shop.finding("leaked.orphaned")
    assert places(found["sites"]) == {place(FILE, "mail", "mail")}
    (hold,) = shop.holds()
    assert hold["thread"] == "mail"
