"""``--pool-leaks-baseline``: known leaks do not count, new ones do, old ones go."""

from __future__ import annotations

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]  # a run of many suites

SHOP = """
    def load():
        connection = engine.connect()
        kept.append(connection)
        return connection

    def careful():
        with engine.connect() as connection:
            return connection.closed
"""
SUITE = """
    from shop import load, careful

    def test_leaks(): load()
    def test_leaks_again(): load()
    def test_fine(): careful()
"""
KNOWN = "--pool-leaks-baseline=known.txt"
LINE = "held      shop.py::load"


@pytest.fixture
def suite(suites):
    suites.write("shop", SHOP)
    suites.write("test_it", SUITE)
    return suites


def entries(suites) -> list[str]:
    lines = (suites.home / "known.txt").read_text().splitlines()
    assert lines[0].startswith("# Known connection leaks")
    return [line for line in lines if not line.startswith("#")]


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["", "xdist"])
def test_known_leaks_do_not_count_and_new_ones_do(suite, workers):
    ran = suite.run(KNOWN, "--pool-leaks-update", *workers)
    assert ran.result.ret == 0, ran.text
    assert ran.leaks == []
    assert entries(suite) == [LINE]
    assert "known.txt has 1 known leak now: 1 added, 0 removed" in ran.text

    # lines are added above, and the root directory is somewhere else
    suite.write("shop", "import os\nimport re\n" + SHOP.replace("\n    ", "\n"))
    ran = suite.run(KNOWN, *workers)
    assert ran.result.ret == 0, ran.text
    assert ran.leaks == []
    assert "PoolLeakWarning" not in ran.text
    assert "2 known leaks at 1 place, as in known.txt" in ran.text

    suite.write("test_new", "def test_leaks_newly(): kept.append(engine.connect())")
    ran = suite.run(KNOWN, *workers)
    assert ran.result.ret == 1, ran.text
    assert ran.errors == ["test_leaks_newly"]
    assert ran.blamed == ["test_leaks_newly"]
    assert entries(suite) == [LINE]


@pytest.mark.parametrize("workers", [[], ["-n", "2"]], ids=["", "xdist"])
def test_leaks_that_no_longer_occur(suite, workers):
    file = suite.home / "known.txt"
    file.write_text(
        f"{LINE}  # ticket 17\ndropped a/b c.py::<lambda>\n\nheld shop.py::old\n"
        "# a remark\n".replace("dropped", "collected")
    )
    ran = suite.run(KNOWN, *workers)
    assert ran.result.ret == 0, ran.text
    gone = "collected a/b c.py::<lambda>, held shop.py::old"
    assert f"no longer seen, to be removed from known.txt: {gone}" in ran.text

    # a part of the tests shows nothing about the rest
    ran = suite.run(KNOWN, "-k", "fine", *workers)
    assert "no longer seen" not in ran.text
    ran = suite.run(KNOWN, "--pool-leaks-update", "-k", "fine", *workers)
    assert "0 added, 0 removed, 3 kept" in ran.text
    assert len(entries(suite)) == 3

    ran = suite.run(KNOWN, "--pool-leaks-update", *workers)
    assert ran.result.ret == 0, ran.text
    assert "1 known leak now: 0 added, 2 removed" in ran.text
    assert entries(suite) == [f"{LINE}  # ticket 17"]


def test_which_runs_are_complete(suite):
    (suite.home / "known.txt").write_text(f"{LINE}\nheld shop.py::old\n")
    (suite.home / "tests").mkdir()
    (suite.home / "test_it.py").rename(suite.home / "tests/test_it.py")
    (suite.home / "tests/conftest.py").write_text("import sys; sys.path.insert(0, '.')")
    assert "no longer seen" in suite.run(KNOWN, "tests").text
    assert "no longer seen" in suite.run(KNOWN, "tests/test_it.py").text
    one = "tests/test_it.py::test_leaks"
    assert "no longer seen" not in suite.run(KNOWN, one).text
    suite.write("tests/unit/test_more", "def test_fails(): assert not engine")
    assert "no longer seen" not in suite.run(KNOWN, "tests/unit").text
    assert "no longer seen" not in suite.run(KNOWN, "tests/test_it.py").text
    assert "no longer seen" not in suite.run(KNOWN).text, "a test failed"


