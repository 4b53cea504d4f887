"""Faults of descriptors, disks, viewers and requests."""

from __future__ import annotations

import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from faulty import Fault, Outcome, Skipped
from helpers import until
from programs import Ended, Program, ask, new_directory, socket_in

HOLD_AND_WAIT = """
    held = pool.connect()
    ready()
    sys.stdin.read()
    for _ in range(100):
        pool.connect().close()
    held.close()
    say(pool)
"""


def balanced(ended: Ended, checkouts: int = 101) -> bool:
    """Nothing is out, and every checkout was counted."""
    said = ended.said[-1] if ended.said else {}
    return ended.fine() and said == {
        "out": 0,
        "holds": 0,
        "waits": 0,
        "checkouts": checkouts,
        "checkins": checkouts,
        "leaked": 0,
    }


def holds(directory: Path) -> int:
    """Open holds that a viewer sees; 0 if there is no socket."""
    with suppress(OSError):
        path = socket_in(directory)
        return len(ask(path)["processes"][0]["holds"]) if path else 0
    return 0


# -- descriptors ---------------------------------------------------------------------


def no_descriptors_at_first(_: float) -> Outcome:
    with new_directory() as directory:
        program = Program(
            """
            import resource
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))
            taken = []
            with suppress(OSError):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            held = pool.connect()
            ready()
            sys.stdin.readline()
            while taken:
                os.close(taken.pop())
            sys.stdin.read()
            for _ in range(100):
                pool.connect().close()
            held.close()
            say(pool)
            """,
            directory,
        )
        program.wait_until_ready()
        before = socket_in(directory)
        program.go_on()
        until(lambda: holds(directory))
        ended = program.finish()
    return (
        "all descriptors taken before the first checkout, then closed",
        f"unreachable, then reachable with its hold; {ended.words()}",
        before is None and balanced(ended),
    )


def no_descriptors_later(_: float) -> Outcome:
    with new_directory() as directory:
        program = Program(
            """
            import resource
            held = pool.connect()
            ready()
            sys.stdin.readline()
            _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (64, most))
            taken = []
            with suppress(OSError):
                while True:
                    taken.append(os.open("/dev/null", os.O_RDONLY))
            for _ in range(100):
                pool.connect().close()
            small = new_pool(pool_size=1, max_overflow=0, timeout=0.01)
            with small.connect(), suppress(Exception):
                small.connect()  # nested, and a timeout: both import more
            assert not any(
                each.switched_off for each in poolwatch.snapshot().processes[0].pools
            )
            poolwatch.uninstrument(small)
            ready()
            sys.stdin.readline()
            while taken:
                os.close(taken.pop())
            ready()
            sys.stdin.read()
            held.close()
            say(pool)
            """,
            directory,
        )
        program.wait_until_ready()
        program.go_on()
        program.wait_until_ready()
        path = socket_in(directory)
        assert path
        refused = False
        try:
            ask(path, patience_s=0.5)
        except OSError:
            refused = True
        program.go_on()
        program.wait_until_ready()
        seen = len(ask(path)["processes"][0]["holds"])
        ended = program.finish()
    return (
        "all descriptors taken while it listens, a viewer looks, then closed",
        f"silent, then {seen} hold; {ended.words()}",
        refused and seen == 1 and balanced(ended),
    )


def descriptors_closed(_: float) -> Outcome:
    with new_directory() as directory:
        program = Program(
            """
            held = pool.connect()
            os.closerange(3, 256)
            ready()
            sys.stdin.read()
            for _ in range(100):
                pool.connect().close()
            held.close()
            say(pool)
            """,
            directory,
        )
        program.wait_until_ready()
        until(lambda: holds(directory))
        ended = program.finish()
    return (
        "the application closes every descriptor from 3 on",
        f"reachable again; {ended.words()}",
        balanced(ended),
    )


# -- the disk --------------------------------------------------------------------------


@contextmanager
def small_disk(options: str) -> Iterator[Path]:
    """A tmpfs of its own."""
    if os.getuid() != 0:
        raise Skipped("only root can mount a small disk")
    with new_directory() as directory:
        command = ["mount", "-t", "tmpfs", "-o", options, "poolwatch-test"]
        if subprocess.run([*command, str(directory)], check=False).returncode:
            raise Skipped("no tmpfs can be mounted here")
        try:
            yield directory
        finally:
            subprocess.run(["umount", "-l", str(directory)], check=True)


def remount(directory: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(directory)], check=True)


def disk(
    options: str, mend: Callable[[Path], None], what: str
) -> Callable[[float], Outcome]:
    def fault(_: float) -> Outcome:
        with small_disk(options) as mount:
            directory = mount / "d"
            if "ro" not in options.split(","):
                directory.mkdir(mode=0o700)
                (directory / "data").write_bytes(b"x")  # the last file it has room for
            program = Program(HOLD_AND_WAIT, directory)
            program.wait_until_ready()
            found = directory.exists() and socket_in(directory)
            mend(mount)
            until(lambda: holds(directory))
            ended = program.finish()
        return (
            what,
            f"unreachable, then reachable with its hold; {ended.words()}",
            not found and balanced(ended),
        )

    return fault


