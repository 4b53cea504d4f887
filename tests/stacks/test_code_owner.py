"""Which frames of a stack are the application's own: stacks as real programs have them.

Each is written as the interpreter shows it in a traceback: the outermost frame first.
"""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import textwrap
import zipfile
from pathlib import Path

import pytest

import poolwatch
from poolwatch.commands.demo import app
from poolwatch.model import Frame
from poolwatch.stacks.code_owner import (
    PROJECT,
    application_frames,
    home_of,
    is_ours,
    library_of,
)
from poolwatch.stacks.compare import still_on_stack, user_frames

LIB = sysconfig.get_paths()["stdlib"]
SITE = "/v/lib/python3.11/site-packages"
SQLA = f"{SITE}/sqlalchemy/pool/base.py connect"
RUNPY = ("<frozen runpy> _run_module_as_main", "<frozen runpy> _run_code")
IMPORT = "<frozen importlib._bootstrap> _call_with_frames_removed"
SCRIPT = "/v/bin/shop <module>"
THREAD = (f"{LIB}/threading.py _bootstrap", f"{LIB}/threading.py run")
GUNICORN = ("/v/bin/gunicorn <module>", f"{SITE}/gunicorn/workers/sync.py handle")
MAIN, WORK = f"{SITE}/shop/cli.py main", f"{SITE}/shop/work.py work"
HELPER = f"{SITE}/helpful/inner.py take"


def places(*outermost_first):
    split = [each.rpartition(" ") for each in outermost_first]
    return [(file, function) for file, _, function in reversed(split)]


def own(*outermost_first):
    stack = places(*outermost_first)
    return [" ".join(stack[at]) for at in application_frames(stack)][::-1]


@pytest.mark.parametrize(
    "start",
    [
        (SCRIPT,),
        ("/home/me/run.py <module>",),
        ("run.py <module>",),
        ("<string> <module>",),
        ("<stdin> <module>",),
        ("/srv/manage.py <module>", "/srv/manage.py main", f"{SITE}/django/a.py run"),
        (*RUNPY, f"{SITE}/shop/__main__.py <module>"),
        (*RUNPY, "/srv/shop.pyz/__main__.py <module>"),
        (
            *RUNPY,
            "shop.pyz/__main__.py <module>",
            "a/shop.pyz/_bootstrap/__init__.py run",
        ),
        (
            *RUNPY,
            "/r/pex/1/__main__.py <module>",
            "/r/pex/1/__main__.py boot",
            "/r/pex/1/.bootstrap/pex/pex.py execute",
        ),
        (
            *RUNPY,
            f"{LIB}/cProfile.py <module>",
            f"{LIB}/profile.py runctx",
            "a.py <module>",
        ),
        (*RUNPY, f"{LIB}/pdb.py main", "<string> <module>", "/srv/run.py <module>"),
        (
            "/v/bin/coverage <module>",
            f"{SITE}/coverage/execfile.py run",
            "a.py <module>",
        ),
        (
            *RUNPY,
            f"{SITE}/debugpy/server/cli.py main",
            f"{LIB}/runpy.py x",
            "a.py <module>",
        ),
        GUNICORN,
        ("<string> <module>", f"{LIB}/multiprocessing/spawn.py spawn_main"),
        ("/v/bin/celery <module>", f"{SITE}/celery/app/trace.py trace_task"),
        THREAD,
        (*THREAD, f"{LIB}/concurrent/futures/thread.py _worker"),
        (),
    ],
    ids=str,
)
def test_an_installed_application(start):
    """What starts it, and what it calls, is not its own."""
    assert own(*start, MAIN, WORK, HELPER, SQLA) == [MAIN, WORK]
    assert own(*start, WORK, SQLA) == [WORK]


@pytest.mark.parametrize(
    ("stack", "mine"),
    [
        # the project, whatever is installed
        (("/srv/run.py <module>", "/srv/a.py work", HELPER, SQLA), ["/srv/a.py work"]),
        ((*GUNICORN, "/srv/src/shop/web.py view", SQLA), ["/srv/src/shop/web.py view"]),
        ((SCRIPT, MAIN, "/etc/hook.py called", SQLA), ["/etc/hook.py called"]),
        ((SCRIPT, "/v/bin/tools.py work", SQLA), ["/v/bin/tools.py work"]),
        # the top level of a program
        (("/srv/run.py <module>", SQLA), ["/srv/run.py <module>"]),
        (("<string> <module>", SQLA), ["<string> <module>"]),
        ((SCRIPT, SQLA), [SCRIPT]),
        ((*RUNPY, f"{SITE}/shop/__main__.py <module>", HELPER, SQLA),
         [f"{SITE}/shop/__main__.py <module>"]),
        (("/w/dist-packages/r.py <module>", "/w/dist-packages/shop/a.py work", SQLA),
         ["/w/dist-packages/shop/a.py work"]),
        (("/w/dist-packages/r.py <module>", SQLA), ["/w/dist-packages/r.py <module>"]),
        # a module while it is imported
        ((SCRIPT, IMPORT, f"{SITE}/shop/db.py <module>", HELPER, SQLA),
         [f"{SITE}/shop/db.py <module>"]),
        ((*GUNICORN, IMPORT, "/srv/wsgi.py <module>", HELPER, SQLA),
         ["/srv/wsgi.py <module>"]),
        # nothing at all
        ((*THREAD, f"{SITE}/psycopg_pool/pool.py run", SQLA), []),
        ((), []),
        # one package below one name for many
        ((SCRIPT, "/usr/lib/python3/dist-packages/shop/a.py work", HELPER, SQLA),
         ["/usr/lib/python3/dist-packages/shop/a.py work"]),
        ((SCRIPT, f"/w/site-packages/mine/v{SITE}/shop/a.py work", HELPER, SQLA),
         [f"/w/site-packages/mine/v{SITE}/shop/a.py work"]),
    ],
    ids=str,
)  # fmt: skip
def test_whose_frames(stack, mine):
    assert own(*stack) == mine


