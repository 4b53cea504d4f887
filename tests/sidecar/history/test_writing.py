"""The writer: what is counted, what is kept, what happens while the store is away."""

from __future__ import annotations

import logging
import sqlite3
import zlib
from contextlib import closing
from dataclasses import replace

import fakes
import pytest
from fake_looks import NOON, SITE, began, ended, incident, lasting, look, over, process
from helpers import until
from sqlalchemy import select

from poolwatch.model import Unreachable
from poolwatch.protocol.document import from_json
from poolwatch.sidecar.history.schema import (
    call_sites,
    incidents,
    label_minutes,
    pool_minutes,
    pools,
    processes,
    site_minutes,
    snapshots,
)
from poolwatch.sidecar.history.writing import HistoryWriter


@pytest.fixture
def rows(reader):
    """``rows(table)``: all rows of a table, by its key."""

    def read(table):
        engine = reader()
        with engine.connect() as connection:
            query = select(table).order_by(*table.primary_key)
            found = connection.execute(query).all()
        engine.dispose()
        return found

    return read


@pytest.fixture
def wrote(writer):
    """``wrote(writer, look...)``: takes and writes each."""

    def write(history, *looks):
        for each in looks:
            history.take(each)
            history.write()
        return history

    return write


def checkouts(rows) -> int:
    return sum(row.checkouts for row in rows(pool_minutes))


def held(rows) -> float:
    return round(sum(row.held_s for row in rows(site_minutes)), 6)


def test_counters_become_minutes(writer, wrote, rows):
    wrote(
        writer(),
        look(0, process(100)),
        look(1, process(104)),
        look(61, process(110)),
    )
    first, second = rows(pool_minutes)
    assert (first.minute, first.looks, first.checkouts) == (int(NOON), 2, 4)
    assert (second.minute, second.looks, second.checkouts) == (int(NOON) + 60, 1, 6)
    assert second.hold_count == 6
    assert second.hold_s == pytest.approx(0.12)
    assert second.hold_up_to == [0, 0, 0, 6, 6, 6, 6, 6, 6]
    sites = rows(site_minutes)
    assert [(row.count, row.held_s) for row in sites] == [(4, 0.08), (6, 0.12)]
    assert [row.value for row in rows(label_minutes)] == ["/orders", "/orders"]
    (site,) = rows(call_sites)
    assert (site.file, site.line, site.path) == (SITE.file, 41, "orders/views.py")
    (one,) = rows(processes)
    assert (one.host, one.pid, one.ended_at) == ("web-1", 8812, None)
    assert one.last_seen_at == NOON + 61
    assert [row.name for row in rows(pools)] == ["orders"]


def test_a_process_that_appears_is_counted_from_its_beginning(writer, wrote, rows):
    wrote(
        writer(),
        look(0),
        look(1, process(7, started=NOON + 0.5)),
        look(2, process(7, started=NOON + 0.5), process(5, pid=2)),  # a forked one
    )
    assert checkouts(rows) == 12


def test_a_process_that_was_silent_before_is_not(writer, wrote, rows):
    silent = Unreachable(8812, "it does not answer", None, alive=True)
    wrote(writer(), look(0, unreachable=(silent,)), look(1, process(500)))
    assert checkouts(rows) == 0


def test_silence_loses_nothing(writer, wrote, rows):
    silent = Unreachable(8812, "it does not answer", None, alive=True)
    quiet = [look(at, unreachable=(silent,)) for at in range(1, 9)]
    wrote(writer(), look(0, process(5)), *quiet, look(9, process(25)))
    assert checkouts(rows) == 20
    assert rows(processes)[0].ended_at is None


def test_a_count_that_falls_is_no_new_beginning(writer, wrote, rows):
    """A hold that ends during a snapshot may be counted twice in it."""
    counts = [50, 61, 60, 62]
    wrote(writer(), *(look(at, process(each)) for at, each in enumerate(counts)))
    assert checkouts(rows) == 12


