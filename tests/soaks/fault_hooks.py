"""Faults in the hooks: exceptions at every line, and at random moments under load."""

from __future__ import annotations

import os
import re
import subprocess
import sys

from faulty import Fault, Outcome
from programs import TESTS, Program, new_directory

EVERY_LINE = """
    from adapters.test_recovery import RealFault

    poolwatch.uninstrument()
    lines = []

    class Count(logging.Handler):
        def emit(self, record):
            lines.append(record.getMessage())

    logging.getLogger().handlers[:] = [Count()]

    def cycle(pool):
        connection = pool.connect()
        connection.close()

    tried, most, off, out, raised, uncounted = 0, 0, 0, 0, [], 0
    for at in range(1, 5000, STEP):
        lines.clear()
        pool = new_pool()
        fault = RealFault(ValueError, at)
        try:
            with fault:
                cycle(pool)
                with pool.connect():
                    cycle(pool)  # nested
        except Exception as error:
            raised.append(fault.where)
        for _ in range(5):
            cycle(pool)
        (stats,) = poolwatch.snapshot().processes[0].pools
        counts = stats.counters
        uncounted += not stats.switched_off and counts.checkouts != counts.checkins
        off += stats.switched_off
        out += pool.checkedout()
        most = max(most, len(lines))
        poolwatch.uninstrument()
        if fault.where is None:
            break
        tried += 1
    print(json.dumps({
        "tried": tried, "most": most, "off": off, "out": out, "raised": raised,
        "uncounted": uncounted,
    }), flush=True)
"""


def every_line(length: float) -> Outcome:
    with new_directory() as directory:
        step = max(1, round(1 / length))
        program = Program(EVERY_LINE.replace("STEP", str(step)), directory)
        ended = program.finish(900)
    assert ended.said, ended
    (said,) = ended.said
    return (
        f"ValueError at every {step}. line of ours that two checkouts run",
        (
            f"{said['tried']} lines: {said['off']} times switched off, "
            f"{said['most']} log line at most, {said['out']} connections lost, "
            f"{len(said['raised'])} raised {sorted(set(said['raised']))[:30]}"
        ),
        ended.fine()
        and said["tried"] > 10
        and said["most"] <= 1
        and not (said["out"] or said["raised"] or said["uncounted"]),
    )


def every_kind(length: float) -> Outcome:
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    if length < 1:
        command += ["-k", "sqlalchemy and take_and_give"]
    done = subprocess.run(
        [*command, str(TESTS / "adapters" / "test_recovery.py")],
        cwd=TESTS.parent,
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        check=False,
        timeout=3600,
    )
    last = done.stdout.strip().splitlines()[-1]
    return (
        "7 kinds of exceptions at every line of the hooks of 6 kinds of pools",
        f"tests/adapters/test_recovery.py: {re.sub(r' in .*', '', last)}",
        done.returncode == 0,
    )


INTERRUPTS = """
    import gc, random, signal
    chance = random.Random(7)
    poolwatch.uninstrument()
    pool = new_pool(pool_size=6, max_overflow=6)
    ours = os.path.dirname(poolwatch.__file__)
    over = threading.Event()
    seen, raised, armed, where = {}, 0, False, []

    def load():
        while not over.is_set():
            with suppress(Exception), pool.connect(), pool.connect():
                sum(range(100))

    def fault(number, frame):
        # A pool itself may lose a slot, or its lock for good, to an interrupt of its
        # own code, also as it calls ours: before the first line of a hook.
        global raised
        signal.setitimer(signal.ITIMER_REAL, 0.0001 + chance.random() * 0.001)
        code = frame.f_code
        inside = (frame.f_lineno or 0) > code.co_firstlineno
        if armed and inside and code.co_filename.startswith(ours):
            raised += 1
            where.append(f"{os.path.basename(code.co_filename)}:{frame.f_lineno}")
            raise chance.choice([KeyboardInterrupt, MemoryError])

    def work():
        global armed
        armed = True
        with pool.connect(), pool.connect():
            sum(range(50))
        armed = False

    threads = [threading.Thread(target=load) for _ in range(2)]
    for thread in threads:
        thread.start()
    signal.signal(signal.SIGALRM, fault)
    signal.setitimer(signal.ITIMER_REAL, 0.001)
    until_when = time.monotonic() + SECONDS
    while time.monotonic() < until_when:
        try:
            work()
        except BaseException as error:
            armed = False
            name = type(error).__name__
            seen[name] = seen.get(name, 0) + 1
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # a late handler would set the timer
    signal.setitimer(signal.ITIMER_REAL, 0)
    over.set()
    for thread in threads:
        thread.join()
    gc.collect()
    say(pool, raised=raised, seen=seen, where=len(set(where)))
"""


def interrupts(length: float) -> Outcome:
    seconds = 10 * length
    with new_directory() as directory:
        program = Program(INTERRUPTS.replace("SECONDS", str(seconds)), directory)
        ended = program.finish(60 + 3 * seconds)
    assert ended.said, ended
    (said,) = ended.said
    return (
        "KeyboardInterrupts and MemoryErrors at random moments in our code, under load",
        (
            f"{said['raised']} raised at {said['where']} lines in "
            f"{said['checkouts']} checkouts, seen by the "
            f"application: {said['seen']}; {said['checkins']} returns, {said['out']} "
            f"out, {said['holds']} holds, {said['waits']} waits; {ended.words()}"
        ),
        ended.fine()
        and said["out"] == said["waits"] == said["holds"] == 0
        and said["checkouts"] == said["checkins"],
    )


HOOKS: dict[str, Fault] = {
    "every-line": every_line,
    "every-kind": every_kind,
    "interrupts": interrupts,
}
