"""Servers with several workers: under load, a worker killed, reloaded, ended."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fault_ends import look
from faulty import Fault, Outcome, Skipped
from helpers import until
from programs import TESTS, ask, new_directory
from serving import free_port, knock


def python(*words: str) -> list[str]:
    return [sys.executable, "-m", *words]


def commands(port: int) -> dict[str, list[str]]:
    gunicorn = python("gunicorn", "-w", "2", "-b", f"127.0.0.1:{port}", "--preload")
    uwsgi = os.environ.get("UWSGI") or shutil.which("uwsgi-with-python") or ""
    http = f"127.0.0.1:{port}"
    return {
        "gunicorn-sync": [*gunicorn, "fault_app:app"],
        "gunicorn-gthread": [
            *gunicorn,
            *["-k", "gthread", "--threads", "4", "fault_app:app"],
        ],
        "gunicorn-gevent": [*gunicorn[:-1], "-k", "gevent", "fault_app:app"],
        "uvicorn": python(
            *f"uvicorn --workers 2 --port {port} --log-level warning".split(),
            "fault_app:asgi",
        ),
        "uwsgi": [
            uwsgi,
            *[
                "--master",
                "--processes",
                "2",
                "--threads",
                "2",
                "--die-on-term",
                "--need-app",
            ],
            *f"--http-socket {http} --disable-logging -w fault_app:app".split(),
        ],
        "celery": python(
            *[
                "celery",
                "-A",
                "fault_app:tasks",
                "worker",
                "--pool",
                "prefork",
                "-l",
                "error",
            ],
            *["--concurrency", "2"],
        ),
    }


@contextmanager
def running(
    command: list[str], directory: Path, **environ: str
) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    """The server, in a process group of its own, and the file with its output."""
    paths = os.pathsep.join(map(str, [TESTS.parent, TESTS, TESTS / "soaks"]))
    with tempfile.TemporaryFile("w+") as output:
        server = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={
                **os.environ,
                "PYTHONPATH": paths,
                "POOLWATCH_DIR": str(directory),
                **environ,
            },
        )
        try:
            yield server, output
        finally:
            if server.poll() is None:
                os.killpg(server.pid, signal.SIGKILL)
                server.wait()


def counters(directory: Path) -> list[dict[str, int]]:
    """The counters of each process that answers."""
    found = []
    for path in directory.glob("*.sock"):
        try:
            process = ask(path)["processes"][0]
        except OSError:
            continue
        pools = process["pools"]
        found.append({"holds": len(process["holds"]), **pools[0]["counters"]})
    return found


def judged(
    directory: Path, output: Any, server: subprocess.Popen[bytes]
) -> tuple[str, bool]:
    """End the server; what its processes counted and logged, and whether it is fine."""
    until(lambda: not any(each["holds"] for each in counters(directory)), 20)
    before = counters(directory)
    server.send_signal(signal.SIGTERM)
    code = server.wait(60)
    output.seek(0)
    text = output.read()
    lines = [line for line in text.splitlines() if "poolwatch" in line.lower()]
    most = max(Counter(line.split()[0] for line in lines).values(), default=0)
    raised = "Traceback" in text or "signal 11" in text
    balanced = all(
        each["checkouts"] == each["checkins"] and not each["leaked"] for each in before
    )
    seen = (
        f"{len(before)} processes seen, {sum(e['checkouts'] for e in before)} "
        f"checkouts, all returned: {balanced}, exit code {code}, {most} log lines "
        "of a process at most"
        + (f" ({lines[0][:70]})" if lines else "")
        + (f"; RAISED {text[-200:]!r}" if raised else "")
    )
    return seen, balanced and bool(before) and most <= 1 and not raised


def server(name: str) -> Fault:
    def fault(length: float) -> Outcome:
        port = free_port()
        command = commands(port)[name]
        if not shutil.which(command[0]):
            raise Skipped("no uWSGI with a Python plugin; name one in UWSGI")
        count = max(50, int(400 * length))
        over = threading.Event()
        with (
            new_directory() as directory,
            running(command, directory) as (program, output),
            ThreadPoolExecutor(12) as threads,
        ):
            until(lambda: knock(port) or program.poll() is not None)
            viewers = [threads.submit(look, directory, over) for _ in range(2)]
            answers: Counter[bytes] = Counter()
            for number in range(4):
                found = list(threads.map(lambda _: _get(port), range(count // 4)))
                answers.update(found)
                if number == 1:
                    _kill_one(answers, program)
                elif number == 2 and name.startswith("gunicorn"):
                    program.send_signal(signal.SIGHUP)
                    time.sleep(1)
            over.set()
            for viewer in viewers:
                viewer.result()
            seen, fine = judged(directory, output, program)
        pids = len(answers) - (b"" in answers)
        return (
            f"{count} requests, a worker killed"
            + (", a reload" if name.startswith("gunicorn") else ""),
            f"answers of {pids} workers, {answers[b'']} missing; {seen}",
            fine and pids >= 2 and answers[b""] <= count // 4,
        )

    return fault


def _get(port: int) -> bytes:
    """Missing answers are those of the worker that was killed."""
    try:
        return knock(port)
    except Exception:
        return b""


def _kill_one(answers: Counter[bytes], program: subprocess.Popen[bytes]) -> None:
    pids = [int(pid) for pid in answers if pid and int(pid) != program.pid]
    if pids:
        os.kill(pids[0], signal.SIGKILL)
        time.sleep(1)


def celery(length: float) -> Outcome:
    count = max(20, int(200 * length))
    with (
        new_directory() as directory,
        tempfile.TemporaryDirectory() as name,
    ):
        home = Path(name)
        (home / "queue").mkdir()
        (home / "control").mkdir()
        environ = {"FAULT_HOME": name}
        if os.getuid() == 0:
            environ["C_FORCE_ROOT"] = "1"
        command = commands(0)["celery"]
        with running(command, directory, **environ) as (program, output):
            send = f"import fault_app as a; [a.task.delay(n) for n in range({count})]"
            with running(
                [sys.executable, "-c", send],
                directory,
                POOLWATCH_DISABLE="1",
                **environ,
            ) as (sender, _):
                sender.wait(120)
            until(lambda: len(list(home.glob("done-*"))) >= count, 120)
            workers = {each.name.split("-")[2] for each in home.glob("done-*")}
            seen, fine = judged(directory, output, program)
    return (
        f"{count} tasks in two forked workers",
        f"{len(workers)} workers; {seen}",
        fine,
    )


SERVERS: dict[str, Fault] = {
    **{name: server(name) for name in commands(0) if name != "celery"},
    "celery": celery,
}
