"""The webhook: what it sends, and that a bad server delays nothing."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import fakes
import pytest
from helpers import until

from poolwatch.diagnosis.incidents import Incidents
from poolwatch.errors import UsageError
from poolwatch.model import Snapshot
from poolwatch.sidecar import webhook as module
from poolwatch.sidecar.looks import Look
from poolwatch.sidecar.webhook import Webhook

DOCUMENT = [
    *("id", "host", "pid", "process", "pool", "kind", "severity"),
    *("started_at", "last_seen_at", "ended_at", "text", "proof", "remedy"),
    *("sites", "snapshot"),
]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr(module, "_PAUSE_S", 0.0)


class Server:
    """Keeps what it gets; answers with ``status``."""

    def __init__(self, *statuses):
        self.got = []
        statuses = list(statuses) or [204]

        class Handler(BaseHTTPRequestHandler):
            def do_POST(handler):  # noqa: N805
                length = int(handler.headers["Content-Length"])
                self.got.append(json.loads(handler.rfile.read(length)))
                status = statuses.pop(0) if len(statuses) > 1 else statuses[0]
                handler.send_response(status)
                handler.send_header("Location", "/elsewhere")
                handler.send_header("Content-Length", "0")
                handler.end_headers()

            def log_message(self, *args): ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/hook?key=s3cret"
        threading.Thread(target=self.http.serve_forever, args=(0.01,)).start()


@contextmanager
def serving(*statuses):
    server = Server(*statuses)
    yield server
    server.http.shutdown()
    server.http.server_close()


def looks(*kinds):
    """Looks at a process whose findings of these kinds come and then go."""
    incidents = Incidents()
    sites = (fakes.frame("/srv/app/orders.py:55", "load"),)
    found = tuple(fakes.finding(kind, sites=sites) for kind in kinds)
    for number in range(5):
        seen = fakes.process(findings=found if number < 2 else ())
        snapshot = Snapshot((seen,))
        yield Look(number, 0.0, snapshot, None, incidents.update(snapshot, number))


def test_one_post_when_it_begins_and_one_when_it_ends():
    with serving() as server:
        hook = Webhook(server.url)
        for look in looks("long_hold"):
            hook.take(look)
        began, ended = until(lambda: server.got[1:] and server.got)
        hook.close()
    assert list(began) == ["event", *DOCUMENT]
    assert (began["event"], began["ended_at"]) == ("began", None)
    assert began["sites"] == [
        {"file": "/srv/app/orders.py", "line": 55, "function": "load"}
    ]
    assert (ended["event"], ended["id"]) == ("ended", began["id"])
    assert ended["ended_at"] == ended["last_seen_at"]


def logged(caplog) -> list[str]:
    """The sidecar's own messages; threads of other tests may still log theirs."""
    records = [each for each in caplog.records if each.name == "poolwatch.sidecar"]
    return [each.getMessage() for each in records]


@pytest.mark.parametrize("status", [500, 404, 302])
def test_a_server_that_refuses_is_asked_three_times(status, caplog):
    with serving(status) as server:
        hook = Webhook(server.url)
        for look in looks("long_hold"):
            hook.take(look)
        until(lambda: len(logged(caplog)) == 2)  # one that began, one that ended
        hook.close()
    assert [each["event"] for each in server.got] == ["began"] * 3 + ["ended"] * 3
    said = "".join(logged(caplog))
    assert f"it answered {status}" in said
    assert "s3cret" not in said
    assert "127.0.0.1" not in said


def test_a_second_try_may_succeed(caplog):
    with serving(503, 204) as server:
        hook = Webhook(server.url)
        for look in looks("long_hold"):
            hook.take(look)
        until(lambda: len(server.got) == 3)
        hook.close()
    assert not logged(caplog)


def test_a_surprise_costs_one_post_and_not_the_others(caplog, monkeypatch):
    send, fails = Webhook._try, [RuntimeError("can't start new thread")]

    def once(self, body):
        if fails:
            raise fails.pop()
        return send(self, body)

    monkeypatch.setattr(Webhook, "_try", once)
    with serving() as server:
        hook = Webhook(server.url)
        for look in looks("long_hold"):
            hook.take(look)
        until(lambda: [each["event"] for each in server.got] == ["ended"])
        hook.close()
    assert logged(caplog) == ["an incident was not sent to the webhook: RuntimeError"]


def trickle(listener):
    """Answer each request byte by byte, without an end."""
    with suppress(OSError):
        while True:
            args = listener.accept()[:1]
            threading.Thread(target=drip, args=args, daemon=True).start()


def drip(peer):
    with suppress(OSError), peer:
        peer.sendall(b"HTTP/1.1 200 OK\r\nX: ")
        while True:
            peer.sendall(b"x")
            time.sleep(0.01)


@pytest.mark.parametrize("server", [None, trickle])
def test_a_server_that_hangs_is_given_up(server, caplog):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        if server is not None:
            threading.Thread(target=server, args=(listener,), daemon=True).start()
        hook = Webhook(f"http://127.0.0.1:{listener.getsockname()[1]}/", try_s=0.1)
        for look in looks("long_hold"):
            hook.take(look)
        until(lambda: len(logged(caplog)) == 2)
        hook.close()
        listener.shutdown(socket.SHUT_RDWR)
    assert "no answer within 0.1 s" in "".join(logged(caplog))


def test_what_it_cannot_send_in_time_is_dropped(caplog, monkeypatch):
    monkeypatch.setattr(module, "_MAX_WAITING", 2)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        hook = Webhook(f"http://127.0.0.1:{port}/")
        for look in looks("long_hold", "held_across_io", "ghost", "slow_query"):
            hook.take(look)
        hook.close()
    assert "".join(logged(caplog)).count("slower than the incidents") == 1


@pytest.mark.parametrize(
    "url",
    [
        *("", "hook", "ftp://h/x", "http://", "http:///x", "https://h:99999/"),
        *("http://h/a b", "http://h/\n", "http://[h/", "file:///etc/passwd"),
        *("https://user:s3cret@h/", "http://hö/"),
    ],
)
def test_a_url_that_cannot_be_used(url):
    with pytest.raises(UsageError) as caught:
        Webhook(url)
    assert "--webhook" in str(caught.value)
    assert "s3cret" not in str(caught.value)
