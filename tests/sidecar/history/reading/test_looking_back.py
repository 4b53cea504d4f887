"""``ps``, ``check`` and ``history`` on a store, as commands."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from fakes import finding, hold, process

from poolwatch.text.format import utc_time
from poolwatch.text.incident_snapshots import date_and_time


def words(at):
    """As tables have it: a time to copy into --at."""
    return " ".join(date_and_time(utc_time(at))).removesuffix(" UTC")


@pytest.fixture
def filled(store):
    """Two hosts: one alive with a finding, one that ended an hour ago."""
    now = time.time()
    web = process(hold(held_s=42.0), host="web-1", findings=(finding(),))
    key = store.process(web, now - 9000, now)
    store.snapshot(key, now - 7200, process(hold(held_s=7.0), host="web-1"), "i0")
    store.snapshot(key, now - 1, web)
    gone = process(host="web-2", pid=9)
    key2 = store.process(gone, now - 9000, now - 3600)
    store.snapshot(key2, now - 7000, gone)
    store.now, store.key = now, key
    return store


def test_ps(filled, poolwatch):
    code, out, err = poolwatch("ps", "--json", "--history", filled.url)
    found = json.loads(out)
    assert (code, err) == (0, "")
    assert list(found) == ["schema", "processes", "unreachable", "at", "findings"]
    assert found["at"] == utc_time(filled.now - 1)
    assert found["findings"] == []
    (alive,) = found["processes"]
    assert (alive["host"], alive["at"]) == ("web-1", found["at"])
    assert [each["held_s"] for each in alive["holds"]] == [42.0]

    at = ("--history", filled.url, "--at", "-100min")
    code, out, _ = poolwatch("ps", "--json", *at)
    found = json.loads(out)
    assert [each["host"] for each in found["processes"]] == ["web-1", "web-2"]
    assert [each["held_s"] for p in found["processes"] for each in p["holds"]] == [7.0]
    # the time that is printed gives the same picture again
    again = poolwatch("ps", "--json", *at[:3], found["at"])[1]
    assert json.loads(again) == found

    code, out, _ = poolwatch("ps", *at)
    assert code == 0
    when = words(filled.now - 7200)
    assert f"orders-api  pid 8812 on web-1, as it was at {when} UTC" in out
    again = json.loads(poolwatch("ps", "--json", *at[:3], when)[1])
    assert utc_time(filled.now - 7200) in [each["at"] for each in again["processes"]]
    assert "7.0s" in out


def test_environment(filled, poolwatch, monkeypatch, tmp_path):
    """POOLWATCH_HISTORY chooses the history; --dir still looks at this machine."""
    monkeypatch.setenv("POOLWATCH_HISTORY", filled.url)
    code, out, _ = poolwatch("ps", "--json")
    assert (code, "at" in json.loads(out)) == (0, True)
    assert poolwatch("ps", "--json", "--dir", str(tmp_path))[0] == 3
    code, _, err = poolwatch("ps", "--at", "-1min", "--dir", str(tmp_path))
    assert (code, err) == (
        2,
        "poolwatch: --dir cannot be combined with the history\n",
    )


def test_check(filled, poolwatch):
    code, out, err = poolwatch("check", "--history", filled.url)
    assert (code, err) == (1, "")
    assert out.startswith("critical exhausted: ")
    assert out.rstrip().endswith("[orders-api (pid 8812 on web-1)]")
    code, out, _ = poolwatch("check", "--json", "--history", filled.url)
    assert [each["kind"] for each in json.loads(out)["findings"]] == ["exhausted"]


def test_history(filled, poolwatch, monkeypatch):
    """The same fault in many processes is one line; --json gives every incident."""
    now = filled.now
    began = now - 5000
    for number in range(50):
        worker = process(host=f"web-{number % 5}", pid=100 + number)
        key = filled.process(worker, began, now)
        filled.incident(key, began + number, text=f"\x1b[31mworker {number}")
    filled.incident(filled.key, now - 90, last_seen_at=now, ended_at=None, kind="ghost")
    monkeypatch.setenv("COLUMNS", "200")
    given = ("history", "--history", filled.url)
    code, out, err = poolwatch(*given)
    assert (code, err) == (0, "")
    title, merged, lasting = out.splitlines()
    assert title.split()[:4] == ["SINCE", "(UTC)", "UNTIL", "TIMES"]
    assert merged.startswith(words(began))
    assert merged.split()[3:] == [
        "50", "exhausted", "srv/repo.py:55", "50", "processes", "on", "5", "hosts",
        "␛[31mworker", "49",
    ]  # fmt: skip
    assert lasting.split()[2:6] == ["lasts", "1", "ghost", "srv/repo.py:55"]
    assert "orders-api (pid 8812) on web-1" in lasting

    code, out, _ = poolwatch(*given, "-v", "--kind", "exhausted")
    assert "proof: nothing is free and requests wait" in out
    assert "    return the connection before the slow call" in out
    assert "and 45 more" in out

    document = json.loads(poolwatch(*given, "--json")[1])
    assert (document["schema"], len(document["incidents"])) == (1, 51)
    assert list(document["incidents"][0]) == [
        "id", "host", "pid", "process", "pool", "kind", "severity", "started_at",
        "last_seen_at", "ended_at", "text", "proof", "remedy", "sites", "snapshot",
    ]  # fmt: skip
    assert document["incidents"][-1]["ended_at"] is None

    def count(*options):
        found = json.loads(poolwatch(*given, "--json", *options)[1])
        return len(found["incidents"])

    assert count("--since", "-24h") == 51
    assert count("--since", "1h") == 1
    assert count("--until", "-1h") == 50
    assert count("--host", "web-3") == 10
    assert count("--kind", "ghost", "--kind", "leaked") == 1
    # nobody was looking any more when this one ended
    seen = now - 3000
    filled.incident(filled.key, seen, last_seen_at=seen, ended_at=None, kind="unpooled")
    code, out, _ = poolwatch(*given, "--kind", "unpooled")
    assert f"{words(seen)[11:]}?" in out.splitlines()[1].split()
    code, out, _ = poolwatch(*given, "--host", "nowhere")
    assert (code, out.partition(";")[0]) == (0, "no incident was found")


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("ps", "--at", "yesterday"), "'yesterday' is not a time"),
        (("ps", "--at", "-9000d"), "lies before the history, which begins at"),
        (("tui", "--at", "-9000d"), "lies before the history, which begins at"),
        (("history", "--until", "-9000d"), "lies before the history, which begins at"),
        (("history", "--since", "-1h", "--until", "-2h"), "--since is later than"),
        (("history", "--kind", "typo"), "there is no kind 'typo'; the kinds: leaked."),
        (("ps", "--dsn", "x"), "--dsn cannot be combined with the history"),
        (("ps", "--frozen"), "poolwatch history"),
    ],
)
def test_bad_input(sqlite_store, poolwatch, arguments, sentence):
    key = sqlite_store.process(process(), 1.7e9, 1.7e9)
    sqlite_store.snapshot(key, 1.7e9, process())
    code, out, err = poolwatch(*arguments, "--history", sqlite_store.url)
    assert (code, out) == (2, "")
    assert sentence in err
    assert err.count("\n") == 1


def test_the_sidecar_has_gone(sqlite_store, poolwatch):
    key = sqlite_store.process(process(), 1.7e9, 1.7e9)
    sqlite_store.snapshot(key, 1.7e9, process())
    for command in ("ps", "check", "tui"):
        code, out, err = poolwatch(command, "--history", sqlite_store.url)
        assert (code, out) == (3, "")
        assert "the last look of the history was at 2023-11-14T22:13:20" in err


@pytest.mark.postgres
def test_permission(postgres_store, postgres, poolwatch):
    """A role that may not read: one sentence, exit code 4."""
    postgres.execute("create role stranger login password 'sesame'")
    url = postgres_store.url.replace("postgres@", "stranger:sesame@")
    try:
        for may_open in (False, True):
            if may_open:
                with postgres_store.engine.begin() as connection:
                    grant = "grant select on poolwatch_store to stranger"
                    connection.exec_driver_sql(grant)
            for arguments in (("ps",), ("history",), ("tui", "--at", "-1h")):
                code, out, err = poolwatch(*arguments, "--history", url)
                assert (code, out, err.count("\n")) == (4, "", 1)
                assert "sesame" not in err
    finally:
        with postgres_store.engine.begin() as connection:
            connection.exec_driver_sql("drop owned by stranger")
        postgres.execute("drop role stranger")


def test_no_history(poolwatch, tmp_path: Path, monkeypatch):
    """One sentence, and nothing is created."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    url = f"sqlite:///{tmp_path}/none.db"
    for command in ("ps", "check", "tui", "history"):
        code, out, err = poolwatch(command, "--history", url)
        assert (code, out, err.count("\n")) == (2, "", 1)
    for arguments in (("history",), ("ps", "--at", "03:12")):
        code, out, err = poolwatch(*arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
    assert list(tmp_path.iterdir()) == []
