"""Containers: process and network namespaces apart, one directory mounted in each."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from contextlib import ExitStack

import pytest
from fix_processes import ROOT, first_process_in
from helpers import LONG_S, stopped, until

_AS_ROOT = [] if os.getuid() == 0 else ["--user", "--map-root-user"]
_INSIDE = """
hostname "$0" && mount --bind "$1" "$2" && export POOLWATCH_DIR=$2/sockets || exit 1
shift 2
exec "$@"
"""
CONTAINER = [
    "unshare", *_AS_ROOT, "--pid", "--fork", "--kill-child", "--mount-proc", "--net",
    "--uts", "--mount", "sh", "-c", _INSIDE,
]  # fmt: skip
"""Takes a host name, the shared directory, where to mount it, and a command."""

APP = """
import os, sys, poolwatch
from sqlalchemy.pool import QueuePool
from helpers import Driver
pool = QueuePool(Driver)
poolwatch.instrument(pool, name=sys.argv[1])
held = pool.connect()
print("ready", flush=True)
sys.stdin.read()
"""
VIEWER = """
import json, sys
from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
source = LiveSource(Client(patience_s=1.0), environ={})
for _ in sys.stdin:
    snapshot = source.snapshot()
    found = {each.host: each.pid for each in snapshot.processes}
    lost = [[u.pid, u.host, u.why, u.alive] for u in snapshot.unreachable]
    print(json.dumps([found, lost]), flush=True)
"""


def _permitted() -> bool:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        return False
    command = [*CONTAINER, "there", "/tmp", "/tmp", "true"]
    return subprocess.run(command, capture_output=True, check=False).returncode == 0


pytestmark = [
    pytest.mark.processes,
    pytest.mark.skipif(not _permitted(), reason="needs unshare and mount"),
]


@pytest.fixture
def container(socket_dir, tmp_path):
    """Run a command in a container of this name; returns the process of unshare."""
    shared = socket_dir / "volume"
    shared.mkdir()
    shared.chmod(0o777)  # like an emptyDir of Kubernetes
    path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    with ExitStack() as ends:

        def start(name, *command):
            mounted = socket_dir / name
            mounted.mkdir(exist_ok=True)
            process = subprocess.Popen(
                [*CONTAINER, name, str(shared), str(mounted), sys.executable, *command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": path},
            )
            ends.enter_context(process)
            ends.callback(process.kill)
            return process

        start.volume = shared
        yield start


@pytest.fixture
def two_pods(container):
    """Two applications on two hosts, both with pid 1."""
    pods = [container(name, "-c", APP, name) for name in ("pod-a", "pod-b")]
    for pod in pods:
        assert pod.stdout.readline() == "ready\n", pod.stderr.read()
    return pods


def test_a_viewer_in_a_third_container(two_pods, container):
    """Processes of the same pid are told apart; a probe finds nothing wrong."""
    viewer = container("viewer", "-m", "poolwatch", "ps", "--json")
    out, err = viewer.communicate(timeout=LONG_S)
    assert viewer.returncode == 0, err
    processes = json.loads(out)["processes"]
    assert {(each["host"], each["pid"]) for each in processes} == {
        ("pod-a", 1),
        ("pod-b", 1),
    }
    assert {each["pools"][0]["name"] for each in processes} == {"pod-a", "pod-b"}
    probe = container("probe", "-m", "poolwatch", "check")
    assert probe.communicate(timeout=LONG_S) == ("", "")
    assert probe.returncode == 0


def test_two_containers_of_one_host_at_the_same_moment(container):
    """With the same host and pid, the time of the start tells them apart."""
    pods = [container("pod", "-c", APP, name) for name in ("web", "worker")]
    for pod in pods:
        assert pod.stdout.readline() == "ready\n", pod.stderr.read()
    out, _ = container("viewer", "-m", "poolwatch", "ps", "--json").communicate()
    found = json.loads(out)["processes"]
    assert {each["pools"][0]["name"] for each in found} == {"web", "worker"}
    assert len({(each["host"], each["pid"]) for each in found}) == 1
    assert len({each["started_at"] for each in found}) == 2


def test_what_cannot_be_seen_is_unknown(two_pods, container):
    """A process that stops answering is named with its host; whether it is alive only
    the kernel of its own container says. One that was killed leaves no socket.
    """
    viewer = container("viewer", "-c", VIEWER)

    def look():
        viewer.stdin.write("\n")
        viewer.stdin.flush()
        return json.loads(viewer.stdout.readline())

    until(lambda: look() == [{"pod-a": 1, "pod-b": 1}, []])
    first = first_process_in(two_pods[0])
    silent = [1, "pod-a", "it does not answer in time", None]
    with stopped(first):
        assert look() == [{"pod-b": 1}, [silent]]
    until(lambda: look() == [{"pod-a": 1, "pod-b": 1}, []])
    os.kill(first, signal.SIGKILL)
    until(lambda: look() == [{"pod-b": 1}, []])
    assert len(list((container.volume / "sockets").iterdir())) == 1
