"""``poolwatch serve``: a real server, its page, its websocket, its access control."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import aiohttp
import psutil
import pyte
import pytest
from helpers import LONG_S, until_async
from screens import shown
from serving import POOLWATCH

from poolwatch.commands.serve import peers

pytestmark = [pytest.mark.slow, pytest.mark.processes]

APP = """
import sys
from sqlalchemy import create_engine, text
import poolwatch
engine = create_engine(sys.argv[1])
poolwatch.instrument(engine, name="shop", server_view=False)
with engine.connect() as connection:  # hold
    connection.execute(text("select 1"))
    print("ready", flush=True)
    sys.stdin.read()
"""
BROWSER = {"timeout": aiohttp.ClientTimeout(60)}


class Served:
    """A server that has printed its address."""

    def __init__(self, program):
        self.program = program
        self.said = ""
        for line in program.stderr:
            self.said += line
            if found := re.search(r"http://\S+", line):
                self.url = found[0]
                return
        raise AssertionError(self.said)

    @property
    def port(self):
        return int(self.url.rstrip("/").rpartition(":")[2])

    def dashboards(self):
        """The running dashboards of the server; none once it has ended."""
        with contextlib.suppress(psutil.NoSuchProcess):
            children = psutil.Process(self.program.pid).children()
            return [child for child in children if runs(child)]
        return []


@pytest.fixture
def serve(apps):
    started = []

    def start(*arguments, program=POOLWATCH):
        program = subprocess.Popen(
            [*program, "serve", "--port", "0", *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=apps.environ,
            cwd=apps.home,
        )
        started.append(program)
        return Served(program)

    yield start
    for program in started:
        program.terminate()
        program.wait(LONG_S)
        program.stderr.close()


def command_lines():
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_text("utf-8", "replace"))
    return found


def runs(process):
    """Whether a process has not ended; a zombie has."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


async def watch(url, wanted, width=130, height=40):
    """Act as a browser until all ``wanted`` texts are on the screen; returns it."""
    screen = pyte.Screen(width, height)
    stream = pyte.ByteStream(screen)
    async with (
        aiohttp.ClientSession(**BROWSER) as session,
        session.ws_connect(f"{url}ws?width={width}&height={height}") as line,
    ):
        async with asyncio.timeout(LONG_S):
            async for message in line:
                if message.type == aiohttp.WSMsgType.BINARY:
                    stream.feed(message.data)
                text = shown(screen)
                if all(words in text for words in wanted):
                    return text
    raise AssertionError(shown(screen))


async def get(url, **headers):
    async with (
        aiohttp.ClientSession(**BROWSER) as session,
        session.get(url, headers=headers) as answer,
    ):
        return answer.status, await answer.text()


async def test_the_dashboard_in_a_page(apps, serve, postgres):
    """The page shows the hold's call site; closing a page ends its dashboard, and
    ending the server ends all of them."""
    apps.start(APP, "app.py", postgres.url())
    served = serve()
    status, page = await get(served.url)
    assert status == 200
    assert f'"ws://127.0.0.1:{served.port}/ws"' in page
    assert "<title>poolwatch</title>" in page
    assert "terminal.focus()" in page  # the first key needs no click
    assert set(re.findall(r"https?://[^/\"]+", page)) == {served.url.rstrip("/")}
    await watch(served.url, [f"app.py:{apps.line('hold')}", "HOLDS 1"])
    await until_async(lambda: not served.dashboards())
    page = asyncio.create_task(watch(served.url, ["never shown"]))
    (dashboard,) = await until_async(served.dashboards)
    served.program.send_signal(signal.SIGINT)
    assert await asyncio.to_thread(served.program.wait, LONG_S) == 0
    with pytest.raises((AssertionError, aiohttp.ClientError)):
        await page
    await until_async(lambda: not runs(dashboard))


async def test_a_dashboard_does_not_outlive_a_killed_server(apps, serve):
    served = serve()
    async with (
        aiohttp.ClientSession(**BROWSER) as session,
        session.ws_connect(f"{served.url}ws?width=100&height=30") as line,
    ):
        async for message in line:  # until it shows something
            if b"no instrumented process" in message.data:
                break
        (dashboard,) = served.dashboards()
        served.program.kill()
        await until_async(lambda: not runs(dashboard))


async def test_the_options_of_the_dashboard(apps, serve, postgres):
    """--dir, --refresh and --dsn reach the dashboard; no process list shows the DSN."""
    apps.start(APP, "app.py", postgres.url())
    apps.environ["POOLWATCH_DIR"] = str(apps.home)
    dsn = postgres.dsn.replace("postgres@", "postgres:pass-word@")
    served = serve("--dir", apps.directory, "--refresh", "2", "--dsn", dsn)
    lines = command_lines()
    assert any("serve" in line and str(apps.directory) in line for line in lines)
    assert not any("pass-word" in line for line in lines)
    site = f"app.py:{apps.line('hold')}"
    page = asyncio.create_task(
        watch(
            served.url,
            [site, f"PostgreSQL {postgres.version}", "idle-tx", "every 2s"],
        )
    )
    await until_async(served.dashboards)
    assert not any("pass-word" in line for line in command_lines())
    assert "pass-word" not in await page
    assert "pass-word" not in (await get(served.url))[1]


