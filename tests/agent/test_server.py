"""The agent's socket: who may speak to it, and what it answers to nonsense."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import stat
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace

import pytest
from fix_core import null_pool_of
from helpers import until
from sqlalchemy import text

import poolwatch
from poolwatch.agent.instrument import agent
from poolwatch.client.client import Client
from poolwatch.errors import (
    ForbiddenError,
    NoProcessError,
    UnreachableError,
    UsageError,
)
from poolwatch.protocol import document as wire
from poolwatch.protocol import sockets

FRAME = {"file", "line", "function"}
TIMES = {"count", "sum", "max", "p50", "p95", "p99"}
KEYS = {
    "processes": {
        "pid", "host", "program", "name", "python", "poolwatch", "started_at",
        "pools", "holds", "waits", "sites", "findings",
    },
    "pools": {
        "id", "name", "kind", "url", "size", "max_overflow", "timeout_s",
        "checked_out", "idle", "overflow", "waiting", "counters", "wait_s", "hold_s",
        "create_s",
    },
    "counters": {
        "checkouts", "checkins", "timeouts", "connects", "closes", "invalidated",
        "collected", "leaked",
    },
    "holds": {
        "id", "pool", "backend_pid", "held_s", "waited_s", "thread", "task", "labels",
        "site", "stack", "now", "statement", "in_sql_s", "in_transaction_idle_s",
        "verdict", "evidence", "server",
    },
    "waits": {
        "id", "pool", "waited_s", "thread", "task", "labels", "site", "stack",
    },
    "sites": {"pool", "site", "count", "connections", "hold_s", "wait_s", "leaked"},
    "findings": {
        "kind", "severity", "pool", "text", "proof", "remedy", "holds", "waits", "sites",  # noqa: E501
    },
}  # fmt: skip


@pytest.fixture
def path(instrument, socket_dir):
    """The socket of this process, with one pool and one hold."""
    pool = null_pool_of(pool_size=1, max_overflow=0, timeout=60)
    instrument(pool)
    held = pool.connect()
    (path,) = socket_dir.iterdir()
    waiter = threading.Thread(target=lambda: pool.connect().close())
    waiter.start()
    until(lambda: any(book.waits for book in agent.ledger.pools.values()))
    yield path
    held.close()
    waiter.join()


def speak(path, sent, patience=10.0):
    """Send raw bytes; everything that comes back until the end."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(patience)
        connection.connect(str(path))
        got = b""
        try:
            connection.sendall(sent)
            while chunk := connection.recv(65536):
                got += chunk
        except (BrokenPipeError, ConnectionResetError):
            pass
        return got


def test_the_document(path, http_get):
    """GET /snapshot is schema 1, member for member, in ASCII."""

    def answer():
        status, body = http_get(path, "/snapshot")
        assert status == 200
        return json.loads(body.decode("ascii"))

    # the request is a wait from its first millisecond on
    document = until(lambda: (d := answer())["processes"][0]["waits"] and d)
    assert set(document) == {"schema", "processes", "unreachable"}
    assert document["schema"] == 1
    (process,) = document["processes"]
    assert set(process) == KEYS["processes"]
    assert process["pid"] == os.getpid()
    for member in ("pools", "holds", "waits", "sites", "findings"):
        assert process[member], member
        for each in process[member]:
            assert set(each) == KEYS[member]
    (pool,) = process["pools"]
    assert set(pool["counters"]) == KEYS["counters"]
    assert set(pool["hold_s"]) == set(pool["wait_s"]) == set(pool["create_s"]) == TIMES
    (hold,) = process["holds"]
    for frame in (
        hold["site"],
        *hold["stack"],
        *hold["now"],
        process["sites"][0]["site"],
    ):
        assert set(frame) == FRAME
    assert hold["pool"] == process["waits"][0]["pool"] == pool["id"]
    assert process["findings"][0]["holds"] == [hold["id"]]
    assert process["findings"][0]["waits"] == [process["waits"][0]["id"]]


def test_viewers_get_more(path, http_get):
    """/view is the same, with what poolwatch's own programs need to join it."""
    document = json.loads(http_get(path, "/view")[1])
    (process,) = document["processes"]
    assert set(process["holds"][0]) == KEYS["holds"] | {
        "adopted_s",
        "caller",
        "connection",
        "earlier_lock",
        "may_have_ended",
        "used",
        "used_at",
        "user",
        "unused_s",
    }
    assert set(process["pools"][0]) == KEYS["pools"] | {
        "behind_pooler",
        "gave_up",
        "long_after_s",
        "lost_slots",
        "extends",
        "served_s",
        "made_at",
        "most_wanted",
        "over",
        "slotless",
        "switched_off",
        "unrecorded",
        "waiting_s_per_s",
    }
    assert wire.from_json(http_get(path, "/view")[1]).processes[0].pid == os.getpid()


