"""A real Prometheus scrapes two applications and answers what people ask."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import threading
import urllib.parse
import urllib.request

import pytest
from helpers import until
from serving import free_port

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.sidecar.looks import Looks
from poolwatch.sidecar.metrics.endpoint import Metrics
from poolwatch.sidecar.metrics.shipped import shipped

pytestmark = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="needs Prometheus: apt-get install prometheus",
)
APP = """
    import sys, threading, time
    from contextlib import suppress
    from sqlalchemy import create_engine, exc, text
    import poolwatch

    url, = sys.argv[1:]
    engine = create_engine(url, pool_size=2, max_overflow=0, pool_timeout=0.2)
    poolwatch.instrument(engine, name=sys.argv[0].rpartition("/")[2][:-3])

    def work():
        while True:
            with suppress(exc.TimeoutError), engine.connect() as connection:  # held
                connection.execute(text("select pg_sleep(0.15)"))
            time.sleep(0.05)

    def leak():
        while True:
            with suppress(exc.TimeoutError):
                engine.connect()  # leaked
            time.sleep(0.5)

    for target in (work, work, work, leak):
        threading.Thread(target=target, daemon=True).start()
    print("ready", flush=True)
    sys.stdin.read()
"""
VARIABLES = {
    "$__rate_interval": "10s",
    "$__range": "1m",
    **dict.fromkeys(("$pool", "$service", "$host"), ".*"),
}


def panels():
    """The expressions of the dashboard, each variable with a value."""
    for panel in json.loads(shipped("dashboard"))["panels"]:
        for target in panel["targets"]:
            expression = target["expr"]
            for name, value in VARIABLES.items():
                expression = expression.replace(name, value)
            yield expression


def tool(*args, text=None):
    return subprocess.run(
        ["promtool", *args], input=text, capture_output=True, text=True, check=False
    )


@pytest.fixture
def metrics(apps):
    served = Metrics("0")
    looks = Looks(LiveSource(Client(apps.directory)), [served], 0.3)
    thread = threading.Thread(target=looks.run)
    thread.start()
    yield served
    looks.stop()
    thread.join()


@pytest.fixture
def ask(metrics, tmp_path):
    """Asks Prometheus: the values of the answer, by the values of its labels."""
    (tmp_path / "alerts.yml").write_text(shipped("alerts"))
    target = metrics.url.removeprefix("http://").removesuffix("/metrics")
    config = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["alerts.yml"],
        "scrape_configs": [
            {"job_name": "poolwatch", "static_configs": [{"targets": [target]}]}
        ],
    }
    (tmp_path / "prometheus.yml").write_text(json.dumps(config))
    root = f"127.0.0.1:{free_port()}"
    server = subprocess.Popen(
        [
            "prometheus", f"--web.listen-address={root}", "--log.level=error",
            f"--config.file={tmp_path}/prometheus.yml",
            f"--storage.tsdb.path={tmp_path}/data",
        ]
    )  # fmt: skip

    def query(expression):
        data = urllib.parse.urlencode({"query": expression}).encode()
        try:
            with urllib.request.urlopen(f"http://{root}/api/v1/query", data) as answer:
                result = json.load(answer)["data"]["result"]
        except ConnectionError:  # it starts
            return {}
        return {tuple(r["metric"].values()): float(r["value"][1]) for r in result}

    yield query
    server.terminate()
    server.wait()


def test_two_applications(apps, postgres, metrics, ask):
    first = apps.start(APP, "orders.py", postgres.url())
    second = apps.start(APP, "pay.py", postgres.url())
    line = apps.line("leaked", "orders.py")

    leaks = until(
        lambda: ask("sum by (call_site) (increase(poolwatch_leaks_total[1m]) > 0)")
    )
    pool = "db_client_connection_pool_name"
    assert set(leaks) <= {(f"orders.py:{line}",), (f"pay.py:{line}",)}
    in_use = f'sum by ({pool}) (db_client_connection_count{{{pool}=~".+",%s="used"}})'
    used = in_use % "db_client_connection_state"
    until(lambda: set(ask(used)) == {("orders",), ("pay",)})
    buckets = (
        f"rate(db_client_connection_wait_time_seconds_bucket{{{pool}='pay'}}[10s])"
    )
    until(lambda: ask(f"histogram_quantile(0.95, sum by (le) ({buckets})) > 0"))
    for app in (first, second):
        until(lambda p=app.pid: ask(f'sum(poolwatch_up{{process_pid="{p}"}}) == 1'))
        assert ask(f'sum(db_client_connection_max{{process_pid="{app.pid}"}}) == 2')

    for expression in panels():
        until(lambda e=expression: ask(e), what=f"no data: {expression}")
    until(lambda: ask('ALERTS{alertname="PoolwatchConnectionLeak"}'))

    checked = tool("check", "metrics", text=metrics.text()[0].decode())
    (complaint,) = checked.stderr.splitlines()
    assert complaint.startswith("db_client_connection_count")  # OpenTelemetry's name
    assert complaint.endswith('should not have "_count" suffix')
    second.kill()
    second.wait()
    until(lambda: not ask(f'{{process_pid="{second.pid}"}}'))
    assert ask("sum(poolwatch_up)") == {(): 1}


def test_rules(tmp_path):
    """Each alert goes off; the rules are sound by promtool's own tests."""
    (tmp_path / "alerts.yml").write_text(shipped("alerts"))
    checked = tool("check", "rules", str(tmp_path / "alerts.yml"))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    state = 'db_client_connection_count{db_client_connection_state="used"}'
    series = {
        'poolwatch_leaks_total{call_site="app.py:7"}': "_x5 1x20",
        "poolwatch_oldest_hold_seconds": "400x20",
        'poolwatch_holds{verdict="long"}': "1x20",
        state: "4x20",
        "poolwatch_lost_slots": "1x20",
        "db_client_connection_max": "5x20",
        'poolwatch_findings{kind="pool_deadlock"}': "1x20",
        "poolwatch_server_sessions": "91x20",
        "poolwatch_server_max_connections": "100x20",
        "poolwatch_up": "0x20",
    }
    alerts = re.findall(r"- alert: (\w+)", shipped("alerts"))
    count = [
        {"expr": f'count(ALERTS{{alertname="{name}",alertstate="firing"}})',
         "eval_time": "10m", "exp_samples": [{"labels": "{}", "value": 1}]}
        for name in alerts
    ]  # fmt: skip
    tests = {
        "rule_files": ["alerts.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {"series": name, "values": values}
                    for name, values in series.items()
                ],
                "promql_expr_test": count,
            }
        ],
    }
    (tmp_path / "tests.yml").write_text(json.dumps(tests))
    tested = tool("test", "rules", str(tmp_path / "tests.yml"))
    assert tested.returncode == 0, tested.stdout + tested.stderr