def test_a_restarted_sidecar_goes_on_within_the_minute(writer, wrote, rows):
    first = wrote(writer(), look(0, process(100)), look(1, process(110)))
    first.close()
    wrote(writer(), look(5, process(130)), look(6, process(131)))
    (row,) = rows(pool_minutes)
    assert (row.looks, row.checkouts, row.hold_count) == (4, 31, 31)
    assert row.hold_up_to == [0, 0, 0, 31, 31, 31, 31, 31, 31]
    assert held(rows) == 0.62


def test_a_killed_sidecar_counts_nothing_twice(writer, wrote, rows):
    # killed: it has not been closed
    wrote(writer(), look(0, process(100)), look(1, process(110)))
    second = wrote(
        writer(), look(2, process(115), process(9, pid=2, started=NOON + 1.5))
    )
    assert checkouts(rows) == 10 + 5 + 9
    wrote(second, look(3, process(116), process(9, pid=2, started=NOON + 1.5)))
    assert checkouts(rows) == 25


def test_a_clock_that_is_set_back_overwrites_nothing(writer, wrote, rows):
    history = wrote(writer(), look(0, process(1)), look(1, process(4)))
    wrote(history, look(70, process(5)), look(140, process(6)), look(2, process(9)))
    assert checkouts(rows) == 8
    assert rows(pool_minutes)[0].checkouts == 6
    wrote(history, look(65, process(10)), look(145, process(12)))
    assert [row.checkouts for row in rows(pool_minutes)] == [6, 2, 3]


def test_the_end_of_a_process(writer, wrote, rows):
    gone = process(9)
    wrote(
        writer(),
        look(0, process(3)),
        look(1, gone),
        look(2, unreachable=(ended(gone),)),
    )
    assert rows(processes)[0].ended_at == NOON + 2
    newest = rows(snapshots)[-1]
    (kept,) = from_json(zlib.decompress(newest.document)).processes
    assert kept.pools[0].counters.checkouts == 9


def test_a_process_that_vanishes_ends_at_the_third_look(writer, wrote, rows):
    history = wrote(writer(), look(0, process(3)), look(1), look(2))
    assert rows(processes)[0].ended_at is None
    wrote(history, look(3))
    assert rows(processes)[0].ended_at == NOON + 3
    wrote(history, look(4, process(3)))
    assert rows(processes)[0].ended_at is None


def test_the_newest_snapshot_is_replaced_and_some_stay(writer, wrote, rows):
    looks = [look(at, process(int(at))) for at in range(0, 1500, 100)]
    wrote(writer(), *looks)
    kept = [(row.at - NOON, row.newest) for row in rows(snapshots)]
    assert kept == [(0, False), (600, False), (1200, False), (1400, True)]


def test_an_idle_process_is_not_written_again(writer, wrote, rows):
    wrote(writer(), *(look(at, process(5)) for at in range(5)))
    assert [row.at - NOON for row in rows(snapshots)] == [0]


def test_an_incident(writer, wrote, rows):
    shop = process(5, findings=(fakes.finding(),))
    one, two = incident("one", shop, 1), incident("two", shop, 1, kind="nested")
    # the tracker adds findings of its own to the process that it hands on
    one_shop = replace(shop, findings=(fakes.finding(), fakes.finding("nested")))
    both = began(one, one_shop)
    both = both._replace(began=(*both.began, *began(two, shop).began))
    history = wrote(writer(), look(0, process(5)), look(1, shop, changes=both))
    wrote(history, look(2, process(6), changes=lasting(one, 2)))
    stored = {row.id: row for row in rows(incidents)}
    assert stored["one"].started_at == NOON + 1
    assert stored["one"].last_seen_at == NOON + 2
    assert stored["one"].ended_at is None
    assert stored["one"].sites == [SITE._asdict()]
    assert stored["two"].kind == "nested"
    (kept,) = [row for row in rows(snapshots) if row.incident_id]
    assert (kept.at, kept.newest) == (NOON + 1, False)
    (first,) = from_json(zlib.decompress(kept.document)).processes
    assert first.findings == one_shop.findings
    assert [row.at - NOON for row in rows(snapshots)] == [0, 1, 2]
    wrote(history, look(3, process(7), changes=over(one, 2)))
    assert {row.id: row.ended_at for row in rows(incidents)}["one"] == NOON + 2


