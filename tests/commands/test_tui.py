"""``poolwatch tui`` and its door: a DSN that cannot be one, and who may act."""

from __future__ import annotations

import logging

import pytest

from poolwatch import tui
from poolwatch.commands.main import main
from poolwatch.postgres.actions import DsnActions

VARIABLES = ("POOLWATCH_DSN", "POOLWATCH_HISTORY", "DATABASE_URL", "TEXTUAL_DRIVER")


@pytest.fixture
def poolwatch(monkeypatch, tmp_path, capsys):
    """Runs a command; returns its exit code, its words, and what the dashboard got."""
    for name in (*VARIABLES, "PGHOST", "PGDATABASE", "PGUSER", "PGSERVICE", "PGPORT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("POOLWATCH_DIR", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    log = logging.getLogger("poolwatch")
    before = list(log.handlers), log.level

    def run(*given, **env):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        got = []
        monkeypatch.setattr(tui, "run", lambda *_, **each: got.append(each))
        code = main(given)
        return code, capsys.readouterr().err, got[0].get("actions") if got else None

    yield run
    for handler in set(log.handlers) - set(before[0]):
        handler.close()
        log.removeHandler(handler)
    log.setLevel(before[1])


@pytest.mark.parametrize("command", ["tui", "ps", "check", "serve", "sidecar"])
@pytest.mark.parametrize(
    "dsn", ["s3cret", "mysql://u:s3cret@h/d", "host=h port=s3cret"]
)
def test_a_dsn_that_cannot_be_one_is_refused_at_the_door(poolwatch, command, dsn):
    code, said, _ = poolwatch(command, "--dsn", dsn)
    assert (code, said.count("\n")) == (2, 1)
    assert "DSN" in said
    assert "s3cret" not in said
    assert poolwatch(command, POOLWATCH_DSN=dsn)[:2] == (code, said)


@pytest.mark.parametrize(
    ("given", "env", "why"),
    [
        ((), {}, "needs a DSN: give --dsn, POOLWATCH_DSN or DATABASE_URL"),
        ((), {"DATABASE_URL": "mysql://h/d"}, "needs a DSN"),
        (("--dsn", "mysql://h/d"), {}, "not a PostgreSQL DSN"),
        (("--dsn", "host=h", "--history", "sqlite:////x"), {}, "no history in /x"),
        (("--dsn", "host=h", "--at", "03:12"), {}, "with the history"),
        (("--dsn", "host=h"), {"TEXTUAL_DRIVER": "x"}, "not for a browser"),
        (("--dsn", "host=h"), {"XDG_STATE_HOME": "/proc/1"}, "set XDG_STATE_HOME"),
    ],
)
def test_actions_are_refused_with_one_sentence(poolwatch, given, env, why):
    code, said, actions = poolwatch("tui", "--allow-actions", *given, **env)
    assert (code, said.count("\n"), actions) == (2, 1, None)
    assert why in said


@pytest.mark.parametrize(
    ("given", "env"),
    [
        (("--dsn", "host=h"), {}),
        (
            (),
            {"POOLWATCH_DSN": "postgresql://h/d", "POOLWATCH_HISTORY": "sqlite:////x"},
        ),
        ((), {"DATABASE_URL": "postgresql+asyncpg://h/d"}),
        ((), {"PGHOST": "h"}),
    ],
)
def test_with_a_dsn_the_dashboard_may_act_and_a_file_keeps_the_log(
    poolwatch, tmp_path, monkeypatch, given, env
):
    code, said, actions = poolwatch("tui", "--allow-actions", *given, **env)
    assert (code, said) == (0, "")
    assert isinstance(actions, DsnActions)
    log = logging.getLogger("poolwatch")
    monkeypatch.setattr(log, "propagate", False)  # xdist cannot send such a character
    log.warning("ended \udc80")
    kept = tmp_path / "state" / "poolwatch" / "actions.log"
    assert "WARNING ended" in kept.read_text("utf-8")
    assert kept.stat().st_mode & 0o777 == 0o600


def test_without_the_option_nobody_may_act(poolwatch):
    assert poolwatch("tui", "--dsn", "host=h") == (0, "", None)
    with pytest.raises(SystemExit):
        poolwatch("serve", "--allow-actions", "--dsn", "host=h")
