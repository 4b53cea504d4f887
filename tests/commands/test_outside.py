"""What can only be seen from outside: the import, memory, and the command line."""

from __future__ import annotations

import socket
import sys

import pytest

import poolwatch

pytestmark = pytest.mark.slow


def test_the_import_is_light(apps):
    """import poolwatch loads no pool library, driver, face or event loop."""
    done = apps.run("""
        import sys
        import poolwatch
        from poolwatch import instrument, label
        heavy = {"sqlalchemy", "textual", "psycopg2", "psycopg", "pytest", "asyncio",
                 "http.server", "sqlparse", "rich", "greenlet", "asyncpg"}
        print(sorted(heavy & set(sys.modules)))
    """)
    assert (done.stdout, done.stderr) == ("[]\n", "")


def test_the_exported_names():
    """Every public name is there, and nothing else is shown."""
    assert dir(poolwatch) == sorted(poolwatch.__all__)
    assert {
        "instrument", "uninstrument", "snapshot", "label", "long_hold", "Watch",
        "PoolwatchError", "Snapshot", "Hold", "Wait", "__version__",
    } <= set(poolwatch.__all__)  # fmt: skip
    for name in poolwatch.__all__:
        assert getattr(poolwatch, name) is not None
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = poolwatch.no_such_name


def test_python_c(apps):
    """Code of python -c is a call site like any other."""
    done = apps._run([
        __import__("sys").executable,
        "-c",
        "import poolwatch, sqlite3\nfrom sqlalchemy.pool import QueuePool\n"  # noqa: ISC004
        "pool = QueuePool(lambda: sqlite3.connect(':memory:'))\n"
        "watch = poolwatch.instrument(pool)\nheld = pool.connect()\n"
        "site = watch.holds()[0].site\nprint(site.file, site.line, site.function)\n"
        "held.close(); pool.dispose()",
    ])  # fmt: skip
    assert (done.stdout, done.stderr) == ("<string> 5 <module>\n", "")


MEMORY = """
    import gc, tracemalloc
    from sqlalchemy.pool import QueuePool
    import poolwatch

    class Driver:
        def rollback(self): pass
        def close(self): pass

    def deep(left, function, *rest):
        return deep(left - 1, function, *rest) if left else function(*rest)

    large = QueuePool(Driver, pool_size=1100, max_overflow=0)
    small = QueuePool(Driver, pool_size=5)
    sites = []
    for number in range({sites}):
        scope = {{"__name__": "generated"}}
        exec(f"def f{{number}}(pool):\\n    return pool.connect()", scope)
        sites.append(scope[f"f{{number}}"])
    for each in [large.connect() for _ in range(1100)]:
        each.close()
    held = [None] * 1000

    def now():
        gc.collect()
        return tracemalloc.get_traced_memory()[0]

    poolwatch.instrument(large, long_after=3600)  # no search while it is measured
    for each in [large.connect() for _ in range(1100)]:
        each.close()  # every connection has been met
    poolwatch.instrument(small, long_after=3600)
    deep(20, sites[0], small).close()
    tracemalloc.start(1)
    before = now()
    for number in range({cycles}):
        deep(20 + number % 7, sites[number % len(sites)], small).close()
    after_cycles = now()

    def plain():
        poolwatch.uninstrument(large)
        start = now()
        for at in range(1000):
            held[at] = deep(20, sites[at % len(sites)], large)
        cost = now() - start
        for each in held:
            each.close()
        return cost

    start = now()
    for at in range(1000):
        held[at] = deep(20, sites[at % len(sites)], large)
    per_hold = now() - start
    for each in held:
        each.close()
    for at in range(1000):
        held[at] = None
    print(after_cycles - before, (per_hold - plain()) / 1000)
"""


@pytest.mark.parametrize(("sites", "cycles"), [(30, 30_000), (10_000, 10_000)])
def test_memory_is_bounded(apps, sites, cycles):
    """At most 2 KiB a hold and 256 KiB an instrumented pool, after 30,000 cycles and
    with 10,000 call sites."""
    done = apps.run(MEMORY.format(sites=sites, cycles=cycles))
    assert done.stderr == ""
    per_pool, per_hold = map(float, done.stdout.split())
    print(f"{per_pool / 1024:.0f} KiB a pool, {per_hold:.0f} bytes a hold")
    assert per_hold <= 2048
    if sites <= 30:
        assert per_pool <= 256 * 1024
    else:
        assert per_pool <= 4 * 1024 * 1024


@pytest.mark.parametrize("start", [("app.py",), ("-m", "app")])
def test_a_leak_in_a_global_of_the_program(apps, start):
    """``python -m`` has the globals of the program in variables of its own."""
    apps.write("""
        import poolwatch
        from sqlalchemy.pool import QueuePool

        class Driver:
            def rollback(self): pass
            def close(self): pass

        KEPT = []
        pool = QueuePool(Driver)
        poolwatch.instrument(pool, long_after=1e-9)

        def leak():
            KEPT.append(pool.connect())

        def look():
            (process,) = poolwatch.snapshot().processes
            print(process.holds[0].verdict)

        leak()
        look()
        KEPT.pop().close()
    """)
    done = apps._run([sys.executable, *start])
    assert (done.stdout, done.stderr) == ("leaked\n", "")


# -- the command line ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "taught"),
    [
        ((), ("poolwatch.instrument(engine)", "ps", "tui", "demo", "exit codes")),
        (("ps",), ("--json", "--dir", "--dsn", "exit codes")),
        (("tui",), ("--refresh", "--dir", "--dsn")),
        (("demo",), ("--headless", "--seconds", "--json", "--dsn")),
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
    from poolwatch.text.format import width

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
    import subprocess
    import sys

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
