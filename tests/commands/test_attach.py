"""``poolwatch attach``: real processes, of a Python 3.14 or later where there is one.

POOLWATCH_PYTHON314 names one that has SQLAlchemy, and POOLWATCH_PYTHON314_ROOT the root
directory in which it is started, if it is in a chroot.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import threading
from pathlib import Path

import pytest
from fix_processes import first_process_in
from helpers import LONG_S, until

from poolwatch.commands.attach.target import Target
from poolwatch.commands.main import main

APP = """
    import os, select, signal, sys, threading, time
    import sqlalchemy as sa

    signal.signal(signal.SIGUSR1, lambda *_: None)  # wakes the main thread

    engine = sa.create_engine("sqlite://", poolclass=sa.QueuePool, pool_size=2)

    def export(asked):
        with engine.connect() as connection:
            asked.wait()

    def fork():
        pid = os.fork()
        if pid:
            return os.waitpid(pid, 0)[1]
        with engine.connect() as connection:
            os._exit(len(threading.enumerate()))

    asked = threading.Event()
    threading.Thread(target=export, args=(asked,), name="exporter", daemon=True).start()
    until = time.monotonic() + 60
    while engine.pool.checkedout() < 1 and time.monotonic() < until:
        time.sleep(0.01)
    commands = {
        "sleep": lambda: time.sleep(300),
        "return": asked.set,
        "threads": lambda: len(threading.enumerate()),
        "files": lambda: len(os.listdir("/proc/self/fd")),
        "listeners": lambda: len(engine.pool.dispatch.close.listeners),
        "fork": lambda: os.waitstatus_to_exitcode(fork()),
    }
    print("ready", flush=True)
    while True:
        if select.select([sys.stdin], [], [], 0.02)[0]:
            command = sys.stdin.readline().strip()
            if not command:
                break
            print("began" if command == "sleep" else commands[command](), flush=True)
            if command == "sleep":
                commands[command]()
