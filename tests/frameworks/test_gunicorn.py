"""gunicorn --preload: an engine that the master has used, and workers made by fork."""

from __future__ import annotations

import pytest
from helpers import until
from serving import place, places, seen

pytestmark = pytest.mark.processes

FILE = "shop.py"
BIND = ("--workers", "2", "--bind", "127.0.0.1:{port}")
APP = ("shop:app",)
NO_HOOK = ("gunicorn", "--preload", *BIND, *APP)
WITH_HOOK = ("gunicorn", "--config", "gunicorn_conf.py", *BIND, *APP)


def workers(shop):
    """Pids of the two that answer, each with the backends that it has used."""
    found: dict[str, set[str]] = {}

    def both():
        pid, backend = shop.get().split()
        found.setdefault(pid, set()).add(backend)
        return len(found) == 2 and found

    return until(both)


def test_fresh_pools_in_each_worker(serve):
    """Each is reachable and has books of its own; nothing is wrong."""
    shop = serve(*WITH_HOOK)
    backends = workers(shop)
    until(lambda: set(backends) <= {str(p["pid"]) for p in seen()})
    assert len(set().union(*backends.values())) == 2
    assert shop.findings() == []
    keeping = shop.get("/keep").split()[0]
    (hold,) = shop.held(1)
    (owner,) = [p for p in seen() if p["holds"]]
    assert str(owner["pid"]) == keeping
    assert places([hold["site"]]) == {place(FILE, "in a worker", "app")}


def test_the_masters_connection_in_a_worker(serve):
    """Without the hook they share one session of the server, and that is told."""
    shop = serve(*NO_HOOK)
    backends = workers(shop)
    assert len(set().union(*backends.values())) == 1
    keeping = shop.get("/keep").split()[0]
    found = shop.finding("fork_shared")
    assert places(found["sites"]) == {place(FILE, "in a worker", "app")}
    assert "engine.dispose(close=False)" in found["remedy"]
    (owner,) = [p for p in seen() if p["holds"]]
    assert str(owner["pid"]) == keeping