@pytest.mark.parametrize(
    ("file", "library"),
    [
        (f"{SITE}/_pytest/python.py", "_pytest"),
        (f"{SITE}/uvicorn/protocols/http/h11_impl.py", "uvicorn"),
        (f"{SITE}/six.py", "six"),
        (f"{LIB}/asyncio/events.py", "asyncio"),
        (f"{LIB}/threading.py", "threading"),
        ("/usr/lib/python3.9/unittest/case.py", "unittest"),
        ("/srv/tests/unittest/test_orders.py", ""),
        ("/srv/asyncio/app.py", ""),
        ("<frozen importlib._bootstrap>", ""),
        ("<stdin>", ""),
        ("app.py", ""),
    ],
)
def test_the_library_of_a_file(file, library):
    """A directory of the project may have the name of a library."""
    assert library_of(file) == library


def test_packages_below_one_name_are_told_apart(monkeypatch):
    """A namespace package has no code of its own."""
    import types

    monkeypatch.setitem(sys.modules, "mycompany", types.ModuleType("mycompany"))
    assert home_of(f"{SITE}/mycompany/shop/a.py", "work") == "mycompany.shop"
    assert home_of(f"{SITE}/mycompany/util.py", "work") == "mycompany"
    orders = f"{SITE}/mycompany/orders/a.py work"
    assert own(SCRIPT, orders, f"{SITE}/mycompany/base/db.py take", SQLA) == [orders]


def frames(*outermost_first):
    return [Frame(file, 1, function) for file, function in places(*outermost_first)]


def test_a_launcher_tells_no_stacks_apart():
    """The application has left the function that took it: the launcher is no proof of
    the contrary. Of what it takes itself, it is."""
    now = frames(SCRIPT, MAIN, f"{LIB}/threading.py wait")
    assert still_on_stack(frames(SCRIPT, MAIN, WORK, SQLA), now) == 1
    assert still_on_stack(frames(SCRIPT, WORK, SQLA), now) == 0
    assert still_on_stack(frames(SCRIPT, SQLA), now) == 1
    called = frames(SCRIPT, MAIN, "/srv/hook.py called")
    assert still_on_stack(frames(SCRIPT, MAIN, WORK, SQLA), called) == 1


def test_the_launcher_on_request():
    stack = frames(SCRIPT, MAIN, WORK, HELPER, SQLA)
    assert [frame.file for frame in user_frames(stack, launcher=True)] == [
        f"{SITE}/shop/work.py",
        f"{SITE}/shop/cli.py",
        "/v/bin/shop",
    ]


def test_a_stack_without_its_outer_frames():
    """The call site tells whose the rest of a stack is."""
    near = frames(WORK, HELPER, f"{SITE}/other/a.py called", SQLA)
    assert [frame.function for frame in user_frames(near[:-1])] == ["take"]
    site = frames(WORK)[0]
    assert user_frames(near, site) == (site,)
    assert user_frames(near[:-1], site) == ()


def test_a_library_that_was_copied_beside_the_application(tmp_path):
    """As into a zip file: its frames are no application's."""
    archive = tmp_path / "shop.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("sqlalchemy/__init__.py", "")
        file.writestr("sqlalchemy/pool.py", "def connect(look): return look()")
        file.writestr("app/__init__.py", "")
        file.writestr("app/sqlalchemy/__init__.py", "def work(look): return look()")
        file.writestr("__main__.py", textwrap.dedent("""
            import sys
            from app.sqlalchemy import work
            from sqlalchemy.pool import connect
            from poolwatch.stacks.code_owner import application_frames

            def look():
                frame, stack = sys._getframe(1), []
                while frame is not None:
                    stack.append((frame.f_code.co_filename, frame.f_code.co_name))
                    frame = frame.f_back
                return [stack[at][1] for at in application_frames(stack)]

            print(work(lambda: connect(look)))
            """))  # fmt: skip
    done = subprocess.run(
        [sys.executable, str(archive)],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert done.stdout.strip() == "['<lambda>', 'work']"


def test_every_module_of_poolwatch_is_its_own_but_for_the_demo_application():
    """Wherever in the package the module that decides it lies."""
    of_the_demo = set(Path(app.__path__[0]).glob("*.py"))
    modules = set(Path(poolwatch.__path__[0]).rglob("*.py"))
    assert len(of_the_demo) > 5
    assert len(modules - of_the_demo) > 100
    assert {file for file in modules if not is_ours(str(file))} == of_the_demo
    assert {
        file for file in modules if home_of(str(file), "f") == PROJECT
    } == of_the_demo
