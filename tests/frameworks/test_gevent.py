"""gevent and eventlet: greenlets that hold connections, and leaks among them."""

from __future__ import annotations

import itertools

import pytest
from helpers import until
from serving import place, places, seen

pytestmark = [pytest.mark.slow, pytest.mark.processes]

FILE = "green.py"
BLOCKING, GREEN = "blocking", "psycogreen"
FIRST, LAST = "patched-first", "patched-last"
WAYS = list(itertools.product(["gevent", "eventlet"], [BLOCKING, GREEN], [FIRST, LAST]))
LEAKS = {
    "leak_kept_in_a_list": "leaked.abandoned",
    "leak_ended": "leaked.orphaned",
    "leak_before_the_end": "leaked.orphaned",
    "leak_session_not_removed": "leaked.abandoned",
    "leak_of_psycopg2": "leaked.abandoned",
}
FINE = 15
"""Shapes of honest work; one more where a statement does not stop all others."""


def shape_of(hold):
    """By the label, or by the function that began: a new greenlet has no labels."""
    names = [hold["labels"].get("shape", ""), *(f["function"] for f in hold["stack"])]
    return next((n for n in names if n.startswith(("fine_", "leak_"))), None)


def kinds_by_hold(process):
    """The kinds of leak that were found, by the id of the hold."""
    return {
        hold: finding["kind"]
        for finding in process["findings"]
        if finding["kind"].startswith("leaked")
        for hold in finding["holds"]
    }


def judged(count):
    """All that are out, once each has been for longer than the threshold."""

    def all_old():
        found = seen()
        out = [hold for process in found for hold in process["holds"]]
        old = [hold for hold in out if hold["held_s"] > 1]
        return found if len(out) == len(old) == count else None

    return next(process for process in until(all_old) if process["holds"])


@pytest.fixture
def green(start, postgres):
    """Starts the application in one of the ways."""

    def begin(*way):
        environ = {"SHOP_DSN": postgres.dsn, "PYTHONWARNINGS": "ignore"}
        return start(FILE, *way, **environ)

    return begin


@pytest.mark.parametrize("way", WAYS, ids="-".join)
def test_honest_work_and_leaks(green, tmp_path, way):
    """Suspended greenlets run: what they have is in use, and only leaks are leaks."""
    app = green(*way)
    count = FINE + len(LEAKS) + (GREEN in way)

    def leaks():
        process = judged(count)
        kinds = kinds_by_hold(process)
        found = {shape_of(h): kinds.get(h["id"]) for h in process["holds"]}
        leaks = {shape: kind for shape, kind in found.items() if kind}
        assert leaks.items() <= LEAKS.items()
        return leaks, process

    until(lambda: leaks()[0] == LEAKS)  # a search that was cut short accuses nobody
    found, process = leaks()
    assert found == LEAKS
    until(lambda: told_of(tmp_path) >= len(LEAKS))
    assert told_of(tmp_path) == len(LEAKS)
    assert sum(pool["counters"]["leaked"] for pool in process["pools"]) == len(LEAKS)
    assert app.poll() is None


def told_of(tmp_path):
    """How many leaks the log tells of."""
    lines = [x for x in (tmp_path / "log").read_text().splitlines() if "leak on" in x]
    more = [int(x.partition("(and ")[2].split()[0]) for x in lines if "(and " in x]
    return len(lines) + sum(more)


def test_each_greenlet_is_a_holder(green):
    """It has its own name, and its stack is where it is suspended."""
    green("gevent", BLOCKING, FIRST)
    holds = judged(FINE + len(LEAKS))["holds"]
    (asleep,) = [h for h in holds if h["labels"].get("shape") == "fine_asleep"]
    (thread,) = [h for h in holds if h["thread"] == "reporter"]
    assert asleep["thread"].startswith("Greenlet-")
    for hold in (asleep, thread):
        assert place(FILE, "asleep", "fine_asleep") in places(hold["now"])


GUNICORN = (
    *("gunicorn", "-k", "gevent", "--bind", "127.0.0.1:{port}", "--timeout", "120"),
    "green_shop:app",
)


@pytest.mark.parametrize("preload", [(), ("--preload",)], ids=["late", "preload"])
@pytest.mark.parametrize("psycogreen", ["", "1"], ids=[BLOCKING, GREEN])
def test_gunicorn(serve, preload, psycogreen):
    """Its requests are greenlets: two that last are at work, the third has leaked."""
    shop = serve(
        *GUNICORN, *preload, PYTHONWARNINGS="ignore", SHOP_PSYCOGREEN=psycogreen
    )
    shop.begin("/report", "/report")
    assert shop.get("/keep") == "done"

    holds = judged(3)["holds"]
    assert places([hold["site"] for hold in holds]) == {
        place("green_shop.py", "for a request", "app")
    }
    assert sorted(hold["verdict"] for hold in holds) == ["leaked", "long", "long"]
    # gevent gives the number of a greenlet that has ended to the next one, so only the
    # two that run are sure to have names of their own.
    at_work = {hold["thread"] for hold in holds if hold["verdict"] == "long"}
    assert len(at_work) == 2
