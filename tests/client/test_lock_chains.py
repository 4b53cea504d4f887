"""A lock chain over two processes, with a stranger at its root."""

from __future__ import annotations

from contextlib import closing

from helpers import until

from poolwatch.client.client import Client
from poolwatch.client.live import LiveSource
from poolwatch.diagnosis.blocking import forest

APP = """
    import sys
    import threading

    from sqlalchemy import create_engine, text

    import poolwatch

    engine = create_engine(sys.argv[1], pool_size=4)
    poolwatch.instrument(engine)
    LOCK = text("select from t where id = :id for update")

    def work(number):
        with engine.begin() as connection:  # site
            connection.execute(LOCK, {"id": number})
            print("ready", flush=True)
            connection.execute(LOCK, {"id": number - 1})

    print("ready", flush=True)
    for line in sys.stdin:
        threading.Thread(target=work, args=(int(line),)).start()
"""


def test_the_root_of_a_chain_is_first_by_name(apps, postgres):
    postgres.execute("drop table if exists t")
    postgres.execute("create table t as select generate_series(0, 4) as id")
    running = [apps.start(APP, "app.py", postgres.url()) for _ in range(2)]
    for sessions in (False, True):
        with (
            closing(postgres.connect(application_name="dba-laptop")) as stranger,
            closing(
                LiveSource(Client(apps.directory), environ={}, sessions=sessions)
            ) as source,
        ):
            stranger.autocommit = False
            stranger.cursor().execute("select from t where id = 0 for update")
            for number in range(1, 5):
                app = running[number % 2]
                app.stdin.write(f"{number}\n")
                app.stdin.flush()
                assert app.stdout.readline() == "ready\n"
                until(lambda n=number: len(forest(source.snapshot())) == n + 1)
            snapshot = source.snapshot()
            nodes = forest(snapshot)
            root, *victims = nodes
            pids = [app.pid for app in running]
            assert [node.depth for node in nodes] == [0, 1, 2, 3, 4]
            assert [node.holds_up for node in nodes] == [4, 3, 2, 1, 0]
            backend = root.session.backend
            assert (backend.application, backend.user) == ("dba-laptop", "postgres")
            assert backend.row.query == "select from t where id = ? for update"
            assert [n.session.process.pid for n in victims] == [pids[1], pids[0]] * 2
            lines = {node.session.hold.site.line for node in victims}
            assert lines == {apps.line("site")}
        until(lambda: all(not p["holds"] for p in apps.ps()["processes"]))
