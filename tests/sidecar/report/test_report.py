"""The page: what went wrong comes first, nothing is loaded, nothing is let through."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import fakes
import pytest
from shop_hour import START, Store, fill_hour

from poolwatch.commands.main import main
from poolwatch.model import Frame
from poolwatch.sidecar.history import schema
from poolwatch.sidecar.history.store import open_store

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(1)>{{7*7}}\x1b"
BROWSER = shutil.which("chromium") or shutil.which("google-chrome")


class Page(HTMLParser):
    """The elements of a page and the text of some of them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "wbr"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts.setdefault(self._open[-1], []).append(data)

    def all(self, tag: str) -> str:
        return " ".join(" ".join(self.texts.get(tag, ())).split())

    @property
    def figures(self) -> dict[str, Any]:
        found = self.texts["script"][0]
        return dict(json.loads(found))


def url(folder: Path) -> str:
    return f"sqlite:///{folder}/history.db"


def report(folder: Path, *options: str) -> Page:
    output = folder / "page.html"
    given = ["report", "-o", str(output), "--history", url(folder), *options]
    assert main(given) == 0
    return Page(output.read_text("utf-8"))


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    engine = open_store(url(tmp_path), write=True)
    fill_hour(engine)
    engine.dispose()
    return tmp_path


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(open_store(url(tmp_path), write=True))


def test_begins_with_the_worst_faults_merged_over_processes(shop: Path) -> None:
    page = report(shop)
    assert page.all("h1").startswith("shop/reports/export.py:203 has abandoned 5")
    words = page.all("p")
    assert "leaked.abandoned, 4 times in 4 processes on 2 hosts, 23m10s" in words
    cards = [a["id"] for tag, a in page.elements if tag == "details"]
    assert cards == ["fault-1", "fault-2", "fault-3", "fault-4"]
    details = page.all("dd") + page.all("li") + page.all("span")
    assert "contextlib.closing(rows(...))" in details  # the remedy
    assert "export_orders" in details  # the stack of the kept snapshot
    assert "8 requests waiting up to 11s" in page.all("h4")


def test_one_host(shop: Path) -> None:
    page = report(shop, "--host", "web-2")
    assert "leaked.abandoned, 2 times in 2 processes, 23m" in page.all("p")
    assert "2 processes on web-2" in page.all("span")


def test_what_is_wrong_over_all_hosts(store: Store, tmp_path: Path) -> None:
    fill_hour(store.engine, processes=2, faults=False)
    for number, host in enumerate(("web-1", "web-2")):
        server = fakes.server_status(identity="s/1", max_connections=100, reserved=3)
        pools = (fakes.pool(size=60, max_overflow=0),)
        kept = fakes.process(
            pid=4100 + number, host=host, pools=pools, servers=(server,)
        )
        owner = schema.identifier(host, kept.pid, START)
        store.snapshot(owner, kept, START + 3599)
    store.write()
    page = report(tmp_path)
    assert page.all("h1").startswith("the pools of 2 processes on 2 hosts can open 120")
    assert "over_capacity, over all hosts, at the end of this time" in page.all("p")
    assert "run fewer processes" in page.all("dd")
    assert "Nothing went wrong" in report(tmp_path, "--host", "web-1").all("h1")


def test_nothing_went_wrong(tmp_path: Path) -> None:
    fill_hour(open_store(url(tmp_path), write=True), faults=False)
    page = report(tmp_path)
    assert page.all("h1") == "Nothing went wrong"
    assert "1.42 M" in page.all("dd")  # checkouts


def test_loads_nothing_and_lets_nothing_through(store: Store, tmp_path: Path) -> None:
    process = store.process("web-1", 7, START + 120, name=HOSTILE)
    pool = store.pool(process, HOSTILE, 5, 5)
    site = Frame(f"/srv/{HOSTILE}.py", 3, HOSTILE)
    keys = {"minute": int(START), "pool_id": pool}
    store.minute(int(START), pool, 2.0, slots=10)
    named = store.call_site(site)
    store.usage(schema.site_minutes, 60.0, 3, call_site_id=named, **keys)
    labels = {"label": HOSTILE, "value": HOSTILE}
    store.usage(schema.label_minutes, 60.0, 3, **labels, **keys)
    texts = dict.fromkeys(("text", "proof", "remedy"), HOSTILE)
    finding = fakes.finding(pool=HOSTILE, holds=("h1",), sites=(site,), **texts)
    hold = fakes.hold(
        pool=HOSTILE,
        site=site,
        statement=HOSTILE,
        labels={HOSTILE: HOSTILE},
        evidence=(HOSTILE,),
        thread=HOSTILE,
        server=fakes.server_row(HOSTILE),
    )
    pools = (fakes.pool(HOSTILE),)
    kept = fakes.process(hold, name=HOSTILE, pools=pools, findings=(finding,))
    store.incident(process, finding, START, START + 60, kept=kept, pool=HOSTILE)
    store.write()
    page = report(tmp_path)
    tags = [tag for tag, _ in page.elements]
    assert tags.count("script") == 3
    assert not {"img", "iframe", "link", "object", "form", "base"}.intersection(tags)
    policy = next(a["content"] for t, a in page.elements if t == "meta" and len(a) == 2)
    assert policy
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    for _, attributes in page.elements:
        assert not any(name.startswith("on") for name in attributes)
        assert "src" not in attributes
        assert (attributes.get("href") or "#").startswith("#")
    text = json.dumps(page.texts)
    assert "{{7*7}}" in text  # the template takes nothing for its own
    assert "\\u001b" not in text  # control characters are visible signs
    drawn = json.dumps([page.figures["over-time"], page.figures["held-over-time"]])
    assert "<img" not in drawn  # Plotly knows some tags in its texts