def test_a_restarted_sidecar_knows_what_lasts(writer, wrote, rows):
    shop = process(5)
    one, done = incident("one", shop, 1), incident("done", shop, 1)
    history = wrote(
        writer(),
        look(1, shop, changes=began(done, shop)),
        look(2, shop, changes=over(done, 1)),
        look(3, shop, changes=began(one, shop)),
    )
    history.close()
    second = writer()
    (known,) = second.lasting()
    assert (known.id, known.host, known.pid, known.sites) == (
        "one",
        "web-1",
        8812,
        (SITE,),
    )
    assert writer(hosts={"web-2"}).lasting() == []
    wrote(second, look(9, shop, changes=over(known, 9)))
    assert rows(incidents)[-1].ended_at == NOON + 9
    assert writer().lasting() == []


def test_texts_that_databases_refuse(writer, wrote, rows):
    odd = "a\0b\udc80" + "x" * 9000
    shop = process(5, program=odd)
    label = replace(shop.labels[0], value=odd)
    site = replace(shop.sites[0], site=SITE._replace(file=odd), path=None)
    shop = replace(shop, labels=(label,), sites=(site,))
    wrote(writer(), look(0), look(1, shop))
    assert rows(call_sites)[0].file.startswith("a?b?x")
    assert len(rows(label_minutes)[0].value) == 200


def test_the_thread_writes_and_closing_writes_the_rest(writer, rows):
    history = writer(threaded=True)
    history.take(look(0, process(1)))
    until(lambda: rows(pool_minutes))
    history.take(look(1, process(4)))
    history.close()
    assert checkouts(rows) == 3


def test_a_failed_look_changes_nothing(writer, wrote, rows):
    history = wrote(writer(), look(0, process(1)))
    failed = [look(at, error="permission denied") for at in (1, 2, 3, 4)]
    wrote(history, *failed, look(5, process(3)))
    assert checkouts(rows) == 2
    assert rows(processes)[0].ended_at is None


class TestAway:
    """While the store is away. SQLite stands for both: a locked file is away."""

    @pytest.fixture(params=["sqlite"])
    def url(self, tmp_path) -> str:
        return f"sqlite:///{tmp_path}/history.db"

    @pytest.fixture
    def away(self, tmp_path, monkeypatch):
        """Begins a transaction that nobody else can get past; ends it when called."""
        monkeypatch.setattr("poolwatch.sidecar.history.store._BUSY_S", 0.01)
        connection = sqlite3.connect(
            tmp_path / "history.db", isolation_level=None, check_same_thread=False
        )

        def lock():
            connection.execute("BEGIN IMMEDIATE")
            return lambda: connection.execute("ROLLBACK")

        yield lock
        connection.close()

    def attempt(self, history, *looks):
        for each in looks:
            history.take(each)
            history._attempt()

    def test_what_happens_meanwhile_is_written_later(self, writer, away, rows, caplog):
        history = writer()
        self.attempt(history, look(0, process(10)))
        back = away()
        shop = process(12)
        one = incident("one", shop, 1)
        self.attempt(
            history,
            look(1, shop, changes=began(one, shop)),
            *(
                look(at, process(12 + at), changes=lasting(one, at))
                for at in (2, 70, 130)
            ),
        )
        back()
        self.attempt(history, look(131, process(150), changes=over(one, 130)))
        assert checkouts(rows) == 140
        assert [row.looks for row in rows(pool_minutes)] == [3, 1, 2]
        (row,) = rows(incidents)
        assert (row.started_at, row.ended_at) == (NOON + 1, NOON + 130)
        assert [each.at - NOON for each in rows(snapshots) if each.incident_id] == [1]
        assert history.dropped == 0
        assert [r.message.split(";")[0] for r in caplog.records] == [
            "the history: SQLite says: database is locked",
            "the history is written again",
        ]

    def test_ten_minutes_are_kept_and_the_rest_is_said(
        self, writer, away, rows, caplog
    ):
        history = writer()
        self.attempt(history, look(0, process(0)))
        back = away()
        self.attempt(history, *(look(at, process(at)) for at in range(60, 1800, 60)))
        back()
        self.attempt(history, look(1800, process(1800)))
        kept = [(row.minute - NOON, row.checkouts) for row in rows(pool_minutes)]
        assert kept == [(0, 0), *((at, 60) for at in range(1200, 1801, 60))]
        assert history.dropped == 19
        said = [record.message for record in caplog.records]
        assert len([each for each in said if "looks are lost" in each]) == 2
        assert said[-1] == "the history is written again; 19 looks are lost"

    @pytest.mark.parametrize("step_s", [0.01, 5])
    def test_memory_is_bounded(self, writer, away, monkeypatch, step_s):
        monkeypatch.setattr("poolwatch.sidecar.history.pending.KEEP_BYTES", 100_000)
        history = writer()
        self.attempt(history, look(0, process(0)))
        back = away()
        for number in range(1, 100):
            at = number * step_s
            labels = {"order": "".join(map(str, range(number, number + 1000)))}
            shop = process(number, holds=(fakes.hold(str(number), labels=labels),))
            one = incident(str(number), shop, at)
            history.take(look(at, shop, changes=began(one, shop)))
            history._pack()
            assert history._pending._bytes() <= 100_000
        back()

    def test_processes_without_end_take_no_more_memory(self, writer, away):
        history = writer()
        self.attempt(history, look(0, process(0)))
        back = away()
        for minute in range(1, 60):
            shop = process(5, started=NOON + minute * 60)
            path = f"/tmp/unpacked-{minute}/app.py"
            site = replace(shop.sites[0], site=SITE._replace(file=path))
            for second in (1, 2):
                history.take(look(minute * 60 + second, replace(shop, sites=(site,))))
        back()
        assert all(len(rows) <= 12 for rows in history._pending._records.values())