"""


class Program:
    """A running program of the other Python."""

    def __init__(self, command: list[str], source: str, **environ: str) -> None:
        ours = {k: v for k, v in os.environ.items() if not k.startswith("P")}
        path = os.environ["PATH"]
        self.process = subprocess.Popen(
            [*command, "-c", textwrap.dedent(source)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**ours, "PATH": path, **environ},
            cwd="/",
        )
        assert self._line() == "ready"

    def _line(self) -> str:
        stream = self.process.stdout
        ready, _, _ = select.select([stream], [], [], LONG_S)
        assert ready, "it does not answer"
        return stream.readline().strip()

    def ask(self, command: str) -> str:
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        return self._line()

    @property
    def pid(self) -> str:
        return str(self.process.pid)

    def end(self) -> None:
        self.process.kill()
        for stream in (self.process.stdin, self.process.stdout):
            stream.close()
        self.process.wait()


@pytest.fixture(scope="session")
def python314():
    """The command that starts the other Python."""
    root = os.environ.get("POOLWATCH_PYTHON314_ROOT")
    own = sys.executable if sys.version_info >= (3, 14) else None
    found = os.environ.get("POOLWATCH_PYTHON314") or own or shutil.which("python3.14")
    if found is None:
        pytest.skip("no Python 3.14: POOLWATCH_PYTHON314 is not set")
    command = [*(["chroot", root] if root else []), found]
    loads = subprocess.run(
        [*command, "-c", "import sqlalchemy"], cwd="/", capture_output=True, check=False
    )
    if loads.returncode:
        pytest.skip(f"{' '.join(command)} has no SQLAlchemy")
    return command


@pytest.fixture
def start(python314):
    running = []

    def start(source=APP, *options, **environ):
        running.append(Program([*python314, *options], source, **environ))
        return running[-1]

    yield start
    for program in running:
        program.end()


@pytest.fixture
def attach(socket_dir, capfd):
    """``attach(pid, ...)``: the exit code, and all that was printed."""

    def attach(*arguments):
        code = main(["attach", *arguments])
        return code, "".join(capfd.readouterr())

    return attach


def left_behind(pid):
    return [str(path) for path in Path("/tmp").glob(f"poolwatch-attach-{pid}-*")]


def test_attach_and_undo(start, attach, socket_dir):
    program = start()
    pid, before = program.pid, {}
    for what in ("threads", "files", "listeners"):
        before[what] = program.ask(what)
    folder = socket_dir / "s"
    code, said = attach(pid, "--dir", str(folder), "--seconds", str(LONG_S))
    assert (code, "1 pool, 1 connection out" in said) == (0, True), said
    assert "Not known for this one" in said
    code, said = attach(pid)
    assert (code, "already" in said) == (0, True), said
    where = f"/proc/{pid}/root{folder}"
    seen = subprocess.run(
        [sys.executable, "-m", "poolwatch", "ps", "--json", "--dir", where],
        capture_output=True,
        check=True,
    )
    (process,) = json.loads(seen.stdout)["processes"]
    (hold,) = process["holds"]
    unknown = ("held_s", "waited_s", "site", "thread", "task")
    assert [hold[each] for each in unknown] == [None] * 5
    assert hold["stack"] == []
    assert "export" in [frame["function"] for frame in hold["now"]]
    assert "local 'connection' of export" in " ".join(hold["evidence"])
    assert "thread exporter" in " ".join(hold["evidence"])
    program.ask("return")
    code, said = attach(pid, "--undo", "--seconds", str(LONG_S))
    assert (code, "detached" in said) == (0, True), said
    until(lambda: program.ask("threads") == "1")
    assert {what: program.ask(what) for what in before} == {**before, "threads": "1"}
    assert left_behind(pid) == []
    assert not folder.exists()
    assert program.ask("fork") == "1"  # the child works, and has no agent


def test_a_sleeping_main_thread(start, attach):
    """The script stays armed; undo takes it back, but leaves the file until it runs."""
    program = start()
    assert program.ask("sleep") == "began"
    code, said = attach(program.pid, "--seconds", "0.2")
    assert (code, "armed until" in said) == (1, True), said
    code, said = attach(program.pid, "--undo")
    assert (code, "taken back" in said) == (0, True), said
    (folder,) = left_behind(program.pid)
    assert Path(folder, "script.py").stat().st_mode & 0o777 == 0o600
    os.kill(program.process.pid, signal.SIGUSR1)
    until(lambda: left_behind(program.pid) == [])
    assert "is not attached" in attach(program.pid, "--undo")[1]


def test_woken_after_the_command_has_ended(start, attach, socket_dir):
    program, ended = start(), start()
    for each in (program, ended):
        assert each.ask("sleep") == "began"
        there = ("--dir", str(socket_dir / "s"), "--seconds", "0.2")
        assert attach(each.pid, *there)[0] == 1
    os.kill(program.process.pid, signal.SIGUSR1)
    until(lambda: Target.find(program.pid).agent_socket())
    ended.end()
    attach("--undo", program.pid, "--seconds", "0.2")
    os.kill(program.process.pid, signal.SIGUSR1)
    until(lambda: Target.find(program.pid).agent_socket() is None)
    assert left_behind(ended.pid) == []  # swept
    until(lambda: left_behind(program.pid) == [])


def test_it_ends_meanwhile(start, attach):
    program = start()
    assert program.ask("sleep") == "began"
    threading.Timer(0.2, program.process.kill).start()
    code, said = attach(program.pid, "--seconds", str(LONG_S))
    assert (code, said) == (3, f"poolwatch: process {program.pid} has ended\n")
    assert left_behind(program.pid) == []


def test_a_directory_too_long_for_a_socket(start, attach, socket_dir):
    """Nothing is left half attached."""
    program = start()
    before = program.ask("threads"), program.ask("listeners")
    code, said = attach(
        program.pid, "--dir", str(socket_dir / ("d" * 100)), "--seconds", str(LONG_S)
    )
    assert (code, "too long for a Unix socket" in said) == (2, True), said
    assert (program.ask("threads"), program.ask("listeners")) == before
    assert left_behind(program.pid) == []


@pytest.mark.skipif(os.getuid() != 0, reason="only root can enter a namespace")
def test_a_pid_namespace_of_its_own(python314, attach, socket_dir):
    """The script runs as the user of the process, who needs no capability."""
    root = os.environ.get("POOLWATCH_PYTHON314_ROOT", "")
    enter = f'mount -t proc proc {root}/proc && exec "$@"'
    command = ["unshare", "--pid", "--fork", "--kill-child", "--mount", "sh", "-c"]
    command += [enter, "sh", "chroot", "--userspec=65534:65534", root or "/"]
    program = Program([*command, python314[-1]], APP)
    try:
        pid = str(first_process_in(program.process))
        socket_dir.chmod(0o777)
        there = ("--dir", str(socket_dir / "s"), "--seconds", str(LONG_S))
        code, said = attach(pid, *there)
        assert (code, "1 pool, 1 connection out" in said) == (0, True), said
        code, said = attach(pid, "--undo", "--seconds", str(LONG_S))
        assert (code, "detached" in said) == (0, True), said
        assert left_behind(pid) == []
    finally:
        program.end()


RECORDS = """
import posix
status = posix.open("/proc/self/status", posix.O_RDONLY)
lines = posix.read(status, 4096).decode("ascii", "replace").splitlines()
capabilities = [line.split()[1] for line in lines if line.startswith("CapEff")]
log = posix.open({log!r}, posix.O_WRONLY | posix.O_APPEND | posix.O_CREAT, 0o666)
posix.write(log, f"{{posix.getuid()}} {{int(capabilities[0], 16)}}\\n".encode())
"""
NOBODY = {"user": 65534, "group": 65534, "extra_groups": (), "cwd": "/"}


@pytest.fixture
def recording():
    """A Python of nobody's own, with a standard library that records who runs it."""
    home = Path(tempfile.mkdtemp(dir="/tmp"))
    home.chmod(0o755)
    real = Path("/usr/bin/python3").resolve()
    python, log = home / "bin/python3.14", home / "log"
    say = "import encodings, os; print(os.__file__)"
    if real.exists():
        told = subprocess.run([real, "-c", say], capture_output=True, check=True)
        theirs = Path(told.stdout.decode().strip()).parent
        library = home / "lib" / theirs.name
        shutil.copytree(theirs / "encodings", library / "encodings")
        for each in theirs.iterdir():
            if each.name != "encodings":
                (library / each.name).symlink_to(each)
        with (library / "encodings/__init__.py").open("a") as file:
            file.write(RECORDS.format(log=str(log)))
        python.parent.mkdir()
        shutil.copy(real, python)
        for each in (home, *home.rglob("*")):
            os.chown(each, 65534, 65534, follow_symlinks=False)
        subprocess.run([python, "-S", "-c", say], **NOBODY, check=True)
    if not log.exists():
        shutil.rmtree(home)
        pytest.skip("needs a /usr/bin/python3 that can be copied")
    yield python, log
    shutil.rmtree(home)


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_the_program_of_another_user_never_runs_as_root(attach, recording, monkeypatch):
    """Attaching starts it, and its owner may have put anything into it."""
    python, log = recording
    monkeypatch.setenv("PATH", "/nowhere")  # with no other Python 3.14
    with subprocess.Popen(
        [python, "-S", "-c", LOOP], stdout=subprocess.PIPE, **NOBODY
    ) as process:
        assert process.stdout.readline() == b"ready\n"
        before = len(log.read_text().splitlines())
        _, said = attach(str(process.pid), "--seconds", "0.5")
        process.kill()
    found = log.read_text().splitlines()
    if sys.version_info[:2] != (3, 14):  # else this interpreter is used
        assert len(found) == before + 1, said
    assert set(found) == {"65534 0"}


