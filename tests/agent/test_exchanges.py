"""Viewers beside each other: slow ones cost nobody else anything, and end in time."""

from __future__ import annotations

import socket
import threading
from contextlib import contextmanager, suppress

import pytest
from helpers import until

from poolwatch.agent import exchanges
from poolwatch.agent.server import Server
from poolwatch.protocol import sockets

LARGE = "x" * 2**20
GET = b"GET /large HTTP/1.1\r\n\r\n"


@pytest.fixture
def server(socket_dir):
    released = threading.Event()

    def slow(_):
        released.wait(60)
        return "{}"

    server = Server(
        sockets.new_path(socket_dir),
        quick={"/small": lambda _: "{}", "/large": lambda _: LARGE},
        slow={"/slow": slow},
        idle=lambda: False,
    )
    server.released = released
    server.start()
    yield server
    released.set()
    server.close()


@contextmanager
def viewer(server, sends=b""):
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.connect(str(server.path))
        client.sendall(sends)
        yield client


def is_over(client):
    """Whether the agent has closed the connection, once all was read."""
    with suppress(ConnectionResetError):
        while client.recv(2**20):
            pass
    return True


def test_half_requests_delay_nobody(server, http_get):
    with viewer(server, GET[:9]), viewer(server, GET[:20]), viewer(server):
        assert http_get(server.path, "/small")[0] == 200


def test_a_request_has_one_deadline(server, monkeypatch):
    """However its bytes are spread."""
    monkeypatch.setattr(exchanges, "_REQUEST_S", 0.2)
    with viewer(server) as client:
        over = threading.Event()

        def drip():
            with suppress(OSError):
                while not over.wait(0.02):
                    client.sendall(b"x")

        thread = threading.Thread(target=drip)
        thread.start()
        assert is_over(client)
        over.set()
        thread.join()


def test_an_answer_has_one_deadline(server, http_get, monkeypatch):
    """Also if the viewer takes a byte now and then."""
    monkeypatch.setattr(exchanges, "_ANSWER_S", 0.2)
    with viewer(server, GET) as client:
        assert client.recv(1)
        until(lambda: not (client.recv(1) and server._exchanges))
        assert http_get(server.path, "/small")[0] == 200


def test_answers_that_are_not_read_are_bounded(server, http_get, monkeypatch):
    """The oldest are given up."""
    monkeypatch.setattr(exchanges, "_MAX_UNREAD", 3 * 2**20)
    monkeypatch.setattr(exchanges, "_ANSWER_S", 60.0)
    with viewer(server, GET) as first, viewer(server, GET), viewer(server, GET):
        until(lambda: len(server._exchanges._waiting) == 2)
        with viewer(server, GET) as last:
            assert is_over(first)
            got = b""
            while len(got) < 2**20:
                got += last.recv(2**20)
        assert http_get(server.path, "/large")[0] == 200


def test_a_slow_endpoint_delays_nobody(server, http_get):
    with viewer(server, b"GET /slow HTTP/1.1\r\n\r\n") as client:
        assert http_get(server.path, "/small")[0] == 200
        server.released.set()
        assert client.recv(15) == b"HTTP/1.1 200 OK"


def test_viewers_outlast_a_fork(server):
    """The thread is stopped meanwhile; what has come by then is answered."""
    with viewer(server, GET[:9]) as client:
        until(lambda: server._exchanges)
        server.pause()
        client.sendall(GET[9:])
        server.start()
        assert client.recv(15) == b"HTTP/1.1 200 OK"