@pytest.mark.parametrize(
    ("sent", "answer"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", b"404"),
        (b"GET http://[/ HTTP/1.1\r\n\r\n", b"400"),
        (b"POST /snapshot HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi", b"501"),
        (b"DELETE / HTTP/1.1\r\n\r\n", b"501"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\r\n\r\n", b"400"),
        (b"GET /snapshot HTTP/9.9\r\n\r\n", b"505"),
        (b"GET /" + b"a" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n", b"431"),
        (b"GET / HTTP/1.1\r\n" + b"X: a\r\n" * 200 + b"\r\n", b"431"),
        (b"", b""),
        (b"\r\n", b""),
    ],
)
def test_nonsense(path, http_get, sent, answer):
    """Garbage is answered with an HTTP error or silence, and the next one is served."""
    if sent in (b"", b"\r\n"):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(str(path))
            connection.sendall(sent)
    else:
        got = speak(path, sent)
        assert answer in got.partition(b"\r\n")[0] or got == b""
        assert b"Traceback" not in got
        if len(sent) < 60_000:
            assert got
    assert http_get(path, "/snapshot")[0] == 200


@pytest.mark.parametrize(
    "line",
    [
        b"GET\r\n\r\n",
        b"GET\n",
        b"GET /snapshot\r\n\r\n",
        b"GET /snapshot\n",
        b"GET /snapshot HTTP/0.9\r\n\r\n",
        b"GET\x0b/snapshot\x0bHTTP/1.1\r\n\r\n",
        b"GET /snap\xa0shot HTTP/1.1\r\n\r\n",
        b"GET /a b c HTTP/1.1\r\n\r\n",
        b"GET /snapshot HTTP/1.1 more\r\n\r\n",
        b"GET /snapshot HTTP/\r\n\r\n",
        b"hello\r\n\r\n",
        b"what do you want\r\n",
        b"\r\n",
        b"\n\n",
        b" \r\n\r\n",
        b"\x00\x01\x02\x1b[2J\r\n\r\n",
        b"\xff\xfe\xc3\x28\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\n",
        b"GET /" + b"a" * 70_000 + b"\r\n\r\n",
        b"POST /snapshot HTTP/1.1\r\nContent-Length: 2\r\n\r\nhi",
        b"GET / HTTP/1.1\r\nX: " + b"a" * 70_000 + b"\r\n\r\n",
        b"GET /snapshot HTTP/2.0\r\n\r\n",
    ],
)
def test_every_refusal_is_an_http_error(path, http_get, line):
    """A status line and a JSON body, whatever was sent in place of a request line."""
    head, _, body = speak(path, line).partition(b"\r\n\r\n")
    status, *headers = head.split(b"\r\n")
    assert re.fullmatch(rb"HTTP/1\.1 (4|5)\d\d [A-Za-z -]+", status)
    names = dict(header.lower().split(b": ", 1) for header in headers)
    assert names[b"content-type"] == b"application/json; charset=utf-8"
    assert int(names[b"content-length"]) == len(body)
    assert json.loads(body)["error"]
    assert http_get(path, "/snapshot")[0] == 200


def test_half_a_request(path):
    """A viewer that stops in the middle of its request is dismissed."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        connection.sendall(b"GET /snapshot HT")
        assert connection.recv(100) == b""


def test_a_crowd_that_says_nothing(path, http_get):
    """A hundred silent connections, more than are kept, delay no other viewer."""
    crowd = []
    try:
        for _ in range(100):
            connection = socket.socket(socket.AF_UNIX)
            connection.connect(str(path))
            crowd.append(connection)
        took = []
        for _ in range(3):
            began = time.monotonic()
            assert http_get(path, "/snapshot")[0] == 200
            took.append(time.monotonic() - began)
        assert min(took) < 1
    finally:
        for connection in crowd:
            connection.close()
    assert http_get(path, "/snapshot")[0] == 200


def test_a_viewer_that_does_not_read(path, http_get):
    """Someone who asks and never takes the answer holds up others for moments only."""
    with socket.socket(socket.AF_UNIX) as rude:
        rude.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        rude.connect(str(path))
        rude.sendall(b"GET /snapshot HTTP/1.1\r\n\r\n")
        began = time.monotonic()
        assert http_get(path, "/snapshot")[0] == 200
        assert time.monotonic() - began < 6


def test_modes(path):
    """The socket is 0600 in a directory of 0700."""
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_ISSOCK(path.stat().st_mode)


def test_the_umask_stays(instrument, socket_dir, monkeypatch):
    """The process's umask is not touched: other threads make files, too."""
    monkeypatch.setattr(os, "umask", lambda _: pytest.fail("umask was set"))
    monkeypatch.setenv("POOLWATCH_DIR", str(socket_dir / "new"))
    pool = null_pool_of()
    instrument(pool)
    pool.connect().close()
    assert stat.S_IMODE((socket_dir / "new").stat().st_mode) == 0o700
    (path,) = (socket_dir / "new").iterdir()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_another_user_is_refused(path):
    """Another uid gets no answer, even where the file modes would let it in."""
    path.parent.chmod(0o755)
    path.chmod(0o666)
    asks = (
        "import os, socket, sys; os.setgid(65534); os.setuid(65534);"
        "s = socket.socket(socket.AF_UNIX); s.settimeout(10); s.connect(sys.argv[1]);"
        "s.sendall(b'GET /snapshot HTTP/1.1\\r\\n\\r\\n');"
        "print(len(s.recv(10)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", asks, str(path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.strip() == "0" or "Error" in done.stderr


# -- directories that cannot be used ---------------------------------------------------


def spoil(directory: Path, how: str) -> Path:  # noqa: C901
    target = directory / "d"
    if how == "file":
        target.write_text("")
    elif how == "symlink":
        (directory / "real").mkdir(mode=0o700)
        target.symlink_to(directory / "real")
    elif how == "writable by others":
        target.mkdir()
        target.chmod(0o770)
    elif how == "foreign":
        target.mkdir(mode=0o700)
        os.chown(target, 65534, 65534)
    elif how == "too long":
        target = directory / ("x" * 100)
    elif how == "name too long":
        target = directory / ("x" * 300)
    elif how == "below a file":
        (directory / "f").write_text("")
        target = directory / "f" / "d"
    elif how == "no such user":
        target = Path("~nobody-by-this-name/sockets")
    return target


SPOILED = [
    "file", "symlink", "writable by others", "too long", "name too long",
    "below a file", "no such user",
    pytest.param("foreign", marks=pytest.mark.skipif(os.getuid() != 0, reason="root")),
]  # fmt: skip


@pytest.mark.parametrize("how", SPOILED)
def test_a_directory_that_cannot_be_used(
    instrument, socket_dir, monkeypatch, caplog, how
):
    """A planted or useless directory is one log line; the application goes on, is
    watched inside, and nothing is written there."""
    target = spoil(socket_dir, how)
    monkeypatch.setenv("POOLWATCH_DIR", str(target))
    pool = null_pool_of()
    watch = instrument(pool)
    threads = [
        threading.Thread(target=lambda: pool.connect().close()) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
        thread.join()
    held = pool.connect()
    assert len(watch.holds()) == 1
    held.close()
    (record,) = [r for r in caplog.records if r.name == "poolwatch"]
    assert "not reachable" in record.getMessage()
    assert record.exc_info is None
    if how in ("symlink", "writable by others", "foreign"):
        assert list(target.iterdir()) == []
    if how in ("too long", "name too long", "no such user"):  # it stays like that
        assert not any(t.name == "poolwatch" for t in threading.enumerate())
        return
    if target.is_symlink() or target.is_file():
        target.unlink()
    elif how == "below a file":
        target.parent.unlink()
    else:
        os.chown(target, os.getuid(), os.getgid())
        target.chmod(0o700)
    until(lambda: list(target.glob("*.sock")))
    assert len(Client(target).agents()) == 1


@pytest.mark.parametrize("how", SPOILED)
def test_viewers_say_why(socket_dir, how):
    """A viewer names what is wrong with such a directory, in one sentence and with the
    exit code for it."""
    target = spoil(socket_dir, how)
    if how == "foreign":
        assert_root_may_look(target)
        return
    if how == "too long":  # it could be looked into: there is just nothing
        with pytest.raises(NoProcessError):
            Client(target).agents()
        return
    with pytest.raises((ForbiddenError, UsageError)) as caught:
        Client(target).agents()
    forbidden = how in ("symlink", "writable by others")
    assert caught.value.exit_code == (4 if forbidden else 2)
    assert "\n" not in str(caught.value)


def assert_root_may_look(target):
    with pytest.raises(NoProcessError):
        Client(target).agents()
    with pytest.raises(ForbiddenError, match="belongs to uid 65534"):
        sockets.prepare(target)


# -- the other side ------------------------------------------------------


def serve_once(path, answer):
    """A server that is none of ours."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def work():
        with listener:
            while True:
                connection, _ = listener.accept()
                with connection:
                    if connection.recv(65536):
                        connection.sendall(answer)
                        return

    threading.Thread(target=work, daemon=True).start()


def ok(body):
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "BadStatusLine"),
        (b"", "RemoteDisconnected"),
        (b"HTTP/1.1 500 \x1b[31mred\r\n\r\n", "500"),
        (ok(b"[" * 100_000), "not a complete JSON"),
        (ok(b"{}"), "not a poolwatch document"),
        (ok(b'{"schema": 2}'), "schema 2"),
        (ok(b'{"schema": 1}'), "exactly one process"),
        (ok(b'{"schema": 1, "processes": [{}]}'), "damaged"),
        (
            ok(b'{"schema": 1, "processes": [], "unreachable": []}'),
            "exactly one process",
        ),
        (ok(b"\xff\xfe\x00"), "not a complete JSON"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{", "not a complete JSON"),
    ],
)
def test_a_foreign_answer(socket_dir, answer, why):
    """Whatever comes back, it is one harmless sentence."""
    serve_once(socket_dir / "12-ab.sock", answer)
    client = Client(socket_dir)
    (address,) = client.agents()
    with pytest.raises(UnreachableError, match=why) as caught:
        client.view(address)
    assert str(caught.value).isprintable()


def test_a_socket_that_is_being_born(socket_dir):
    """A socket is seen by viewers only once it listens: none is swept too early."""
    from poolwatch.agent.server import Server

    names = []

    class Spy(socket.socket):
        def listen(self, *args):
            names.extend(socket_dir.iterdir())
            assert list(sockets.addresses(socket_dir)) == []
            super().listen(*args)

    original, socket.socket = socket.socket, Spy
    try:
        server = Server(
            sockets.new_path(socket_dir), quick={}, slow={}, idle=lambda: False
        )
    finally:
        socket.socket = original
    assert len(names) == 1
    assert len(Client(socket_dir).agents()) == 1
    server.close()
    assert list(socket_dir.iterdir()) == []


@pytest.mark.processes
@pytest.mark.parametrize("what", ["socket", "directory"])
def test_what_was_removed_is_made_again(apps, what):
    """At the same place, for the viewers that know it; and it goes with the process."""
    app = apps.start("""
        import sys
        from sqlalchemy import create_engine
        import poolwatch
        engine = create_engine("sqlite://")
        poolwatch.instrument(engine)
        held = engine.connect()
        print("ready", flush=True)
        sys.stdin.read()
    """)
    client = Client(apps.directory)
    (address,) = client.agents()
    if what == "directory":
        shutil.rmtree(apps.directory)
    else:
        address.path.unlink()
    until(address.path.exists)
    assert client.agents() == [address]
    assert len(client.view(address).holds) == 1
    assert stat.S_IMODE(apps.directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(address.path.stat().st_mode) == 0o600
    assert apps.finish(app) == 0
    assert list(apps.directory.iterdir()) == []


def test_a_removed_socket_does_not_outlive_uninstrument(path, socket_dir):
    for _ in range(20):
        path.unlink(missing_ok=True)
        agent._server.hurry(0.0)
    agent.close()
    assert list(socket_dir.iterdir()) == []
    assert "poolwatch" not in [thread.name for thread in threading.enumerate()]


def test_a_directory_that_is_no_longer_trusted_is_told_once(path, socket_dir, caplog):
    moved = socket_dir.rename(f"{socket_dir}-moved")
    elsewhere = moved / "elsewhere"
    elsewhere.mkdir(mode=0o700)
    socket_dir.symlink_to(elsewhere)
    try:
        for _ in range(3):
            until(lambda: agent._server._next_tick > time.monotonic())
            agent._server.hurry(0.0)
        until(lambda: "is a symbolic link: not trusted" in caplog.text)
        assert caplog.text.count("not reachable") == 1
        assert list(elsewhere.iterdir()) == []
    finally:
        elsewhere.rmdir()
        socket_dir.unlink()
        moved.rename(socket_dir)


def test_uwsgi_before_it_forks(instrument, socket_dir, monkeypatch):
    """Its fork is not seen: no thread of ours may run before."""
    worker = [0]
    uwsgi = SimpleNamespace(worker_id=lambda: worker[0], mule_id=lambda: 0)
    monkeypatch.setitem(sys.modules, "uwsgi", uwsgi)
    pool = null_pool_of()
    watch = instrument(pool)
    with closing(pool.connect()):
        assert len(watch.holds()) == 1
    assert list(socket_dir.iterdir()) == []
    assert "poolwatch" not in [thread.name for thread in threading.enumerate()]
    worker[0] = 1
    with closing(pool.connect()):
        assert len(list(socket_dir.iterdir())) == 1


def test_secrets_stay_inside(instrument, sqlite, http_get, socket_dir, caplog):
    """Parameters, literals and passwords are in no document and no log line."""
    engine = sqlite(echo=False)
    instrument(engine)
    with engine.connect() as connection:
        connection.execute(text("select 'hunter-a', 123456, :p"), {"p": "hunter-b"})
        (path,) = socket_dir.iterdir()
        for target in ("/snapshot", "/view", "/servers"):
            body = http_get(path, target)[1]
            assert b"hunter" not in body
            assert b"123456" not in body
        assert "hunter" not in repr(poolwatch.snapshot())
    assert "hunter" not in caplog.text
