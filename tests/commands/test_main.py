"""The command line as a whole: help, exit codes, hostile text, a closed pipe."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from poolwatch.text.format import width


@pytest.mark.parametrize(
    ("command", "taught"),
    [
        ((), ("poolwatch.instrument(engine)", "ps", "tui", "demo", "exit codes")),
        (("ps",), ("--json", "--dir", "--dsn", "exit codes")),
        (("tui",), ("--refresh", "--dir", "--dsn")),
        (("demo",), ("--headless", "--seconds", "--json", "--dsn")),
        (("serve",), ("--host", "--port", "--anyone-may-look", "ssh -t -L")),
        (("check",), ("--severity", "minimum severity", "1 something is wrong")),
        (("advise",), ("--seconds", "--target", "--json", "--dir", "under load")),
        (("run",), ("poolwatch run -- ", "--environment", "POOLWATCH_DISABLE=1")),
        (("bench",), ("--operations", "--latency", "--dsn", "poolwatch_bench")),
    ],
)
def test_help_teaches(apps, command, taught):
    """--help of each command says what it does and what one can give it."""
    done = apps.poolwatch(*command, "--help")
    assert done.returncode == 0
    for word in taught:
        assert word in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        ((), 2),
        (("nothing",), 2),
        (("ps", "--nothing"), 2),
        (("tui", "--refresh", "soon"), 2),
        (("advise", "--target", "nan"), 2),
        (("ps",), 3),
        (("ps", "--json"), 3),
        (("ps", "--dir", "no/such/place"), 3),
        (("ps", "--dir", "app.py"), 2),
        (("ps", "--dir", "x" * 400), 2),
        (("ps", "--dir", "~no-such-user/x"), 2),
        (("ps", "--dir", "open"), 4),
        (("--version",), 0),
    ],
)
def test_exit_codes(apps, arguments, code):
    """Each kind of trouble has its exit code and a sentence, never a traceback."""
    apps.write("")
    (apps.home / "open").mkdir()
    (apps.home / "open").chmod(0o777)
    done = apps.poolwatch(*arguments)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert bool(done.stderr) == (code != 0)


def test_hostile_text_in_a_narrow_table(apps):
    """Statements, names and labels with escapes, brackets and wide characters fit 80
    cells, also on a terminal that knows ASCII only."""
    app = apps.start("""
        import sys, threading
        from sqlalchemy import create_engine, text
        from sqlalchemy.pool import QueuePool
        import poolwatch
        engine = create_engine("sqlite:///app.db", poolclass=QueuePool)
        poolwatch.instrument(engine, name="[/b]\\x1b[31m漢字" * 30)
        threading.current_thread().name = "t\\x1b]0;owned\\x07\\u202e漢" * 9
        def a_function_with_a_rather_long_name_indeed():
            held = engine.connect()  # taken here
            held.execute(text("select '\\x1b[2J', 1 as \\"[/x]\\x1b[31m漢字漢字\\" -- " + "x" * 9000))
            return held
        held = a_function_with_a_rather_long_name_indeed()
        print("ready", flush=True)
        sys.stdin.read()
        held.close()
        engine.dispose()
    """)  # noqa: E501
    done = apps.poolwatch("ps", COLUMNS="80")
    assert (done.returncode, done.stderr) == (0, "")
    assert "\x1b" not in done.stdout
    head, *rows = done.stdout.splitlines()[-2:]
    assert head.split()[:2] == ["VERDICT", "HELD"]
    for line in (head, *rows):
        assert width(line) <= 80, line
    assert f"app.py:{apps.line('taken here')} " in rows[0]
    ascii_only = apps.poolwatch("ps", COLUMNS="80", PYTHONIOENCODING="ascii")
    assert (ascii_only.returncode, ascii_only.stderr) == (0, "")
    assert apps.poolwatch("ps", "--json", PYTHONIOENCODING="ascii").returncode == 0
    assert apps.finish(app) == 0


def test_a_closed_pipe(apps):
    """``poolwatch ps | head -0`` ends quietly."""
    reader, writer = socket.socketpair()
    reader.close()
    with writer:
        done = subprocess.run(
            [sys.executable, "-m", "poolwatch", "--help"],
            stdout=writer.fileno(),
            stderr=subprocess.PIPE,
            check=False,
            env=apps.environ,
            cwd=apps.home,
        )
    assert b"Traceback" not in done.stderr