async def test_foreign_host_names_and_foreign_pages_are_refused(serve):
    """Neither DNS rebinding nor a page of another site reaches a dashboard."""
    served = serve()
    own = f"localhost:{served.port}"
    assert (await get(served.url, Host=own))[0] == 200
    assert (await get(served.url, Host=own, Origin=f"http://{own}"))[0] == 200
    assert (await get(served.url, Host=f"evil.example:{served.port}"))[0] == 403
    for origin in (
        "http://evil.example",
        f"http://localhost:{served.port + 1}",
        "null",
    ):
        async with aiohttp.ClientSession(**BROWSER) as session:
            with pytest.raises(aiohttp.WSServerHandshakeError, match="403"):
                await session.ws_connect(f"{served.url}ws", headers={"Origin": origin})
    assert served.dashboards() == []


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0, reason="needs another user"
)
def test_another_user_of_this_machine_is_refused(serve):
    """Only this user and root are admitted, as by an application's socket."""
    served = serve()
    ask = (
        "import http.client\n"
        f"line = http.client.HTTPConnection('127.0.0.1', {served.port})\n"
        "line.request('GET', '/')\n"
        "answer = line.getresponse()\n"
        "print(answer.status, answer.read().decode())\n"
    )
    for user, expected in ((0, "200"), (65534, "403 poolwatch: only the user who")):
        done = subprocess.run(
            ["/usr/bin/env", "python3", "-c", ask],
            user=user,
            capture_output=True,
            text=True,
            cwd="/",
            env={"PATH": "/usr/bin:/bin"},
            check=False,
        )
        assert done.stdout.startswith(expected), done.stderr


@pytest.mark.parametrize(
    ("host", "asked"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::1", "::1"),
        ("127.0.0.1", "::ffff:127.0.0.1"),
    ],
)
def test_the_owner_of_a_connection(host, asked):
    """Found in the system's table, for IPv4 and IPv6; an unlisted client is refused."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with (
        socket.create_server((host, 0), family=family) as listening,
        socket.create_connection((asked, listening.getsockname()[1])) as client,
        listening.accept()[0] as served,
    ):
        peer, own = served.getpeername()[:2], served.getsockname()[:2]
        assert peers.is_allowed(peer, own)
        assert not peers.is_allowed((peer[0], 1), own)
        client.close()
        assert not peers.is_allowed(peer, own)


async def test_anyone_may_look(serve):
    """With the option other machines may connect, under any name, after a warning."""
    served = serve("--host", "0.0.0.0", "--anyone-may-look")
    assert "warning: anyone who can reach 0.0.0.0 sees" in served.said
    host = f"shop.example:{served.port}"
    status, page = await get(f"http://127.0.0.1:{served.port}/", Host=host)
    assert status == 200
    assert f'"ws://{host}/ws"' in page


ONE_PAGE = """
import sys
from poolwatch.commands.serve import serving
from poolwatch.commands.main import main
serving.MAX_PAGES = 1
sys.exit(main())
"""


async def test_not_too_many_pages(serve):
    """The number of pages is limited; closing one makes room for the next."""
    url = f"{serve(program=[sys.executable, '-c', ONE_PAGE]).url}ws"
    async with aiohttp.ClientSession(**BROWSER) as session:
        first = await session.ws_connect(url)
        with pytest.raises(aiohttp.WSServerHandshakeError, match="503"):
            await session.ws_connect(url)
        await first.close()
        async with asyncio.timeout(LONG_S):
            while True:
                with contextlib.suppress(aiohttp.WSServerHandshakeError):
                    await (await session.ws_connect(url)).close()
                    break
                await asyncio.sleep(0.05)


def one_sentence(*arguments, code=None):
    """Return stderr; the exit code is 2, and there is no traceback."""
    program = [sys.executable, "-c", code] if code else POOLWATCH
    done = subprocess.run(
        [*program, "serve", *arguments],
        capture_output=True,
        text=True,
        timeout=LONG_S,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.stderr


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
def test_a_port_that_is_taken(serve, host):
    """One address of the host is enough: a browser might open another server there."""
    port = serve("--host", "127.0.0.1").port
    said = one_sentence("--host", host, "--port", str(port))
    assert said == (
        f"poolwatch: cannot listen on {host} port {port}: Address already in use\n"
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "0.0.0.0"], "add --anyone-may-look"),
        (["--host", "::"], "add --anyone-may-look"),
        (["--host", "nosuch.invalid"], "'nosuch.invalid': no such host"),
        (["--host", ""], "'': no such host"),
        (["--host", "192.0.2.1", "--anyone-may-look"], "cannot listen on 192.0.2.1"),
        (["--port", "70000"], "'70000' must be a port from 0 to 65535"),
        (["--port", "http"], "'http' must be a port from 0 to 65535"),
        (["--allow-actions"], "unrecognized arguments: --allow-actions"),
    ],
)
def test_wrong_usage(arguments, words):
    said = one_sentence(*arguments)
    assert words in said
    assert said.count("poolwatch: ") + said.count("error: ") in (1, 2)


@pytest.mark.parametrize("missing", ["textual_serve", "textual", "sqlparse"])
def test_a_missing_extra(missing):
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from poolwatch.commands.main import main; sys.exit(main())"
    )
    said = one_sentence(code=code)
    assert said == (
        f"poolwatch: the dashboard in a browser needs {missing}; "
        "install it with: python -m pip install 'poolwatch[serve]'\n"
    )
