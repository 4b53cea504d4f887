"""poolwatch beside nothing but SQLAlchemy: it works, or says what to install."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent
PG = "postgresql://h/d"

pytestmark = pytest.mark.processes


@pytest.fixture
def bare(apps, tmp_path):
    """``bare(*command)`` runs Python with SQLAlchemy as its only library."""
    library = tmp_path / "library"
    library.mkdir()
    for name in ("sqlalchemy", "typing_extensions"):
        origin = Path(importlib.util.find_spec(name).origin)
        found = origin.parent if origin.name == "__init__.py" else origin
        (library / found.name).symlink_to(found)

    def run(*command, sqlalchemy=True):
        path = f"{ROOT}:{library}" if sqlalchemy else str(ROOT)
        state = {"XDG_STATE_HOME": str(tmp_path), "PYTHONPATH": path}
        return apps._run([sys.executable, "-S", *command], **state)

    return run


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        ("tui", "tui"),
        (f"tui --allow-actions --dsn {PG}", "tui"),
        ("serve", "serve"),
        ("demo", "demo"),
        ("demo --headless", "demo"),
        (f"demo --headless --dsn {PG}", "tui"),
        ("bench", "demo"),
        ("sidecar", "sidecar"),
        ("sidecar --no-metrics --no-history --otlp", "otel"),
        (f"sidecar --no-metrics --no-history --dsn {PG}", "tui"),
        (f"ps --history {PG}", "sidecar"),
        ("report -o page.html", "report"),
        ("completion zsh", "completion"),
    ],
)
def test_a_missing_extra_is_one_sentence(command, extra, bare, tmp_path):
    """It names the command that installs the extra; no history or page was made."""
    done = bare("-m", "poolwatch", *command.split())
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"python -m pip install 'poolwatch[{extra}]'" in done.stderr
    assert done.stdout == ""
    assert sorted(each.name for each in tmp_path.iterdir()) == ["library"]


def test_without_sqlalchemy(bare):
    done = bare("-m", "poolwatch", "history", sqlalchemy=False)
    assert done.returncode == 2
    assert done.stderr.startswith("poolwatch: the history needs SQLAlchemy; ")


def test_the_rest_works(bare, apps):
    """An application is instrumented and looked at; a history in SQLite is read."""
    app = apps.write("""
        import subprocess, sys
        import poolwatch
        from sqlalchemy import create_engine
        from sqlalchemy.pool import QueuePool

        engine = create_engine("sqlite:///app.db", poolclass=QueuePool)
        poolwatch.instrument(engine, name="orders")
        held = engine.connect()
        for command in (
            "ps", "ps --json", "check", "advise --seconds 0.1", "profile --seconds 0.1",
            "sidecar --print alerts", "run --environment", "--version",
        ):
            subprocess.run(
                [sys.executable, "-S", "-m", "poolwatch", *command.split()],
                check=True, stdout=subprocess.PIPE,
            )
        held.close()
        engine.dispose()
    """)
    done = bare(str(app))
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