def test_a_store_that_is_away_at_the_start_is_waited_for(start_postgres, caplog):
    caplog.set_level(logging.WARNING)
    server = start_postgres()
    server.stop()
    history = HistoryWriter(server.url(), keep_s=1e6, keep_bytes=1e9, hosts={"web-1"})
    assert history.lasting() == []
    history.take(look(0, process(1)))
    server.start()
    until(lambda: "written again" in caplog.text)
    history.take(look(1, process(6)))
    history.close()
    assert server.execute("SELECT sum(checkouts) FROM pool_minutes") == [(5,)]
    assert caplog.records[0].message.startswith("the history: no PostgreSQL answers")


def test_a_server_that_restarts(start_postgres, caplog):
    caplog.set_level(logging.WARNING)
    server = start_postgres()
    history = HistoryWriter(server.url(), keep_s=1e6, keep_bytes=1e9, hosts={"web-1"})
    history.take(look(0, process(1)))
    until(lambda: server.execute("SELECT count(*) FROM pool_minutes") == [(1,)])
    server.stop("immediate")
    history.take(look(1, process(4)))
    until(lambda: caplog.records)
    server.start()
    history.take(look(2, process(9)))
    until(lambda: "written again" in caplog.text)
    history.close()
    assert server.execute("SELECT checkouts, looks FROM pool_minutes") == [(8, 3)]


@pytest.mark.parametrize("by", ["removed", "moved", "another one"])
def test_a_file_that_is_not_in_its_place_is_left_for_the_one_that_is(tmp_path, by):
    path, old = tmp_path / "history.db", tmp_path / "old.db"
    url = f"sqlite:///{path}"
    other = HistoryWriter(f"sqlite:///{old}", keep_s=1e6, keep_bytes=1e9)
    other.close()
    history = HistoryWriter(url, keep_s=1e6, keep_bytes=1e9, threaded=False)
    for at in range(4):
        history.take(look(at, process(at)))
        history.write()
        if at == 1:
            if by == "removed":
                path.unlink()
            elif by == "moved":
                path.rename(old)
            else:
                old.replace(path)
    history.close()
    query = """
        SELECT checkouts, name, EXISTS (SELECT 1 FROM snapshots)
        FROM pool_minutes JOIN pools ON pool_id = id
    """
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute(query).fetchall() == [(3, "orders", 1)]
    if by == "moved":  # complete, without the log that stands beside the other one
        with closing(sqlite3.connect(old)) as connection:
            assert connection.execute(query).fetchall() == [(1, "orders", 1)]
