"""What a run says: its text, warnings, files, exit code, and how it is switched."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import _pytest
import pytest

from poolwatch.model import Frame
from poolwatch.testing.leak import Leak
from poolwatch.testing.report import describe

pytestmark = pytest.mark.slow

SUITE = """
    def test_fine():
        engine.connect().close()

    def test_leaks():
        kept.append(engine.connect())  # here

    def test_last():
        pass
"""
LATE = """
    @pytest.fixture(scope="module")
    def late():
        yield
        kept.append(engine.connect())  # here

    def test_leaks(late): pass
    def test_last(): pass
"""


@pytest.fixture
def suite(suites):
    suites.write("test_it", SUITE)
    return suites


def test_the_text_of_an_error(suites):
    suites.write(
        "test_it",
        """
        def helper():
            connection = engine.connect()  # here
            connection.execute(text("select 'a secret'"))
            return connection

        def test_leaks():
            kept.append(helper())
        """,
    )
    ran = suites.run()
    assert ran.result.ret == 1
    ran.result.assert_outcomes(passed=1, errors=1)
    ran.result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaks*",
            "test_it.py::test_leaks leaked 1 connection",
            "  checked out at *test_it.py:3 in helper, pool 'test.db'",
            "  >   connection = engine.connect() # here",
            "      from *test_it.py:8 in test_leaks",
            "    not returned; held for *by thread MainThread",
            "    kept alive by *",
            "    last statement: select ?",
            "    fix: *",
            "*= pool leaks =*",
            "test_it.py::test_leaks: checked out at *",
            "1 connection leaked",
        ]
    )
    assert "secret" not in ran.text


def test_the_text_is_short_unless_it_is_asked_for(suites):
    calls = "\n".join(f"    kept.append(engine.connect())  # {n}" for n in range(12))
    suites.write("test_it", f"def test_leaks():\n{calls}\n")
    ran = suites.run()
    text = ran.text.split("leaked 12 connections\n")[1].split("\n=====")[0]
    assert len(text.splitlines()) <= 14
    assert "see -vv" in text
    ran = suites.run("-vv")
    text = ran.text.split("leaked 12 connections\n")[1].split("\n=====")[0]
    assert text.count("checked out at") == 12


@pytest.mark.parametrize(
    ("source", "workers"),
    [(SUITE, []), (LATE, []), (LATE, ["-n", "1"])],
    ids=["at once", "late", "late under xdist"],
)
def test_warnings_are_seen_and_can_be_filtered(suites, source, workers):
    suites.write("test_it", source)
    ran = suites.run(*workers, mode=None)
    assert ran.result.ret == 0
    ran.result.stdout.fnmatch_lines(["*warnings summary*", "test_it.py::test_leaks"])
    assert ran.text.count("PoolLeakWarning: ") == 1
    assert [leak["severity"] for leak in ran.leaks] == ["warning"]

    ran = suites.run(*workers, "-W", "error::poolwatch.PoolLeakWarning", mode="warn")
    assert ran.result.ret == 1
    assert ran.errors == ["test_leaks"]
    if workers:
        return

    (suites.home / "tox.ini").write_text(
        "[pytest]\nfilterwarnings = ignore::poolwatch.PoolLeakWarning\n"
    )
    ran = suites.run(*workers, mode=None)
    assert ran.result.ret == 0
    assert "PoolLeakWarning: " not in ran.text


def test_how_loud(suite):
    quiet = suite.run("-q")
    assert "1 connection leaked" in quiet.text
    assert "test_leaks: taken" not in quiet.text
    assert "test_it.py::test_leaks ERROR" in suite.run("-v").text


def test_stop_at_the_first_and_begin_with_the_last_failed(suites):
    suites.write("test_it", SUITE)
    suites.write("test_late", LATE)
    ran = suites.run("-x")
    assert ran.result.ret == 1
    assert ran.blamed == ["test_leaks"]
    assert "test_last" not in ran.passed
    suites.run()
    ran = suites.run("--lf")
    assert ran.passed == ["test_leaks", "test_leaks"]
    assert ran.errors == ["test_leaks", "test_leaks"]


@pytest.mark.parametrize("workers", [[], ["-n", "1"]], ids=["", "xdist"])
def test_junit(suites, workers):
    suites.write("test_it", SUITE)
    suites.write("test_late", LATE)
    suites.run("--junitxml=junit.xml", *workers)
    (found,) = ET.parse(suites.home / "junit.xml").getroot()
    assert found.get("errors") == "2"
    cases = [case for case in found if case.find("error") is not None]
    assert {(case.get("classname"), case.get("name")) for case in cases} == {
        ("test_it", "test_leaks"),
        ("test_late", "test_leaks"),
    }
    properties = {
        (case.get("name"), each.get("name"), each.get("value"))
        for case in found
        for each in case.iter("property")
    }
    assert {
        ("test_leaks", "pool_leaks", "1"),
        ("test_leaks", "pool_peak", "1"),
        ("test_fine", "pool_peak", "1"),
    } <= properties


def test_annotations_stand_at_the_line_that_took_it(suite, monkeypatch):
    monkeypatch.setenv("GITHUB_ACTIONS", "true")
    monkeypatch.delenv("GITHUB_WORKSPACE", raising=False)
    title = "title=Connection leak in test_it.py%3A%3Atest_leaks"
    error = f"::error file=test_it.py,line=6,{title}::checked out at *"
    suite.run().result.stdout.fnmatch_lines([error])
    warning = error.replace("::error", "::warning")
    suite.run(mode="warn").result.stdout.fnmatch_lines([warning])
    monkeypatch.setenv("GITHUB_WORKSPACE", str(suite.home.parent))
    below = error.replace("file=", f"file={suite.home.name}/")
    suite.run().result.stdout.fnmatch_lines([below])


def test_the_json(suite):
    ran = suite.run()
    assert ran.found["schema"] == 1
    assert ran.found["mode"] == "error"
    (leak,) = ran.leaks
    assert leak["kind"] == "held"
    assert leak["test"] == leak["owner"] == "test_it.py::test_leaks"
    assert leak["site"]["line"] == 6
    assert leak["kept"]
    (suite.home / "below").mkdir()
    suite.write("below/test_two", "def test(): pass")
    (suite.home / "tox.ini").write_text("[pytest]\npool_leaks_json = from_ini.json\n")
    suite._pytester.runpytest_subprocess("--rootdir=.", "below")
    assert (suite.home / "from_ini.json").exists()
    ran = suite.run("--pool-leaks-json=below")
    assert ran.result.ret == 4
    assert "below cannot be written: Is a directory" in ran.text
    assert "Traceback" not in ran.text


def test_the_json_of_a_run_that_is_interrupted(suite):
    suite.write("test_then", "def test_stops(): raise KeyboardInterrupt")
    ran = suite.run()
    assert ran.result.ret == 2
    assert ran.blamed == ["test_leaks"]


def test_off_and_ini(suite):
    assert suite.run(mode="off").result.ret == 0
    assert not (suite.home / "found.json").exists()
    ini = suite.home / "tox.ini"
    ini.write_text("[pytest]\npool_leaks = error\npool_leaks_grace = 0.1\n")
    assert suite.run(mode=None).errors == ["test_leaks"]


@pytest.mark.parametrize(
    ("ini", "args", "says"),
    [
        ("pool_leaks = loud", [], "pool_leaks must be off, warn or error, not 'loud'"),
        (
            "pool_leaks_grace = soon",
            [],
            "pool_leaks_grace must be a number of seconds >= 0 and < 3600, not 'soon'",
        ),
        ("", ["--pool-leaks=loud"], "invalid choice: 'loud'"),
        (
            "",
            ["--pool-leaks-grace=-1"],
            "must be a number of seconds >= 0 and < 3600, not '-1'",
        ),
        (
            "",
            ["--pool-leaks-grace=soon"],
            "must be a number of seconds >= 0 and < 3600, not 'soon'",
        ),
    ],
)
def test_wrong_settings_are_usage_errors(suites, ini, args, says):
    (suites.home / "tox.ini").write_text(f"[pytest]\n{ini}\n")
    ran = suites.run(*args, mode=None)
    assert ran.result.ret == 4
    assert says in ran.text


def test_ignored_leaks(suites):
    suites.write(
        "test_it",
        """
        def by_name(): kept.append(engine.connect())
        def by_file_and_name(): kept.append(engine.connect())
        def test_name(): by_name()
        def test_file(): by_file_and_name()
        def test_leaks(): kept.append(engine.connect())
        """,
    )
    suites.write("test_legacy", "def test_dotted(): kept.append(engine.connect())")
    (suites.home / "tox.ini").write_text(
        "[pytest]\npool_leaks_ignore =\n  by_n*  # a reason\n"
        "  test_it.py::by_file*\n  test_legacy.*\n"
    )
    assert suites.run().blamed == ["test_leaks"]


def test_reruns(suites):
    suites.write(
        "test_it",
        """
        attempts = []
        def test_leaks_once():
            attempts.append(1)
            if len(attempts) == 1:
                kept.append(engine.connect())

        def test_leaks_always():
            kept.append(engine.connect())

        def test_fails_once():
            connection = engine.connect()
            attempts.append(2)
            assert attempts.count(2) > 1
            connection.close()
        """,
    )
    ran = suites.run("--reruns", "1")
    assert ran.result.ret == 1
    assert ran.errors == ["test_leaks_always"]
    ran = suites.run("--reruns", "1", "-k", "once")
    assert ran.result.ret == 0, ran.text
    assert ran.errors == []
    assert [leak["severity"] for leak in ran.leaks] == ["warning"]


def test_no_name_begins_with_that_of_another_project(suites):
    suites.write("test_it", "def test(): pass")
    for option in ("--help", "--markers", "--fixtures"):
        text = suites._pytester.runpytest_subprocess(option).stdout.str()
        assert re.search("pool.leaks", text)
        assert not re.search(
            r"^\s*(--|@pytest\.mark\.)?poolwatch\w*( |:|=|\()", text, re.MULTILINE
        )


def test_tests_in_a_directory_called_unittest_are_no_test_runner():
    """The callers of a leak are named up to the test, and no further."""
    ours = "/srv/tests/unittest/test_orders.py"
    site = Frame("/srv/shop/db.py", 3, "connect")
    runner = Frame(
        f"{Path(pytest.__file__).parent.parent}/_pytest/python.py", 9, "call"
    )
    stack = (site, Frame(ours, 8, "test_it"), runner, Frame("/srv/run.py", 2, "main"))
    leak = Leak("held", "orders", site, stack, 1.0, "MainThread", None)
    said = describe([leak], "test_it")
    assert "unittest/test_orders.py:8 in test_it" in said
    assert "run.py" not in said


def test_a_leak_is_never_explained_by_a_frame_of_poolwatch(suites):
    """The plugin's own frames refer to the test item, and so to what it keeps."""
    suites.write(
        "test_it",
        """
        def test_leaks(request):
            request.node.kept = engine.connect()  # here
        """,
    )
    ran = suites.run()
    ran.accuses_the_right_ones()
    (leak,) = ran.leaks
    assert "attribute 'kept'" in leak["kept"]
    (frame,) = re.findall(r" at (\w+\.py):\d+", leak["kept"])
    assert frame in {file.name for file in Path(_pytest.__file__).parent.glob("*.py")}
    assert "PoolLeaks" not in leak["kept"]
