"""What is scraped, from records: names, labels, sums, and counters that never fall."""

from __future__ import annotations

import socket
import urllib.error
import urllib.request
from dataclasses import replace

import pytest
from fakes import (
    counters,
    finding,
    frame,
    hold,
    pool,
    process,
    server_status,
    snapshot,
)
from helpers import until
from prometheus_client.parser import text_string_to_metric_families

from poolwatch.errors import ForbiddenError, UsageError
from poolwatch.model import (
    NO_SAMPLES,
    OTHER_SITES,
    Distribution,
    LabelStats,
    SiteStats,
    Snapshot,
    Unreachable,
)
from poolwatch.sidecar.looks import Look
from poolwatch.sidecar.metrics.endpoint import Metrics

POOL = "db_client_connection_pool_name"
WHO = {"process_pid": "8812", "service_name": "orders-api", "host_name": "web-1"}


@pytest.fixture
def serve():
    served = []

    def start(**options):
        served.append(Metrics("0", **options))
        return served[-1]

    yield start
    for each in served:
        each.close()


@pytest.fixture
def metrics(serve):
    return serve()


def look(*processes, error=None, **changes):
    return Look(1e9, 0.02, Snapshot(processes, **changes), error)


def scraped(metrics, name, **labels):
    """The values of one series name, by those labels that are not in ``labels``."""
    found = {}
    for family in text_string_to_metric_families(metrics.text()[0].decode()):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                rest = {v for k, v in sample.labels.items() if k not in labels}
                found[frozenset(rest)] = sample.value
    return {next(iter(k)) if len(k) == 1 else k: v for k, v in found.items()}


def one(metrics, name, **labels):
    (value,) = scraped(metrics, name, **labels).values()
    return value


def site(place="app.py:1", held_s=1.0, leaked=0, caused=0.0, pool="orders"):
    at = frame(f"/srv/{place}")
    return SiteStats(
        pool, at, 1, 1.0, NO_SAMPLES, NO_SAMPLES, leaked,
        wait_caused_s=caused, held_s=held_s, path=place.rpartition(":")[0],
    )  # fmt: skip


def label(value, held_s=1.0, name="endpoint"):
    return LabelStats(
        "orders",
        name,
        value,
        1,
        1.0,
        NO_SAMPLES,
        NO_SAMPLES,
        0,
        None,
        None,
        0.5,
        held_s,
    )


def with_leaks(leaked, **changes):
    return process(
        pools=(pool(counters=counters(leaked=leaked)),),
        sites=(site(leaked=leaked),),
        **changes,
    )


def test_names_and_labels_of_the_contract(metrics):
    waits = Distribution(12, 30.5, 11, 1, 5, 9, up_to=(1, 2, 3, 4, 5, 6, 7, 8, 9))
    metrics.take(
        look(
            process(
                hold(verdict="leaked", held_s=9.0),
                hold("h2", verdict="ok"),
                pools=(pool(checked_out=2, served_s=waits, lost_slots=1, waiting=3),),
                sites=(site("shop/db.py:7", 4.0, 1, caused=2.5),),
                findings=(finding(), finding("over_capacity", pool=None)),
            )
        )
    )
    at = {POOL: "orders", **WHO}
    state = "db_client_connection_state"
    assert scraped(metrics, "db_client_connection_count", **at) == {
        "used": 2,
        "idle": 4,
    }
    assert one(metrics, "db_client_connection_count", **at, **{state: "used"}) == 2
    for name, value in {
        "db_client_connection_idle_max": 5,
        "db_client_connection_idle_min": 0,
        "db_client_connection_max": 10,
        "db_client_connection_pending_requests": 3,
        "db_client_connection_timeouts_total": 0,
        "db_client_connection_create_time_seconds_count": 0,
        "db_client_connection_use_time_seconds_sum": 0,
        "db_client_connection_wait_time_seconds_count": 12,
        "db_client_connection_wait_time_seconds_sum": 30.5,
        "poolwatch_oldest_hold_seconds": 9,
        "poolwatch_lost_slots": 1,
        "poolwatch_server_sessions": 61,
        "poolwatch_server_max_connections": 100,
    }.items():
        assert scraped(metrics, name, **at) == {frozenset(): value}, name
    buckets = scraped(metrics, "db_client_connection_wait_time_seconds_bucket", **at)
    assert buckets == {
        "0.001": 1, "0.005": 2, "0.01": 3, "0.05": 4, "0.1": 5, "0.5": 6, "1.0": 7,
        "5.0": 8, "10.0": 9, "+Inf": 12,
    }  # fmt: skip
    verdicts = scraped(metrics, "poolwatch_holds", **at)
    assert verdicts == {"ok": 1, "long": 0, "leaked": 1}
    leaks = scraped(metrics, "poolwatch_leaks_total", **at)
    assert leaks == {"shop/db.py:7": 1, "other": 0}
    here = {**at, "call_site": "shop/db.py:7"}
    assert one(metrics, "poolwatch_held_seconds_total", **here) == 4
    assert one(metrics, "poolwatch_wait_caused_seconds_total", **here) == 2.5
    found = {"kind": "exhausted", "severity": "critical"}
    assert scraped(metrics, "poolwatch_findings", **at, **found) == {frozenset(): 1}
    assert scraped(metrics, "poolwatch_findings", **WHO, kind="over_capacity") == {
        "critical": 1
    }
    assert scraped(metrics, "poolwatch_up", **WHO) == {frozenset(): 1}