def test_options_that_leave_tests_out(suite):
    """What the ini file always ignores is no part of the project's tests."""
    (suite.home / "known.txt").write_text(f"{LINE}\nheld shop.py::old\n")
    for narrowing in ("--collect-only", "--ignore=tests/unit"):
        ran = suite.run(KNOWN, "--pool-leaks-update", narrowing)
        assert ran.result.ret == 0, ran.text
        assert len(entries(suite)) == 2, narrowing
    with (suite.home / "tox.ini").open("a") as ini:
        ini.write("\naddopts = --ignore=docs\n")
    assert "no longer seen" in suite.run(KNOWN).text


def test_a_known_leak_keeps_its_marker_and_another_kind_is_new(suites):
    suites.write(
        "test_it",
        """
        def test_expected():
            kept.append(engine.connect())
        test_expected = pytest.mark.allow_pool_leaks(reason="a")(test_expected)

        def test_drops_and_leaks():
            engine.connect()

        @pytest.fixture(scope="module")
        def late():
            yield
            kept.append(engine.connect())
        def test_late(late): pass
        """,
    )
    (suites.home / "known.txt").write_text(
        "held test_it.py::test_expected\nheld test_it.py::test_drops_and_leaks\n"
        "held test_it.py::late\n"
    )
    ran = suites.run(KNOWN)
    assert ran.errors == ["test_drops_and_leaks"]
    (leak,) = ran.leaks
    assert leak["kind"] == "collected"


def test_warnings_and_the_ini_file(suite):
    ini = suite.home / "tox.ini"
    ini.write_text("[pytest]\npool_leaks_baseline = known.txt\n")
    assert suite.run("--pool-leaks-update", mode=None).result.ret == 0
    assert entries(suite) == [LINE]
    suite.write("test_new", "def test_leaks_newly(): kept.append(engine.connect())")
    ran = suite.run(mode=None)
    assert ran.result.ret == 0
    assert ran.text.count("PoolLeakWarning: ") == 1
    assert ran.blamed == ["test_leaks_newly"]


def binary(file):
    file.write_bytes(b"\xff\xfe\x00held")


@pytest.mark.parametrize(
    ("content", "args", "says"),
    [
        (None, [KNOWN], "known.txt: there is no such file; --pool-leaks-update writes"),
        (None, ["--pool-leaks-baseline=."], "cannot be read: Is a directory"),
        (binary, [KNOWN], "known.txt: is not a text file in UTF-8"),
        (
            '{"leaks": []}',
            [KNOWN, "--pool-leaks-update"],
            "line 1 is not a known leak, such as 'held app/db.py::load': '{",
        ),
        ("# fine\n<<<<<<< HEAD\n", [KNOWN], "line 2 is not a known leak"),
        (
            "held /home/jane/shop/db.py::load",
            [KNOWN],
            "line 1 has a path of one machine, /home/jane/shop/db.py",
        ),
        (r"held C:\shop\db.py::load", [KNOWN], "line 1 has a path of one machine"),
        (None, ["--pool-leaks-update"], "--pool-leaks-update needs --pool-leaks-base"),
        (
            None,
            [KNOWN, "--pool-leaks-update", "--pool-leaks=off"],
            "--pool-leaks-update needs leaks: not with off",
        ),
    ],
)
def test_bad_files_are_usage_errors(suite, content, args, says):
    file = suite.home / "known.txt"
    if callable(content):
        content(file)
    elif content is not None:
        file.write_text(content)
    before = file.read_bytes() if file.exists() else None
    ran = suite.run(*args, mode=None)
    assert ran.result.ret == 4
    assert says in ran.text
    assert "Traceback" not in ran.text
    assert (file.read_bytes() if file.exists() else None) == before


def test_a_file_that_cannot_be_written(suite):
    (suite.home / "no").write_text("a file, not a directory")
    ran = suite.run("--pool-leaks-baseline=no/known.txt", "--pool-leaks-update")
    assert ran.result.ret == 4
    assert "Traceback" not in ran.text
    assert "Not a directory" in ran.text
