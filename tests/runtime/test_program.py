"""Names of processes: the program that was started, and the worker's number."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import until

from poolwatch.runtime.installation import import_path
from poolwatch.runtime.program import words_of

POOL = """
    import sqlite3, sys, time
    import poolwatch
    from sqlalchemy.pool import QueuePool

    def watch():
        pool = QueuePool(lambda: sqlite3.connect(":memory:"))
        poolwatch.instrument(pool)
        pool.connect().close()
        return pool
"""
SERVE = """
    pool = watch()
    print("ready", flush=True)
    sys.stdin.read()
"""


def called(document):
    return sorted(process["program"] for process in document["processes"])


def titles(apps):
    """The heading of each process in ``poolwatch ps``."""
    done = apps.poolwatch("ps")
    assert done.returncode == 0, done.stderr
    return sorted(
        line.partition("  pid")[0]
        for line in done.stdout.splitlines()
        if "  pid" in line and not line.startswith(" ")
    )


def titles_of(apps, count):
    """The headings, once there are so many processes."""

    def found():
        there = apps.poolwatch("ps").returncode == 0
        return there and len(all_titles := titles(apps)) == count and all_titles

    return until(found, what=f"not {count} processes")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        (["python3", "/v/bin/airflow", "scheduler"], ("airflow", "scheduler")),
        (["/v/bin/python3.11", "-m", "mlflow", "server", "--backend-store-uri", "x:y@"],
         ("mlflow", "server")),
        (["python", "-X", "dev", "-Wd", "-u", "app.py", "S3cret"], ("app.py",)),
        (["python", "-Wd", "-um", "shop.worker", "run", "all", "more"],
         ("shop.worker", "run", "all")),
        (["python", "/v/bin/celery", "-A", "shop", "worker"], ("celery", "worker")),
        (["python", "app.py", "--password", "hunter"], ("app.py",)),
        (["python", "--check-hash-based-pycs", "always", "x.py"], ("x.py",)),
        (["python", "/srv/app/__main__.py"], ("app",)),
        (["python", "-c", "from multiprocessing.spawn import spawn_main"], ()),
        (["python", "-c", "print(1)"], None),
        (["python", "-m"], None), (["python"], None), (["python", "-"], None),
        ([], None), ([""], None), (["bash", "-c", "true"], None),
    ],
)  # fmt: skip
def test_words_of_a_command_line(line, words):
    assert words_of(line) == words


def test_subcommands_are_part_of_the_name(apps):
    for word in ("scheduler", "worker"):
        apps.start(POOL + SERVE, "shop.py", word, "--dsn", "hunter2")
    assert called(apps.ps()) == ["shop.py scheduler", "shop.py worker"]
    assert titles(apps) == ["shop.py scheduler", "shop.py worker"]


def test_two_processes_of_one_program_are_not_workers(apps):
    """Nothing shows that they belong together."""
    for _ in range(2):
        apps.start(POOL + SERVE, "shop.py", "serve")
    assert titles(apps) == ["shop.py serve"] * 2


@pytest.mark.parametrize("way", ["fork", "spawn", "forkserver"])
def test_workers_of_one_parent_have_numbers(apps, way):
    app = apps.start(
        POOL
        + f"""
    import multiprocessing, threading

    def work(done):
        pool = watch()
        done.wait()

    if __name__ == "__main__":
        context = multiprocessing.get_context({way!r})
        done = context.Event()
        for _ in range(3):
            context.Process(target=work, args=(done,), daemon=True).start()
        print("ready", flush=True)
        sys.stdin.read()
        done.set()
    """,
        "shop.py",
        "serve",
    )
    assert titles_of(apps, 3) == [f"shop.py serve, worker {n}" for n in (1, 2, 3)]
    apps.finish(app)  # a killed parent would leave the workers of a fork server behind


def test_a_server_has_the_name_of_the_program_that_starts_it(apps, tmp_path):
    """As mlflow server starts gunicorn."""
    port = 18000 + os.getpid() % 1000
    apps.write(
        POOL + "\n    def app(*_): pass\n    pool = watch()\n", name="site_app.py"
    )
    source = f"""
        import subprocess, sys
        served = subprocess.Popen([sys.executable, "-m", "gunicorn", "--workers", "2",
            "--bind", "127.0.0.1:{port}", "site_app:app"], stderr=subprocess.DEVNULL)
        print("ready", flush=True)
        sys.stdin.read()
        served.terminate()
        served.wait()
    """
    app = apps.start(source, "tracker", "server")
    assert titles_of(apps, 2) == [
        "tracker server, worker 1",
        "tracker server, worker 2",
    ]
    app.stdin.close()
    app.wait(20)


@pytest.mark.parametrize(
    "change", ["sys.argv = []", "sys.orig_argv = []; sys.argv[:] = [None]"]
)
def test_a_command_line_that_was_changed(apps, change):
    apps.start(POOL + f"\n    {change}\n" + SERVE, "shop.py", "serve")
    (process,) = apps.ps()["processes"]
    assert process["program"].startswith(("shop.py", "python"))


def test_the_given_name_stays(apps):
    apps.environ["POOLWATCH_NAME"] = "shop"
    apps.start(POOL + SERVE, "shop.py", "serve")
    (process,) = apps.ps()["processes"]
    assert (process["name"], process["program"]) == ("shop", "shop.py serve")
    assert titles(apps) == ["shop"]


def test_a_console_script(apps, tmp_path):
    """Started through its shebang line, like an installed application."""
    script = tmp_path / "bin" / "shopd"
    script.parent.mkdir()
    apps.write(POOL + SERVE, "bin/shopd")
    script.write_text(f"#!{sys.executable}\n{script.read_text()}")
    script.chmod(0o755)
    app = subprocess.Popen(
        [str(script), "scheduler"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=apps.environ,
        cwd=Path(tmp_path),
    )
    apps.running.append(app)
    assert app.stdout.readline().strip() == "ready"
    assert called(apps.ps()) == ["shopd scheduler"]


def test_a_file_is_named_relative_to_where_it_was_imported_from(monkeypatch, tmp_path):
    """By the nearest entry of sys.path; a file outside of all keeps its name."""
    inner = tmp_path / "site-packages"
    monkeypatch.setattr(sys, "path", [str(tmp_path), f"{inner}/", "", 7])
    import_path.cache_clear()
    assert import_path(f"{tmp_path}/shop/orders.py") == "shop/orders.py"
    assert import_path(f"{inner}/lib/pool.py") == "lib/pool.py"
    assert import_path("/elsewhere/x.py") == "/elsewhere/x.py"
    import_path.cache_clear()