def test_a_long_history_of_many_call_sites_stays_small(
    store: Store, tmp_path: Path
) -> None:
    process = store.process("web-1", 7, START + 3 * 86400)
    pools = [store.pool(process, f"pool-{n}", 5, 5) for n in range(30)]
    sites = [store.call_site(Frame(f"/srv/m{n}.py", n, "f")) for n in range(400)]
    for at in range(0, 3 * 1440, 40):
        keys = {"minute": int(START) + at * 60, "pool_id": pools[at % 30]}
        for pool in pools:
            store.minute(int(START) + at * 60, pool, 1.0, slots=10)
        for site in sites[at % 7 :: 7]:
            store.usage(schema.site_minutes, 5.0, 3, call_site_id=site, **keys)
    for n in range(300):
        finding = fakes.finding("long_hold", sites=(Frame("/srv/m.py", n, "f"),))
        store.incident(process, finding, START + n, START + n + 9)
    store.write()
    page = report(tmp_path, "--since", "2026-11-30T01:00")
    assert (tmp_path / "page.html").stat().st_size < 2_700_000
    assert len([tag for tag, _ in page.elements if tag == "details"]) == 40
    assert "and 260 more; poolwatch history lists all" in page.all("p")
    assert "385 others" in page.all("td")
    lines = page.figures["over-time"]["data"]
    assert max(len(line["y"]) for line in lines if "y" in line) <= 482
    names = [line["name"] for line in lines if "name" in line]
    assert len(names) == 7
    assert names[-1] == "24 other pools"


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--until", "2020-01-01"], "lies before the history, which begins at 2026"),
        (["--since", "2030-01-01"], "lies after the history, which ends at 2026"),
        (["--since", "01:30", "--until", "01:20"], "--since must be before --until"),
        (["--host", "nope"], "the history has no process of host 'nope'"),
        (["--since", "yesterday"], "'yesterday' is not a time"),
        (["-o", "/nonexistent/page.html"], "there is no directory /nonexistent"),
        (["-o", "/"], "cannot write /: it is a directory"),
        (["-o", "/dev/full"], "cannot write /dev/full: No space left on device"),
    ],
)
def test_bad_input_is_one_sentence(
    shop: Path,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    sentence: str,
) -> None:
    moments = {"01:30": "2026-11-30T01:30", "01:20": "2026-11-30T01:20"}
    options = [moments.get(each, each) for each in options]
    output = str(shop / "page.html")
    assert main(["report", "-o", output, "--history", url(shop), *options]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("poolwatch: ")
    assert sentence in line
    assert not Path(output).exists()


def test_empty_and_absent_histories(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["report", "-o", str(tmp_path / "page.html"), "--history", url(tmp_path)]
    assert main(given) == 2
    assert "there is no history" in capsys.readouterr().err
    open_store(url(tmp_path), write=True).dispose()
    assert main(given) == 2
    assert "the history is empty" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("library", ["plotly", "jinja2"])
def test_a_missing_library_is_one_sentence(
    shop: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    library: str,
) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == library]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, library, None)
    output = str(shop / "page.html")
    assert main(["report", "-o", output, "--history", url(shop)]) == 2
    assert "python -m pip install 'poolwatch[report]'" in capsys.readouterr().err


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
@pytest.mark.processes
def test_a_browser_draws_the_plots(shop: Path) -> None:
    report(shop)
    drawn = subprocess.run(
        [
            str(BROWSER),
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            f"--user-data-dir={shop / 'browser'}",
            "--virtual-time-budget=5000",
            "--dump-dom",
            f"file://{shop / 'page.html'}",
        ],
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
    ).stdout
    assert '<html lang="en" class="drawn">' in drawn
    assert drawn.count(' svg-container" style=') == 4