def test_what_a_pool_does_not_have_is_absent(metrics):
    endless = pool(max_overflow=-1, idle=None)
    metrics.take(
        look(process(pools=(endless,), servers=(server_status(sessions=None),)))
    )
    assert not scraped(metrics, "db_client_connection_max")
    assert not scraped(metrics, "db_client_connection_wait_time_seconds_count")
    assert not scraped(metrics, "poolwatch_server_sessions")
    assert len(scraped(metrics, "db_client_connection_count")) == 1


def test_the_longest_holding_call_sites_have_names_and_keep_them(metrics):
    many = tuple(site(f"app.py:{n}", held_s=n) for n in range(1, 41))
    metrics.take(look(process(sites=(*many, replace(many[0], site=OTHER_SITES)))))
    held = scraped(metrics, "poolwatch_held_seconds_total", **WHO, **{POOL: "orders"})
    assert len(held) == 33
    assert held["other"] == sum(range(1, 9)) + 1
    grown = tuple(replace(each, held_s=1000 - each.held_s) for each in many)
    metrics.take(look(process(sites=grown)))
    later = scraped(metrics, "poolwatch_held_seconds_total", **WHO, **{POOL: "orders"})
    assert later.keys() == held.keys()
    assert all(later[name] >= held[name] for name in held)


def test_counters_never_fall_when_a_pool_or_a_call_site_goes(serve):
    metrics = serve(by_label=["endpoint"])
    first, second = pool("a"), pool("a", id="b")
    sites = site("x.py:1", 5, 2, pool="a"), site("x.py:1", 7, 1, pool="b")
    metrics.take(look(process(pools=(first, second), sites=sites)))
    # the second pool, and the statistics of the call site, go before any scrape
    metrics.take(look(process(pools=(first,), sites=())))
    assert one(metrics, "poolwatch_held_seconds_total", call_site="x.py:1") == 12
    metrics.take(look(process(pools=(first,), sites=(site("x.py:1", 1, 1, pool="a"),))))
    assert one(metrics, "poolwatch_held_seconds_total", call_site="x.py:1") == 13
    assert one(metrics, "poolwatch_leaks_total", call_site="x.py:1") == 4


def test_pools_without_end(metrics):
    for n in range(300):
        metrics.take(look(process(pools=(pool("main"), pool(f"pool-{n}")))))
    names = scraped(metrics, "db_client_connection_timeouts_total", **WHO)
    assert len(names) == 16 + 2
    assert {"main", "pool-299"} <= names.keys()
    metrics.take(look(process(pools=tuple(pool(f"pool-{n}") for n in range(300)))))
    names = scraped(metrics, "db_client_connection_max", **WHO)
    assert len(names) <= 129
    assert sum(names.values()) == 3000


