"""A saved moment, and files that are none."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from drawn import screen_text
from fakes import finding, hold, process, server_status
from helpers import until_async

from poolwatch import tui
from poolwatch.commands.main import main
from poolwatch.diagnosis.incidents import Incidents
from poolwatch.errors import ForbiddenError, UsageError
from poolwatch.model import Snapshot
from poolwatch.text.format import since_epoch
from poolwatch.tui.app import Dashboard
from poolwatch.tui.time import saved
from poolwatch.tui.time.saved import default_name, open_saved, save, write_new

AT = "2026-11-29T03:12:44.000+00:00"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def moment(at: str | None = AT) -> Snapshot:
    one = process(hold(statement="select \x1b[2J"), findings=(finding("long_hold"),))
    return Snapshot((one, process(pid=2, servers=(server_status(),))), at=at)


def test_it_is_read_as_it_was_written(here: Path) -> None:
    path = save(moment(), here / "moment.json")
    opened = open_saved(path)
    assert opened.snapshot() == moment()
    assert opened.at == AT
    assert opened.saved_at > AT
    assert path.stat().st_mode & 0o777 == 0o600
    assert json.loads(path.read_text())["snapshot"]["processes"][0]["pid"] == 8812


def test_the_present_is_saved_with_its_time(here: Path) -> None:
    opened = open_saved(save(moment(None)))
    assert opened.at == opened.saved_at


def test_nothing_is_overwritten(here: Path) -> None:
    name = default_name(AT)
    assert name.startswith("poolwatch-2026-11-2")
    first, second, third = save(moment()), save(moment()), save(moment())
    stem = name.removesuffix(".json")
    assert first == here / name
    assert second == here / f"{stem}-2.json"
    assert third == here / f"{stem}-3.json"
    target = here / "elsewhere"
    (here / "link.svg").symlink_to(target)
    assert write_new(here / "link.svg", "<svg/>") == here / "link-2.svg"
    assert not target.exists()


WHOLE = '{"schema": 1, "saved_at": "2026-11-29T03:12:44+00:00", "snapshot": '
DEEP = "[" * 100_000


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "is not a complete JSON document: it is cut short"),
        (WHOLE, "is not a complete JSON document"),
        (b"\x89PNG\xff\x00", "is not a complete JSON document"),
        (DEEP, "is not a complete JSON document"),
        ("[1, 2]", "is not a moment saved by poolwatch"),
        ('{"name": "package"}', "is not a moment saved by poolwatch"),
        ('{"schema": 1, "processes": []}', "is not a moment saved by poolwatch"),
        ('{"schema": 2}', "has schema 2, this poolwatch reads schema 1: open it with"),
        (WHOLE + '{"processes": 3}}', "the document is damaged"),
        (WHOLE + '{"processes": [{"pid": 1}], "at": "x"}}', "the document is damaged"),
        (WHOLE + '{"processes": []}}', "does not say which moment"),
        (WHOLE + '{"at": "yesterday"}}', "does not say which moment"),
        (
            '{"schema": 1, "snapshot": {"at": "2026-11-29"}}',
            "does not say which moment",
        ),
    ],
)
def test_a_file_that_is_none(here: Path, content: str | bytes, sentence: str) -> None:
    path = here / "some\x1b[2J.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(UsageError) as caught:
        open_saved(path)
    assert sentence in str(caught.value)
    assert caught.value.exit_code == 2
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_command(here: Path, monkeypatch: Any, capsys: Any) -> None:
    shown = []
    monkeypatch.setattr(tui, "run", lambda source, **_: shown.append(source))
    assert main(("tui", str(save(moment())))) == 0
    assert shown[0].at == AT
    (here / "newer.json").write_text('{"schema": 2}')
    assert main(("tui", "newer.json")) == 2
    assert main(("tui", "newer.json", "--at", "03:12")) == 2
    newer, combined = capsys.readouterr().err.splitlines()
    assert newer.startswith("poolwatch: newer.json has schema 2, this poolwatch reads")
    assert combined == "poolwatch: --at cannot be combined with a saved moment"


async def test_it_knows_since_when(here: Path) -> None:
    found = finding("long_hold", holds=("h1",))
    then = Snapshot((process(hold("h1"), findings=(found,)),), at=AT)
    tracker = Incidents()
    for back in (60.0, 30.0, 0.0):
        known = tracker.update(then, (since_epoch(AT) or 0.0) - back).lasting
    path = save(then, incidents=known)
    for opened, words in ((open_saved(path), "30s"), (open_saved(save(then)), "")):
        app = Dashboard(opened, saved=opened.incidents)
        async with app.run_test(size=(120, 35)) as pilot:
            await until_async(lambda app=app: app.board.last_good)
            await pilot.press("6")
            await until_async(lambda app=app: "FINDINGS 1" in screen_text(app))
            shown = screen_text(app)
            assert ("since" in shown) == bool(words)
            assert words in shown, shown
            assert " t time " not in shown
            assert "when it began" not in shown
            await pilot.press("e")
            await until_async(lambda app=app: "saved this moment" in screen_text(app))
    again = open_saved(path.with_stem(f"{path.stem}-3"))
    assert again.incidents == open_saved(path).incidents == list(known)


async def test_the_dashboard_shows_it(here: Path) -> None:
    app = Dashboard(open_saved(save(moment())))
    async with app.run_test(size=(120, 35)):
        await until_async(lambda: app.board.last_good)
        await until_async(lambda: "not&#160;now" in app.export_screenshot())
        assert "\x1b" not in app.export_screenshot()


def test_a_path_that_is_no_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    os.mkfifo(here / "pipe")
    for path, sentence in (
        (here, "cannot be read: Is a directory"),
        (here / "pipe", "is not a file"),
        (here / "missing", "cannot be read: No such file or directory"),
        (here / ("x" * 300), "cannot be read: File name too long"),
        (Path("a\0b"), "cannot be read: its name is not valid"),
    ):
        with pytest.raises(UsageError, match=sentence):
            open_saved(path)
    monkeypatch.setattr(saved, "MAX_BYTES", 1 << 20)
    with (here / "large").open("wb") as stream:
        stream.truncate((1 << 20) + 1)
    with pytest.raises(UsageError, match="is larger than 1 MiB"):
        open_saved(here / "large")


def test_what_cannot_be_written(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        save(moment(), here / "no" / "folder.json")


def test_no_permission(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    path = save(moment())
    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(ForbiddenError, match="cannot be read: Permission denied"):
        open_saved(path)
    with pytest.raises(ForbiddenError, match="cannot be written: Permission") as caught:
        save(moment())
    assert caught.value.exit_code == 4


def test_a_full_disk_leaves_no_file(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fdopen", lambda *_, **__: Full())
    with pytest.raises(UsageError, match="cannot be written: No space left"):
        save(moment())
    assert list(here.iterdir()) == []
