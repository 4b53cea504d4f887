"""What is too old or too much goes, the oldest first."""

from __future__ import annotations

import random
import threading
from dataclasses import replace

import pytest
from fake_looks import NOON, SITE, began, incident, look, over, process
from sqlalchemy import Integer, cast, select

from poolwatch.diagnosis.incidents import Changes
from poolwatch.sidecar.history import partitions
from poolwatch.sidecar.history.retention import Retention
from poolwatch.sidecar.history.schema import (
    call_sites,
    incidents,
    pool_minutes,
    pools,
    processes,
    site_minutes,
    snapshots,
)

DAY = 86400


def fill(history, hours: int, step_s: float) -> None:
    """A process that lives on, one that ends at once, incidents that end and last."""
    short, shop = process(0, pid=1), process(0)
    ends, lasts = incident("ends", short, 0), incident("lasts", shop, step_s)
    noise = random.Random(1)
    for number in range(int(hours * 3600 / step_s)):
        labels = {"id": noise.randbytes(2000).hex()}
        shop = process(number, labels=(), program=str(labels))
        first = (short,) if number < 1 else ()
        what = [began(ends, short), began(lasts, shop), over(ends, step_s), Changes()]
        changes = what[min(number, 3)]
        history.take(look(number * step_s, shop, *first, changes=changes))
        history.write()


def finish(history, now: float) -> None:
    """All the steps of one moment; few are enough, or it would never end."""
    for _ in range(40):
        history._retention._due = 0.0
        history._retention.step(history._engine, now)


@pytest.fixture
def oldest(reader):
    """``oldest(column)``: its lowest value, in seconds after noon."""

    def read(column, *where):
        engine = reader()
        with engine.connect() as connection:
            query = select(column).where(*where).order_by(column).limit(1)
            found = connection.scalar(query)
        engine.dispose()
        return None if found is None else found - NOON

    return read


def test_by_age(writer, oldest):
    history = writer(keep_s=2 * 3600)
    fill(history, hours=5, step_s=300)
    end = 5 * 3600 - 300
    finish(history, NOON + end)
    exact = history._engine.dialect.name == "sqlite"
    for column in (pool_minutes.c.minute, site_minutes.c.minute):
        assert end - 2 * 3600 - 60 <= oldest(column) < end - 6000
    assert oldest(processes.c.last_seen_at) == end
    assert oldest(incidents.c.ended_at) is None
    assert oldest(incidents.c.started_at) == 300  # it lasts
    kept = oldest(snapshots.c.at)
    # with its snapshot, in SQLite; in PostgreSQL it goes with its day
    assert kept == 300 if exact else kept >= 0


@pytest.mark.parametrize("url", ["sqlite"], indirect=True)
def test_by_size_in_sqlite(writer, oldest, tmp_path):
    history = writer(keep_bytes=150_000)
    fill(history, hours=8, step_s=180)
    finish(history, NOON + 8 * 3600)
    assert 3600 < oldest(pool_minutes.c.minute) < 7 * 3600
    assert oldest(processes.c.last_seen_at) > 7 * 3600
    history.close()
    assert 100_000 < (tmp_path / "history.db").stat().st_size <= 150_000


def test_a_tiny_size_keeps_the_present(writer, oldest):
    history = writer(keep_bytes=1)
    fill(history, hours=2, step_s=240)
    finish(history, NOON + 7200 - 240)
    assert oldest(pool_minutes.c.minute) <= 7200
    assert oldest(processes.c.last_seen_at) is not None
    assert oldest(pools.c.size) is not None


def test_pools_and_lines_without_end_go_with_their_minutes(writer, oldest):
    history = writer(keep_s=3600)
    pool_of, site_of = process(1).pools[0], process(1).sites[0]
    for number in range(0, 36, 2):
        new = replace(pool_of, id=str(number), name=str(number))
        site = replace(site_of, pool=new.id, site=SITE._replace(line=number))
        for second, sites in enumerate([(), (site,)]):
            now = process(1, pools=(new,), sites=sites)
            history.take(look(number * 3600 + second, now))
            history.write()
    finish(history, NOON + number * 3600)
    assert oldest(cast(pools.c.name, Integer)) + NOON > 10
    assert oldest(call_sites.c.line) + NOON > 10
    used = select(pool_minutes.c.pool_id)
    assert oldest(cast(pools.c.name, Integer), pools.c.id.in_(used)) + NOON == 34


@pytest.mark.postgres
class TestDays:
    """In PostgreSQL."""

    @pytest.fixture(params=["postgres"])
    def url(self, request, postgres) -> str:
        name = f"days_{abs(hash(request.node.name)) % 10**6}"
        postgres.execute(f"CREATE DATABASE {name}")
        return postgres.url().replace("/postgres?", f"/{name}?")

    def test_days_are_dropped_whole(self, writer, oldest):
        history = writer(keep_s=2 * DAY)
        fill(history, hours=120, step_s=4 * 3600)
        finish(history, NOON + 120 * 3600)
        assert oldest(pool_minutes.c.minute) == 2.5 * DAY
        with history._engine.begin() as connection:
            first, last = NOON // DAY, (NOON + 5 * DAY) // DAY
            kept = partitions.days_kept(connection)
        # what is ahead stays: tomorrow, and the days of the real clock
        assert min(kept) == first + 3
        assert last in kept

    def test_the_oldest_day_goes_if_it_is_too_much(self, writer, oldest):
        history = writer()
        fill(history, hours=72, step_s=4 * 3600)
        retention = Retention(keep_s=90 * DAY, keep_bytes=1)
        now = NOON + 68 * 3600
        for expected in (0.5, 1.5, 2.5):
            retention._due = 0.0
            retention.step(history._engine, now)
            assert oldest(pool_minutes.c.minute) == expected * DAY
        retention._due = 0.0
        retention.step(history._engine, now)
        assert oldest(pool_minutes.c.minute) == 2.5 * DAY

    def test_a_host_with_a_wrong_clock_drops_nothing(self, writer, oldest):
        history = writer(keep_s=100 * 365 * DAY)
        for at in (0, 200 * 365 * DAY, 2 * DAY):
            history._retention._due = 0.0
            history.take(look(at, process(at)))
            history.write()
        assert oldest(pool_minutes.c.minute) == 0

    def test_what_cannot_go_now_is_said_once(self, writer, caplog):
        history = writer(keep_s=2 * DAY)
        fill(history, hours=24, step_s=4 * 3600)
        with history._engine.connect() as reading:
            reading.execute(select(pool_minutes).limit(1))  # a report that takes long
            for day in (5, 6):
                history._retention._due = 0.0
                history.take(look(day * DAY, process(100 + day)))
                history.write()
        (said,) = [record.message for record in caplog.records]
        assert said == (
            "the history: another session has locked its tables; what is too old stays "
            "meanwhile"
        )

    def test_hosts_do_not_lock_each_other_out(self, writer, postgres):
        failures = []

        def work(host: str) -> None:
            history = writer(hosts={host})
            try:
                for number in range(6):
                    shop = process(number, host=host)
                    lines = [SITE._replace(line=100 * number + n) for n in range(30)]
                    random.shuffle(lines)
                    sites = [replace(shop.sites[0], site=line) for line in lines]
                    shop = replace(shop, sites=tuple(sites))
                    history.take(look(number * 6 * 3600, shop))
                    history.write()
            except Exception as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(f"web-{n}",)) for n in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        assert "deadlock detected" not in postgres.log