def test_labels_of_the_application(serve):
    metrics = serve(by_label=["endpoint", "http.route"])
    labels = label("/orders"), label("/pay", 3.0), label("eu", name="region")
    metrics.take(look(process(labels=(*labels, label("/{id}", name="http.route")))))
    name = "poolwatch_held_seconds_total"
    assert one(metrics, name, label_endpoint="/pay") == 3
    assert one(metrics, name, label_http_route="/{id}") == 1
    assert "region" not in metrics.text()[0].decode()
    assert one(metrics, "poolwatch_wait_caused_seconds_total", label_endpoint="/pay")


def test_no_two_series_are_the_same_whatever_the_names(metrics):
    odd = 'a "b" \\ c\nd\x00 \ud800' + "x" * 300
    twins = pool(odd, id="1"), pool(odd + "y", id="2")
    busy = process(
        pools=twins, name=odd, sites=(site(f"{odd}:1", pool="1"),),
        findings=(finding(pool="1"), finding(pool="2")),
    )  # fmt: skip
    metrics.take(look(busy, replace(busy, started_at="later")))
    text = metrics.text()[0].decode()
    names = [line.rpartition(" ")[0] for line in text.splitlines()]
    assert len(names) == len(set(names))
    assert max(map(len, text.splitlines())) < 1200
    assert one(metrics, "db_client_connection_max", process_pid="8812") == 40
    assert one(metrics, "poolwatch_oldest_hold_seconds", process_pid="8812") == 0
    assert one(metrics, "poolwatch_up", process_pid="8812") == 2


def test_without_pids_a_service_is_one_and_outlives_its_workers(serve):
    metrics = serve(pid_label=False)
    first = with_leaks(3, pid=1, holds=(hold(held_s=5.0),))
    metrics.take(look(first, with_leaks(4, pid=2, holds=(hold(held_s=9.0),))))
    leaks = {"call_site": "app.py:1", "service_name": "orders-api"}
    assert "process_pid" not in metrics.text()[0].decode()
    assert one(metrics, "poolwatch_leaks_total", **leaks) == 7
    assert one(metrics, "poolwatch_oldest_hold_seconds") == 9
    assert one(metrics, "poolwatch_server_sessions") == 61
    assert one(metrics, "poolwatch_up") == 2
    for _ in range(5):
        metrics.take(look(first))
    assert one(metrics, "poolwatch_leaks_total", **leaks) == 7
    assert one(metrics, "poolwatch_up") == 1


def test_new_lines_of_a_service_get_the_places_of_its_former_ones(serve):
    metrics = serve(pid_label=False)
    before = process()
    for deployment in range(5):
        sites = tuple(site(f"app.py:{10 * deployment + n}") for n in range(10))
        now = process(pid=deployment + 1, sites=sites)
        for both in (True, True, False, False, False, False):
            sites = tuple(replace(each, held_s=each.held_s + 1) for each in now.sites)
            now = replace(now, sites=sites)
            metrics.take(look(now, *[before] * both))
            held = scraped(
                metrics,
                "poolwatch_held_seconds_total",
                service_name="orders-api",
                host_name="web-1",
                **{POOL: "orders"},
            )
        before = now
    assert {f"app.py:{40 + n}" for n in range(10)} <= held.keys()
    assert len(held) <= 33


def test_silent_then_gone(metrics):
    here, other = with_leaks(2), process(pid=9)
    metrics.take(look(here, other))
    silent = Unreachable(8812, "it does not answer", alive=True)
    for _ in range(5):
        metrics.take(look(other, unreachable=(silent,)))
    assert one(metrics, "poolwatch_up", **WHO) == 0
    assert one(metrics, "poolwatch_up", **WHO | {"process_pid": "9"}) == 1
    assert not scraped(metrics, "db_client_connection_max", **WHO)  # unknown now
    assert one(metrics, "poolwatch_leaks_total", **WHO, call_site="app.py:1") == 2
    assert one(metrics, "poolwatch_sidecar_missing", what="process") == 1
    ended = Unreachable(8812, "it has ended", alive=False)
    for up in (1, 1, 0):
        metrics.take(look(other, unreachable=(ended,)))
        assert len(scraped(metrics, "poolwatch_up", **WHO)) == up
    assert "8812" not in metrics.text()[0].decode()
    metrics.take(look(with_leaks(1, started_at="later")))
    assert one(metrics, "poolwatch_leaks_total", **WHO, call_site="app.py:1") == 1