def disk_read_only_later(_: float) -> Outcome:
    with small_disk("mode=700") as mount:
        program = Program(HOLD_AND_WAIT, mount)
        program.wait_until_ready()
        remount(mount, "ro")
        time.sleep(2.5)
        seen = holds(mount)
        remount(mount, "rw")
        ended = program.finish()
    return (
        "the disk of the socket directory becomes read-only under it",
        f"{seen} hold seen meanwhile; {ended.words()}",
        seen == 1 and balanced(ended),
    )


def directory_removed(_: float) -> Outcome:
    with new_directory() as directory:
        mine = directory / "d"
        program = Program(HOLD_AND_WAIT, mine)
        program.wait_until_ready()
        times = 0
        for times in range(1, 4):  # noqa: B007 - how often it came back
            shutil.rmtree(mine)
            until(lambda: mine.exists() and holds(mine))
        (path,) = mine.iterdir()
        shutil.rmtree(mine)
        mine.write_text("in its place")
        time.sleep(3)
        mine.unlink()
        until(lambda: mine.exists() and holds(mine))
        ended = program.finish()
        left = list(mine.iterdir())
    return (
        "the directory removed three times, then a file in its place for 3 s",
        f"back {times + 1} times, {len(left)} files left; {ended.words()}",
        path.suffix == ".sock" and not left and balanced(ended),
    )


# -- viewers ---------------------------------------------------------------------------

LOADED = """
    held = [new for _ in range(5) for new in [pool.connect()]]
    many = [new_pool() for _ in range(COUNT)]
    lent = [each.connect() for each in many for _ in range(9)]
    ready()
    sys.stdin.read()
    for each in lent + held:
        each.close()
    (process,) = poolwatch.snapshot().processes
    counters = [each.counters for each in process.pools]
    print(json.dumps({
        "checkouts": sum(each.checkouts for each in counters),
        "checkins": sum(each.checkins for each in counters),
        "leaked": sum(each.leaked for each in counters),
        "holds": len(process.holds),
    }), flush=True)
"""


class Loaded:
    """A program whose answers are larger than what a socket buffers."""

    def __init__(self, directory: Path, pools: int = 30) -> None:
        self.program = Program(LOADED.replace("COUNT", str(pools)), directory)
        self.program.wait_until_ready()
        path = socket_in(directory)
        assert path is not None
        self.path = path
        self.checkouts = 5 + 9 * pools
        self.longest = 0.0

    def look(self, times: int = 1) -> None:
        """Look as a viewer does, and note the longest time."""
        for _ in range(times):
            began = time.monotonic()
            ask(self.path)
            self.longest = max(self.longest, time.monotonic() - began)

    def finish(self) -> tuple[Ended, bool]:
        ended = self.program.finish()
        expected = {
            "checkouts": self.checkouts,
            "checkins": self.checkouts,
            "leaked": 0,
            "holds": 0,
        }
        return ended, ended.fine() and ended.said == [expected]


@contextmanager
def connection(path: Path, sends: bytes = b"") -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(60)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(str(path))
        client.sendall(sends)
        yield client


PATIENCE_S = 10.0
"""A generous limit for a busy machine; a slow viewer beside it may cost nothing."""
GET = b"GET /snapshot HTTP/1.1\r\n\r\n"


def stopped_viewer(_: float) -> Outcome:
    asks = """
import socket, sys, time
s = socket.socket(socket.AF_UNIX)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
s.connect(sys.argv[1])
s.sendall({})
s.recv({})
print("now", flush=True)
time.sleep(600)
"""
    with new_directory() as directory:
        app = Loaded(directory)
        viewers = []
        for sends, reads in [(GET, 100), (GET[:10], 0)]:
            viewers.append(
                subprocess.Popen(
                    [sys.executable, "-c", asks.format(sends, reads), str(app.path)],
                    stdout=subprocess.PIPE,
                )
            )
            assert viewers[-1].stdout
            viewers[-1].stdout.readline()
            viewers[-1].send_signal(signal.SIGSTOP)
        app.look(40)
        for viewer in viewers:
            viewer.kill()
            viewer.wait()
        ended, fine = app.finish()
    return (
        "SIGSTOP of two viewers, in the middle of the request and of the answer",
        f"40 looks meanwhile, longest {app.longest:.2f} s; {ended.words()}",
        fine and app.longest < PATIENCE_S,
    )


def _reads_slowly(path: Path, stop: threading.Event) -> None:
    with connection(path, GET) as client:
        while client.recv(1) and not stop.wait(1):
            pass


def _sends_slowly(path: Path, stop: threading.Event) -> None:
    with suppress(OSError), connection(path) as client:
        for byte in GET[:-2] + b"X: " + b"x" * 1000:
            client.sendall(bytes([byte]))
            if stop.wait(0.35):
                return


