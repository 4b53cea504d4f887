"""Writers that are killed at random moments, ten times, on one history.

    python killed_writers.py URL

The counter of the process that they watch is the number of the look. Each writer says
which look it has written. Prints, for each kill, the last look that was said, and what
the history has then.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
import zlib

from fake_looks import NOON, began, incident, lasting, look, process
from sqlalchemy import func, select

from poolwatch.protocol.document import from_json
from poolwatch.sidecar.history.schema import (
    incidents,
    pool_minutes,
    processes,
    snapshots,
)
from poolwatch.sidecar.history.store import open_store
from poolwatch.sidecar.history.writing import HistoryWriter


def write_for_ever(url: str, said: int, number: int) -> None:
    history = HistoryWriter(
        url, keep_s=1e9, keep_bytes=1e9, hosts={"web-1"}, threaded=False
    )
    known = history.lasting()
    while True:
        shop = process(number)
        one = known[0] if known else incident(f"i{number}", shop, number)
        changes = lasting(one, number) if known else began(one, shop)
        known = [one]
        history.take(look(number, shop, changes=changes))
        history.write()
        os.write(said, b"%d\n" % number)
        number += 1


def state(url: str) -> tuple[str, int, int, int, int]:
    engine = open_store(url, write=False)
    with engine.connect() as connection:
        healthy = "ok"
        if engine.dialect.name == "sqlite":
            query = "PRAGMA integrity_check"
            healthy = connection.exec_driver_sql(query).scalar_one()
        seen = connection.scalar(select(func.max(processes.c.last_seen_at)))
        counted = connection.scalar(select(func.sum(pool_minutes.c.checkouts)))
        kept = connection.scalar(select(func.count()).select_from(incidents))
        newest = select(snapshots.c.document).order_by(snapshots.c.at.desc()).limit(1)
        (shown,) = from_json(zlib.decompress(connection.scalar(newest))).processes
    engine.dispose()
    shown_checkouts = shown.pools[0].counters.checkouts
    return healthy, int(seen - NOON), counted, kept, shown_checkouts


def main(url: str) -> None:
    chance = random.Random(os.getpid())
    number = 0
    for _ in range(10):
        reading, said = os.pipe()
        child = os.fork()
        if not child:
            write_for_ever(url, said, number)
        os.close(said)
        with os.fdopen(reading) as lines:
            lines.readline()  # the first look is written
            time.sleep(chance.random() * 0.2)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            heard = lines.read().split()
        last = max([number, *map(int, heard)])
        found = state(url)
        print(last, *found, flush=True)
        number = found[1] + 3  # three looks later, the next one is there


if __name__ == "__main__":
    main(sys.argv[1])