def test_a_pid_that_is_used_again_begins_at_0(metrics):
    metrics.take(look(with_leaks(5)))
    metrics.take(look(with_leaks(1, started_at="2026-01-01T12:01:00Z")))
    assert one(metrics, "poolwatch_leaks_total", call_site="app.py:1") == 1
    assert one(metrics, "poolwatch_up") == 1


def test_a_process_that_has_never_answered(metrics):
    metrics.take(look(unreachable=(Unreachable(77, "it is stopped", alive=True),)))
    assert one(metrics, "poolwatch_up", process_pid="77") == 0


def test_failed_looks(serve):
    metrics = serve(dropped=lambda: 17)
    metrics.take(look(process()))
    for _ in range(4):
        metrics.take(look(error="the directory cannot be read"))
    assert one(metrics, "poolwatch_up", **WHO) == 0
    assert one(metrics, "poolwatch_sidecar_looks_total") == 5
    assert one(metrics, "poolwatch_sidecar_failed_looks_total") == 4
    assert one(metrics, "poolwatch_sidecar_look_seconds_count") == 5
    assert one(metrics, "poolwatch_sidecar_history_dropped_total") == 17


def get(url, **headers):
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers)) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def test_endpoint(metrics, monkeypatch):
    metrics.take(Look(0, 0.1, snapshot(process())))
    root = metrics.url.removesuffix("/metrics")
    kind, text = get(metrics.url)
    assert kind.startswith("text/plain")
    assert "poolwatch_up{" in text
    assert get(metrics.url, Accept="application/openmetrics-text")[1].endswith(
        "# EOF\n"
    )
    assert get(root + "/healthz")[1] == "ok\n"
    with pytest.raises(urllib.error.HTTPError, match="404") as refused:
        get(root + "/")
    refused.value.close()
    metrics._looked_at -= 60
    with pytest.raises(urllib.error.HTTPError, match="503") as refused:
        get(root + "/healthz")
    refused.value.close()


def test_slow_clients_take_no_place_for_ever(metrics, monkeypatch):
    monkeypatch.setattr("poolwatch.sidecar.metrics.endpoint._PATIENCE_S", 0.3)
    monkeypatch.setattr("poolwatch.sidecar.metrics.endpoint._MAX_OPEN", 3)
    address = metrics._server.server_address
    slow = [socket.create_connection(address) for _ in range(9)]

    def is_left(client):
        try:
            client.sendall(b"x")
        except OSError:
            return True
        return False

    until(lambda: {is_left(client) for client in slow} == {True})
    until(lambda: not metrics._server._open)
    assert get(metrics.url)
    for client in slow:
        client.close()


@pytest.mark.parametrize(
    "address", ["", "x", "70000", ":9646", "a:b:1", "-1", "9646 ", "127.0.0.1:"]
)
def test_an_address_that_is_none(address):
    with pytest.raises(UsageError, match=r"^--metrics '.*' is not an address"):
        Metrics(address)


def test_addresses_that_cannot_be_served(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        for same in (address, address.removeprefix("127.0.0.1:")):
            with pytest.raises(UsageError, match=f"^{address} is taken"):
                Metrics(same)
    with pytest.raises(UsageError, match=r"^metrics cannot be served at 192\.0\.2\.1"):
        Metrics("192.0.2.1:9646")
    with pytest.raises(UsageError, match="cannot be served at no-such-host"):
        Metrics("no-such-host.invalid:9646")

    def refused(*_):
        raise PermissionError

    monkeypatch.setattr("socketserver.TCPServer.server_bind", refused)
    with pytest.raises(ForbiddenError, match="may not serve"):
        Metrics("127.0.0.1:80")
