"""Finds out from the kernel whether an unresponsive process is alive.

A pid proves nothing: it may be reused, or mean another process in another container. So
a socket's process is the one that the kernel reports as its listener, together with its
start time. Unknown is None, never a guess.
"""

from __future__ import annotations

import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

State = Literal["running", "stopped", "ended"]

_PROC = Path("/proc")
_LISTENS = "00010000"
"""Flags of a listening socket in ``/proc/net/unix``. Compared as text: a socket name
may contain a newline, and then the next line has arbitrary fields.
"""
_STOPPED = "Tt"
_ENDED = "ZXx"


@dataclass(frozen=True, slots=True)
class Peer:
    """One process, distinguished by its start time from others with the same pid."""

    pid: int
    """As seen from this process."""
    started: int
    """In clock ticks since the boot of the machine."""


def listener(connection: socket.socket) -> Peer | None:
    """Return the process that listens at the other end of a Unix socket."""
    if sys.platform != "linux":
        return None
    try:
        packed = connection.getsockopt(
            socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
        )
    except OSError:
        return None
    pid: int = struct.unpack("3i", packed)[0]
    return peer(pid) if pid > 0 else None  # 0: in a pid namespace we cannot see


def process_with_socket(path: Path, pid: int) -> Peer | None:
    """Return the process ``pid`` if it has the socket at ``path`` open.

    For a socket whose connection queue is full, so that listener() cannot be asked.
    """
    inode = _inode(path, pid)
    if inode is None:
        return None
    wanted = f"socket:[{inode}]"
    try:
        files = list((_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return None
    return peer(pid) if any(_target(file) == wanted for file in files) else None


def sockets_of(pid: int) -> Iterator[Path]:
    """Yield the paths that a process has given to the Unix sockets it listens at."""
    try:
        files = list((_PROC / str(pid) / "fd").iterdir())
    except OSError:
        return
    inodes = {_target(file) for file in files}
    for inode, bound in _listening(_PROC / str(pid)):
        if f"socket:[{inode}]" in inodes:
            yield Path(bound)


def listens(peer: Peer, path: Path) -> bool:
    """Whether a process listens at ``path``, even if the file has been removed."""
    return _inode(path, peer.pid) is not None


def sockets_without_file(directory: Path) -> Iterator[Path]:
    """Yield the paths in a directory at which somebody listens, but whose file is gone.

    They end in ``.sock``, whatever name the socket was bound to.
    """
    for _, bound in _listening(_PROC):
        path = Path(bound).with_suffix(".sock")
        if path.parent == directory and not path.exists() and not Path(bound).exists():
            yield path


def state(peer: Peer) -> State | None:
    """Return the state of a process; None if it cannot be read."""
    try:
        letter, started, threads = _stat(peer.pid)
    except (FileNotFoundError, ProcessLookupError):
        return "ended"
    except (OSError, ValueError, IndexError):
        return None
    # the main thread may end before the others: such a process is still running
    if started != peer.started or (letter in _ENDED and threads <= 1):
        return "ended"
    return "stopped" if letter in _STOPPED else "running"


def peer(pid: int) -> Peer | None:
    """Return the running process of a pid; None if there is none."""
    try:
        return Peer(pid, _stat(pid)[1])
    except (OSError, ValueError, IndexError):
        return None


def _stat(pid: int) -> tuple[str, int, int]:
    """Return state, start time and number of threads: see proc(5)."""
    text = (_PROC / str(pid) / "stat").read_text("utf-8", "replace")
    fields = text.rpartition(")")[2].split()
    return fields[0], int(fields[19]), int(fields[17])


def _inode(path: Path, pid: int) -> str | None:
    """Return the inode of the listening socket that was bound to ``path``.

    The lookup is in the network namespace of the process ``pid``.
    """
    # the suffix is not compared: the agent binds a temporary name and renames it
    found = (i for i, at in _listening(_PROC / str(pid)) if Path(at).stem == path.stem)
    return next(found, None)


def _listening(process: Path) -> Iterator[tuple[str, str]]:
    """Yield inode and path of the sockets that listen in a process's namespace."""
    try:
        text = (process / "net/unix").read_text("utf-8", "replace")
    except OSError:
        return
    for line in text.splitlines()[1:]:
        # Num RefCount Protocol Flags Type St Inode Path
        fields = line.split(None, 7)
        if len(fields) == 8 and fields[3] == _LISTENS:
            yield fields[6], fields[7]


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""
