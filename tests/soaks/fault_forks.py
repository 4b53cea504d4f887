"""Processes that fork or start others, with an instrumented pool in each."""

from __future__ import annotations

from faulty import Fault, Outcome
from programs import Ended, Program, ask, new_directory, socket_in

FORKS_IN_A_ROW = """
    held = pool.connect()
    codes, silent = set(), 0
    ready()
    for number in range(COUNT):
        pid = os.fork()
        if not pid:
            with new_pool().connect():
                code = 0 if not poolwatch.snapshot().processes[0].holds[1:] else 3
            os._exit(code)
        codes.add(os.waitpid(pid, 0)[1])
        with pool.connect():
            pass
    held.close()
    say(pool, codes=sorted(codes), threads=threading.active_count(),
        files=sum("poolwatch" in os.readlink(f"/proc/self/fd/{each}")
                  for each in os.listdir("/proc/self/fd")
                  if os.path.exists(f"/proc/self/fd/{each}")))
    sys.stdin.read()
"""


def forks_in_a_row(length: float) -> Outcome:
    count = max(10, int(1000 * length))
    with new_directory() as directory:
        program = Program(
            FORKS_IN_A_ROW.replace("COUNT", str(count)), directory, "-W", "error"
        )
        program.wait_until_ready()
        looks = missed = 0
        path = socket_in(directory)
        assert path
        while looks < count / 20:
            try:
                ask(path, patience_s=10)
            except OSError:
                missed += 1
            looks += 1
        ended = program.finish(60 + count)
        left = [each.name for each in directory.iterdir()]
    (said,) = ended.said
    return (
        f"{count} forks in a row; each child checks out of a pool of its own",
        (
            f"exit codes {said['codes']}, {said['threads']} threads, {looks} looks "
            f"({missed} missed), {len(left)} sockets of children left; {ended.words()}"
        ),
        ended.fine()
        and said["codes"] == [0]
        and said["threads"] == 2
        and said["out"] == said["holds"] == 0
        and said["checkouts"] == said["checkins"] == count + 1,
    )


FORK_WITH_HOLDS = """
    held = pool.connect()
    started = threading.Event()
    def other():
        with pool.connect():
            started.set()
            until(lambda: over)
    over = []
    thread = threading.Thread(target=other)
    thread.start()
    started.wait()
    pid = os.fork()
    if not pid:
        holds = poolwatch.snapshot().processes[0].holds
        mine = new_pool(pool_size=1)
        with mine.connect():
            (hold,) = poolwatch.snapshot().processes[0].holds
        said = poolwatch.snapshot().processes[0]
        os._exit(len(holds) + len(said.holds))
    code = os.waitpid(pid, 0)[1]
    over.append(True)
    thread.join()
    held.close()
    say(pool, codes=[code])
"""
MULTIPROCESSING = """
    import multiprocessing
    import fault_child

    if __name__ == "__main__":
        held = pool.connect()
        context = multiprocessing.get_context(METHOD)
        with context.Pool(3) as workers:
            counts = workers.map(fault_child.work, range(60), chunksize=1)
            workers.close()
            workers.join()
        held.close()
        say(pool, codes=sorted({tuple(each) for each in counts}))
"""


def alone(source: str, what: str, codes: list[object]) -> Fault:
    """A program that tells its own ``codes``, and whose pool must be as before."""

    def fault(_: float) -> Outcome:
        with new_directory() as directory:
            ended = Program(source, directory).finish()
        assert ended.said, ended
        said = ended.said[0]
        return (
            what,
            f"the children say {said['codes']}; {ended.words()}",
            right(ended) and said["codes"] == codes,
        )

    return fault


def right(ended: Ended) -> bool:
    said = ended.said[0]
    return (
        ended.fine()
        and said["out"] == said["holds"] == said["leaked"] == 0
        and said["checkouts"] == said["checkins"]
    )


FORKS: dict[str, Fault] = {
    "forks": forks_in_a_row,
    "fork": alone(FORK_WITH_HOLDS, "a fork while two threads hold connections", [0]),
    **{
        f"{method}-workers": alone(
            MULTIPROCESSING.replace("METHOD", repr(method)),
            f"60 tasks in three workers by {method}; each: holds, out, leaked",
            [[0, 0, 0]],
        )
        for method in ("fork", "spawn", "forkserver")
    },
}
