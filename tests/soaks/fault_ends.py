"""The interpreter ends while connections are out and viewers look."""

from __future__ import annotations

import http.client
import threading
from contextlib import suppress
from pathlib import Path

from faulty import Fault, Outcome
from programs import Program, ask, new_directory, socket_in

ENDINGS = {
    "script": """
        held = [pool.connect() for _ in range(3)]
        ready()
        sys.stdin.readline()
    """,
    "slow-exit": """
        import atexit
        held = [pool.connect() for _ in range(3)]
        atexit.register(time.sleep, 2)  # the main thread has ended: is that a leak?
        ready()
        sys.stdin.readline()
    """,
    "thread": """
        held = []
        def work():
            held.append(pool.connect())
            sys.stdin.readline()
        threading.Thread(target=work).start()
        ready()
    """,
    "daemon-thread": """
        def work():
            with pool.connect():
                time.sleep(600)
        def busy():
            while True:
                pool.connect().close()
        for each in (work, busy):
            threading.Thread(target=each, daemon=True).start()
        ready()
        sys.stdin.readline()
    """,
    "asyncio": """
        import asyncio
        async def work():
            with pool.connect():
                await asyncio.sleep(600)
        async def main():
            tasks = [asyncio.create_task(work()) for _ in range(3)]
            await asyncio.sleep(0)
            ready()
            await asyncio.to_thread(sys.stdin.readline)
        asyncio.run(main())
    """,
    "os-exit": """
        held = [pool.connect() for _ in range(3)]
        ready()
        sys.stdin.readline()
        os._exit(0)
    """,
    "checkout-at-exit": """
        import atexit
        poolwatch.uninstrument()
        pool = new_pool()
        def last():
            with pool.connect():
                pass
        atexit.register(last)  # the first checkout of all
        ready()
        sys.stdin.readline()
    """,
}


def ends(how: str) -> Fault:
    def fault(_: float) -> Outcome:
        with new_directory() as directory:
            program = Program(ENDINGS[how], directory, "-W", "error")
            program.wait_until_ready()
            over = threading.Event()
            viewers = [
                threading.Thread(target=look, args=(directory, over)) for _ in range(4)
            ]
            for viewer in viewers:
                viewer.start()
            program.go_on()
            ended = program.finish()
            over.set()
            for viewer in viewers:
                viewer.join()
            left = len(list(directory.iterdir()))
        return (
            f"it ends with connections out ({how}), while four viewers look",
            f"{left} files left; {ended.words()}",
            ended.fine() and not ended.log and left == (how == "os-exit"),
        )

    return fault


def look(directory: Path, over: threading.Event) -> None:
    """Look as fast as it answers."""
    while not over.is_set():
        path = socket_in(directory)
        with suppress(OSError, ValueError, http.client.HTTPException):
            if path:
                ask(path, patience_s=5)


ENDS: dict[str, Fault] = {f"exit-{how}": ends(how) for how in ENDINGS}
