"""``shopd DATABASE [leak]``: works until its input ends."""

import sys
import threading

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

import poolwatch
from shopd import jobs, tasks


def main() -> None:
    url = sys.argv[1]
    async_url = url.replace("+psycopg2", "+asyncpg")
    engine = create_engine(url, pool_size=20)
    poolwatch.instrument(engine, name="shop", long_after=1.0)
    async_engine = create_async_engine(async_url, pool_size=20)
    poolwatch.instrument(async_engine, name="async shop", long_after=1.0)
    if "leak" in sys.argv[2:]:
        jobs.forget(engine)
    over = threading.Event()
    threads = jobs.start(engine, over) + tasks.start(async_engine, over)
    print("ready", flush=True)
    sys.stdin.read()
    over.set()
    for thread in threads:
        thread.join()