LOOP = "import time; print('ready', flush=True); time.sleep(0.01)\nwhile True: "
LOOP += "time.sleep(0.01)"
WITH_POOLS = "import sqlalchemy; " + LOOP


@pytest.mark.parametrize(
    ("source", "options", "environ", "words"),
    [
        (LOOP, (), {}, "none of the pool libraries"),
        (WITH_POOLS, ("-X", "disable-remote-debug"), {}, "disabled"),
        (WITH_POOLS, (), {"PYTHON_DISABLE_REMOTE_DEBUG": "1"}, "disabled"),
        (WITH_POOLS, (), {"POOLWATCH_DISABLE": "1"}, "POOLWATCH_DISABLE"),
    ],
)
def test_refused(start, attach, source, options, environ, words):
    program = start(source, *options, **environ)
    code, said = attach(program.pid, "--seconds", str(LONG_S))
    assert (code, words in said, len(said.splitlines())) == (2, True, 1), said
    assert left_behind(program.pid) == []


@pytest.mark.parametrize(
    ("pid", "code", "words"),
    [
        ("abc", 2, "not a pid"),
        ("0", 2, "not a pid"),
        ("999999999", 3, "no process"),
    ],
)
def test_no_process(attach, pid, code, words):
    assert attach(pid)[0] == code
    assert words in attach(pid)[1]


def test_no_python_and_an_old_one(attach):
    old = [sys.executable, "-c", "import time; time.sleep(60)"]
    for command, words in ((["sleep", "60"], "no Python"), (old, "needs Python 3.14")):
        if words.startswith("needs") and sys.version_info >= (3, 14):
            continue
        with subprocess.Popen(command) as process:
            until(lambda p=process: Path(f"/proc/{p.pid}/exe").exists())
            code, said = attach(str(process.pid))
            process.kill()
        assert (code, words in said, len(said.splitlines())) == (2, True, 1), said


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become another user")
def test_the_process_of_another_user():
    """As a real other user."""
    source = (
        "import os, sys, locale; from poolwatch.commands import attach, main\n"
        "import poolwatch.commands.attach.arming, poolwatch.commands.attach.target\n"
        "main._parser()\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "sys.exit(main.main(['attach', str(os.getppid())]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", source], capture_output=True, check=False, text=True
    )
    assert done.returncode == 4, done.stderr
    assert "belongs to root" in done.stderr