def slow_viewers(_: float) -> Outcome:
    with new_directory() as directory:
        app = Loaded(directory)
        stop = threading.Event()
        kinds = [_reads_slowly, _sends_slowly] * 10
        threads = [threading.Thread(target=k, args=(app.path, stop)) for k in kinds]
        for thread in threads:
            thread.start()
        for _ in range(60):
            app.look()
            time.sleep(0.1)
        stop.set()
        for thread in threads:
            thread.join()
        ended, fine = app.finish()
    return (
        "10 viewers read a byte a second, 10 send a byte every 0.35 s",
        f"60 looks meanwhile, longest {app.longest:.2f} s; {ended.words()}",
        fine and app.longest < PATIENCE_S,
    )


def half_requests(_: float) -> Outcome:
    with new_directory() as directory:
        app = Loaded(directory)
        clients = []
        for _ in range(200):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(app.path))
            client.sendall(GET[:9])
            clients.append(client)
        app.look(20)
        for client in clients:
            client.close()
        ended, fine = app.finish()
    return (
        "200 viewers at once that send half a request",
        f"20 looks meanwhile, longest {app.longest:.2f} s; {ended.words()}",
        fine and app.longest < PATIENCE_S,
    )


def _nonsense(chance: random.Random) -> bytes:
    kind = chance.randrange(6)
    if kind == 0:
        return chance.randbytes(chance.randrange(1, 2000))
    if kind == 1:
        return GET[: chance.randrange(len(GET))]
    if kind == 2:
        return (
            b"GET /" + b"a" * chance.randrange(60_000, 300_000) + b" HTTP/1.1\r\n\r\n"
        )
    if kind == 3:
        return b"GET / HTTP/1.1\r\n" + b"X: y\r\n" * chance.randrange(3000)
    if kind == 4:
        return chance.randbytes(10) + GET + chance.randbytes(chance.randrange(100))
    target = bytes(chance.choices(b"/?&=%#:@[]ax09. ", k=chance.randrange(1, 60)))
    return b"GET " + target + b" HTTP/1.1\r\n\r\n"


def many_requests(length: float) -> Outcome:
    count = int(10_000 * length)
    chance = random.Random(1)
    statuses: Counter[str] = Counter()
    with new_directory() as directory:
        app = Loaded(directory, pools=1)
        before = _memory(app.program.process.pid)
        slow = []
        for number in range(count):
            client = socket.socket(socket.AF_UNIX)
            client.settimeout(60)
            client.connect(str(app.path))
            with suppress(BrokenPipeError, ConnectionResetError):
                client.sendall(_nonsense(chance))
            if number % 100 == 0:  # it is neither closed nor read
                slow.append(client)
                continue
            with client:
                statuses[_status(client)] += 1
            if number % 500 == 0:
                app.look()
        grown = _memory(app.program.process.pid) - before
        for client in slow:
            client.close()
        app.look()
        ended, fine = app.finish()
    known = {"", "200", "400", "404", "414", "431", "501", "505"}
    return (
        f"{count} random, truncated, huge and slow requests",
        (
            f"{dict(statuses)}, memory +{grown // 1024} KiB, longest look "
            f"{app.longest:.2f} s; {ended.words()}"
        ),
        fine and set(statuses) <= known and grown < 32 * 2**20,
    )


def _status(client: socket.socket) -> str:
    got = b""
    with suppress(OSError):
        client.shutdown(socket.SHUT_WR)
        while read := client.recv(65536):
            got += read
    return got.split(b" ")[1].decode() if got else ""


def _memory(pid: int) -> int:
    """The process's resident memory in bytes."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def starved(length: float) -> Outcome:
    with new_directory() as directory:
        program = Program(
            """
            held = pool.connect()
            over = threading.Event()
            def busy():
                while not over.is_set():
                    sum(range(2000))
            threads = [threading.Thread(target=busy) for _ in range(16)]
            for thread in threads:
                thread.start()
            ready()
            sys.stdin.read()
            for _ in range(100):
                pool.connect().close()
            over.set()
            for thread in threads:
                thread.join()
            held.close()
            say(pool)
            """,
            directory,
        )
        program.wait_until_ready()
        path = socket_in(directory)
        assert path
        took = []
        for _ in range(max(3, int(10 * length))):
            began = time.monotonic()
            ask(path)
            took.append(time.monotonic() - began)
        ended = program.finish()
        times = f"the first {took[0]:.2f} s, later {max(took[1:]):.2f} s at most"
    return (
        "16 busy threads beside the agent",
        f"{len(took)} looks: {times}; {ended.words()}",
        balanced(ended),
    )


SOCKETS: dict[str, Fault] = {
    "descriptors-at-first": no_descriptors_at_first,
    "descriptors-later": no_descriptors_later,
    "descriptors-closed": descriptors_closed,
    "disk-full": disk(
        "mode=700,nr_inodes=3",
        lambda mount: (mount / "d" / "data").unlink(),
        "no room for the socket at the first checkout, then there is",
    ),
    "disk-read-only": disk(
        "ro,mode=700",
        lambda mount: remount(mount, "rw"),
        "a read-only disk at the first checkout, then not any more",
    ),
    "disk-read-only-later": disk_read_only_later,
    "directory-removed": directory_removed,
    "stopped-viewer": stopped_viewer,
    "slow-viewers": slow_viewers,
    "half-requests": half_requests,
    "requests": many_requests,
    "starved": starved,
}
