"""What can only be seen from outside: the import and memory."""

from __future__ import annotations

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
                 "http.server", "sqlparse", "rich", "greenlet", "asyncpg",
                 "opentelemetry"}
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
    from poolwatch.agent.instrument import agent

    agent._guard.tripped = True  # no watchdog: it would resolve stacks meanwhile

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
        import time
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
            return process.holds[0].verdict

        leak()
        until = time.monotonic() + 60
        while (verdict := look()) != "leaked" and time.monotonic() < until:
            time.sleep(0.1)  # on a busy machine the proof takes two looks
        print(verdict)
        KEPT.pop().close()
    """)
    done = apps._run([sys.executable, *start])
    assert (done.stdout, done.stderr) == ("leaked\n", "")
