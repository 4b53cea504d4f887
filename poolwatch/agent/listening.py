"""What the agent's thread waits on: its listening socket, and a call to wake up."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path

_BACKLOG = 128
"""Connections that the kernel keeps until they are accepted."""


class Listening:
    """A listening socket (mode 0600) and the selector for it and its connections."""

    def __init__(self, path: Path) -> None:
        """Listen on ``path``; raises OSError with nothing left open."""
        self._path = path
        with contextlib.ExitStack() as opened:
            self.selector = opened.enter_context(selectors.DefaultSelector())
            self._woken, self._waker = socket.socketpair()
            for each in (self._woken, self._waker):
                opened.enter_context(each)
                each.setblocking(False)
            self._listener = opened.enter_context(_listen(path))
            self.selector.register(self._woken, selectors.EVENT_READ)
            self.selector.register(self._listener, selectors.EVENT_READ)
            opened.pop_all()

    def wake(self) -> None:
        """Interrupt the selector's select()."""
        with contextlib.suppress(OSError):  # the pipe is full: it is awake already
            self._waker.send(b".")

    def accept(self, ready: object) -> Iterator[socket.socket]:
        """Yield the new connections if ``ready`` is the listening socket.

        A peer that is not trusted is refused.
        """
        if ready is self._woken:
            with contextlib.suppress(OSError):
                self._woken.recv(4096)
        if ready is not self._listener:
            return
        for _ in range(_BACKLOG):
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:  # there is no more
                return
            except OSError:  # out of file descriptors
                time.sleep(0.1)
                return
            if _is_trusted(connection):
                yield connection
            else:
                connection.close()

    def mark(self) -> bool:
        """Set the times of the socket file to now; False if it is not there any more.

        They tell a viewer that comes later since when the process is silent.
        """
        try:
            os.utime(self._path, follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError:
            pass  # the file system is read-only by now
        return True

    def listen_again(self) -> None:
        """Make the socket again, because its file was removed; raises OSError."""
        listener = _listen(self._path)
        old, self._listener = self._listener, listener
        self.selector.unregister(old)
        old.close()
        self.selector.register(listener, selectors.EVENT_READ)

    def close(self) -> None:
        """Close everything but the connections."""
        for each in (self._listener, self._woken, self._waker, self.selector):
            each.close()


def _listen(path: Path) -> socket.socket:
    """Return a socket that listens on ``path``, mode 0600; raises OSError."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    # A temporary name until it listens: viewers remove sockets that refuse them.
    temporary = path.with_suffix(".tmp")
    try:
        listener.bind(os.fspath(temporary))
        temporary.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        temporary.rename(path)
    except OSError:
        listener.close()
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    return listener


def _is_trusted(connection: socket.socket) -> bool:
    """Whether the peer runs as the same user, or as root."""
    if sys.platform != "linux":
        return True  # the directory is 0700 and the socket 0600
    try:
        credentials = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
        )
    except OSError:
        return False
    uid = struct.unpack("3i", credentials)[1]
    return uid in (os.getuid(), 0)
