"""``poolwatch ps`` and the callers of a shared helper in another process."""

from __future__ import annotations

APP = """
    import sqlite3, sys, threading
    import poolwatch
    from sqlalchemy.pool import QueuePool

    pool = QueuePool(
        lambda: sqlite3.connect(":memory:", check_same_thread=False),
        pool_size=2, max_overflow=0, timeout=60,
    )
    poolwatch.instrument(pool, name="orders")
    taken, over = threading.Semaphore(0), threading.Event()

    def get_run():
        return pool.connect()  # the helper

    def log_batch():
        held = get_run()  # in log_batch
        taken.release()
        over.wait()
        held.close()

    def log_metric():
        held = get_run()  # in log_metric
        taken.release()
        over.wait()
        held.close()

    for work in (log_batch, log_metric):
        threading.Thread(target=work).start()
        taken.acquire()
    threading.Thread(target=log_metric).start()
    while not poolwatch.snapshot().processes[0].waits:
        pass
    print("ready", flush=True)
    sys.stdin.read()
    over.set()
"""


def test_every_command_names_both(apps):
    app = apps.start(APP, "shop.py")
    helper = apps.line("the helper", "shop.py")
    batch, metric = (
        apps.line(f"in {n}", "shop.py") for n in ("log_batch", "log_metric")
    )
    told = apps.poolwatch("ps", COLUMNS="200").stdout
    rows = [row for row in told.splitlines() if row.lstrip().startswith("ok ")]
    for line in (batch, metric):
        assert any(
            f"shop.py:{helper} from " in r and f"shop.py:{line} " in r for r in rows
        )
    (asks,) = [row for row in told.splitlines() if "waiting " in row and " at " in row]
    assert f"shop.py:{helper} from " in asks
    assert asks.endswith(f"shop.py:{metric}")

    (process,) = apps.ps()["processes"]
    (exhausted,) = [f for f in process["findings"] if f["kind"] == "exhausted"]
    assert f"shop.py:{batch}" in exhausted["proof"]
    assert f"shop.py:{metric}" in exhausted["proof"]
    assert [site["line"] for site in exhausted["sites"]] == [helper]

    by_site = apps.poolwatch("ps", "--sites", COLUMNS="160").stdout
    below = by_site.partition("call sites of orders")[2].splitlines()[3:]
    assert f"shop.py:{helper} " in below[0]
    assert {f"from {apps.home.name}/shop.py:{line}" for line in (batch, metric)} == {
        row.strip().partition("  ")[0] for row in below[1:3]
    }
    by_caller = apps.poolwatch("ps", "--sites", "--by", "caller", COLUMNS="200").stdout
    below = by_caller.partition("callers of orders")[2].splitlines()[3:]
    assert all(f"shop.py:{helper} from " in row for row in below[:2])
    assert "--by" in apps.poolwatch("ps", "--help").stdout
    assert apps.finish(app) == 0
