"""A local TCP proxy that adds a network's delay to each message, both ways."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeAlias

_CHUNK = 65536
_Pieces: TypeAlias = "queue.SimpleQueue[tuple[float, bytes]]"
"""Due time and bytes of each piece; empty bytes mark the end of the stream."""


@contextlib.contextmanager
def delayed(connect: Callable[[], socket.socket], seconds: float) -> Iterator[int]:
    """Forward a local port to a server, with a delay; yields the port.

    Each message is delivered ``seconds`` after it was sent: half a round trip. Messages
    do not wait for each other, as in a real network.
    """
    listener = socket.create_server(("127.0.0.1", 0))
    threading.Thread(
        target=_accept, args=(listener, connect, seconds), daemon=True
    ).start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()


def _accept(
    listener: socket.socket, connect: Callable[[], socket.socket], seconds: float
) -> None:
    while True:
        try:
            client, _ = listener.accept()
        except OSError:  # closed
            return
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        time.sleep(seconds * 2)  # TCP's handshake takes a round trip
        try:
            server = connect()
        except OSError:
            client.close()
            continue
        for source, target in ((client, server), (server, client)):
            _pipe(source, target, seconds)


def _pipe(source: socket.socket, target: socket.socket, seconds: float) -> None:
    """Start two threads: one stamps each piece on arrival, one delivers it when due."""
    pieces: _Pieces = queue.SimpleQueue()
    threading.Thread(target=_read, args=(source, pieces, seconds), daemon=True).start()
    threading.Thread(target=_write, args=(target, pieces), daemon=True).start()


def _read(source: socket.socket, pieces: _Pieces, seconds: float) -> None:
    piece = b"."
    while piece:
        try:
            piece = source.recv(_CHUNK)
        except OSError:
            piece = b""
        pieces.put((time.perf_counter() + seconds, piece))


def _write(target: socket.socket, pieces: _Pieces) -> None:
    with contextlib.suppress(OSError):
        while True:
            due, piece = pieces.get()
            time.sleep(max(0.0, due - time.perf_counter()))
            if not piece:
                target.shutdown(socket.SHUT_WR)
                return
            target.sendall(piece)
