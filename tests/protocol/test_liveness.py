"""What the kernel says of a process that does not answer."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from poolwatch.client.client import Client
from poolwatch.protocol import liveness
from poolwatch.protocol.liveness import Peer

pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc is Linux's"),
]

LISTEN = """
import os, socket, sys, threading, ctypes
s = socket.socket(socket.AF_UNIX)
name = f"{sys.argv[1]}/{os.getpid()}-0a"
s.bind(name + ".tmp")
s.listen(1)
os.rename(name + ".tmp", name + ".sock")
print("ready", flush=True)
if "main thread ends" in sys.argv:
    threading.Thread(target=sys.stdin.read).start()
    ctypes.CDLL(None).pthread_exit(None)
sys.stdin.read()
"""


@pytest.fixture
def listening(tmp_path):
    """Start a process that listens and never accepts; returns it and its socket."""
    started = []

    def start(*more):
        directory = tmp_path / "sockets"
        directory.mkdir(mode=0o700, exist_ok=True)
        process = subprocess.Popen(
            [sys.executable, "-c", LISTEN, str(directory), *more],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "ready\n"
        return process, directory / f"{process.pid}-0a.sock"

    yield start
    for process in started:
        process.send_signal(signal.SIGCONT)
        process.kill()
        process.communicate()


def connected(path):
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(str(path))
        return liveness.listener(connection)


def becomes(peer, state):
    deadline = time.monotonic() + 10
    while liveness.state(peer) != state:
        assert time.monotonic() < deadline, liveness.state(peer)
        time.sleep(0.01)


def test_running_stopped_ended(listening):
    process, path = listening()
    peer = connected(path)
    assert peer is not None
    assert peer.pid == process.pid
    becomes(peer, "running")
    process.send_signal(signal.SIGSTOP)
    becomes(peer, "stopped")
    process.send_signal(signal.SIGCONT)
    becomes(peer, "running")
    process.kill()
    becomes(peer, "ended")  # a zombie
    process.wait()
    assert liveness.state(peer) == "ended"


def test_a_reused_pid(listening):
    _, path = listening()
    peer = connected(path)
    assert liveness.state(replace(peer, started=peer.started - 1)) == "ended"


def test_a_main_thread_that_has_ended_before_the_others(listening):
    process, path = listening("main thread ends")
    peer = connected(path)
    deadline = time.monotonic() + 10
    while ") Z " not in Path(f"/proc/{process.pid}/stat").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert liveness.state(peer) == "running"


def test_a_process_that_cannot_be_seen():
    """Like pid 1 for a user without permission."""
    assert liveness.state(Peer(2**22 + 1, 1)) == "ended"
    assert liveness.process_with_socket(Path("/nowhere"), 1) is None


def test_the_owner_of_a_socket_whose_queue_is_full(listening):
    process, path = listening()
    crowd = []
    try:
        for _ in range(8):
            connection = socket.socket(socket.AF_UNIX)
            connection.setblocking(False)
            crowd.append(connection)
            try:
                connection.connect(str(path))
            except BlockingIOError:
                break
        else:
            pytest.fail("the queue has no end")
        (address,) = Client(path.parent).agents()
        assert address.peer == liveness.process_with_socket(path, process.pid)
        assert address.peer.pid == process.pid
        other = path.with_name(f"{os.getpid()}-0a.sock")
        assert liveness.process_with_socket(other, os.getpid()) is None
    finally:
        for connection in crowd:
            connection.close()


def test_a_removed_socket_still_has_its_listener(listening):
    process, path = listening()
    peer = connected(path)
    path.unlink()
    assert liveness.listens(peer, path)
    process.kill()
    process.wait()
    assert not liveness.listens(peer, path)


def test_a_socket_name_with_a_line_end_is_not_a_listener(listening):
    """Any user can bind such a name, and the kernel lists it."""
    process, path = listening()
    peer = liveness.process_with_socket(path, process.pid)
    with socket.socket(socket.AF_UNIX) as strange:
        strange.bind(f"\0x\na b c flags e f g {path.name}")
        strange.listen(1)
        assert liveness.process_with_socket(path, process.pid) == peer
        assert liveness.listens(peer, path)
        assert not liveness.listens(peer, path.with_name("other.sock"))
