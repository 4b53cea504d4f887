"""Is the code that took a connection still on the stack? Stacks, outermost first."""

from __future__ import annotations

import pytest

from poolwatch.model import Frame
from poolwatch.stacks.compare import still_on_stack, user_frames

LIBRARY = "/env/lib/python3.11/site-packages"


def stack(*names):
    """Frames, innermost first, of names that are written outermost first."""
    frames = []
    for line, name in enumerate(names):
        file, _, function = name.rpartition(":")
        frames.append(Frame(file or "/srv/app.py", line + 7 * len(names), function))
    return tuple(reversed(frames))


SQLA = f"{LIBRARY}/sqlalchemy/pool/base.py:connect"
ASYNCIO = f"{LIBRARY}/uvicorn/asyncio/server.py:run"

NAMESAKE = "/srv/asyncio/handlers.py:handler"


@pytest.mark.parametrize(
    ("taken", "now", "still"),
    [
        (["main", "job", SQLA], ["main", "job", "compute"], 2),
        (["main", "handler", "get", SQLA], ["main", "handler", "use"], 2),  # helper
        (["main", "loop", "job", "take", SQLA], ["main", "loop", "wait"], 2),  # went on
        (["main", "loop", "job", "take"], ["main", "loop", "other"], 2),
        (["main", "job"], [], 0),  # ended
        (["job", "take"], ["next_job", "take"], 0),  # another job of a pool of threads
        (["main", "f", "f", "f", "take"], ["main", "f", "f"], 3),  # recursion
        (["main", "f", "f", "take"], ["main", "f", "f", "f", "f"], 3),
        (["main", "rows", "take"], ["main", "render", "rows"], 2),  # a generator
        (["main", "scope", "take"], ["main", "work"], 1),  # a contextmanager, parked
        (["<m>", ASYNCIO, "handler", "take"], ["handler", "take"], 3),  # a task
        (["<m>", "handler", "take"], ["handler", "take"], 0),  # no task begins there
        (["<m>", NAMESAKE], [NAMESAKE], 0),  # nor there
        ([SQLA], ["main"], 0),
    ],
)
def test_still_on_stack(taken, now, still):
    """Counted from the outside in."""
    assert still_on_stack(stack(*taken), stack(*now)) == still


def test_deep_stack():
    """Only the inner part of a very deep stack is kept."""
    deep = [f"f{number}" for number in range(80)]
    assert still_on_stack(stack(*deep[:70]), stack(*deep[10:])) == 70


def test_user_frames():
    """The user's own; of an installed application its own."""
    assert [f.function for f in user_frames(stack("a", SQLA, "b"))] == ["b", "a"]
    shop = f"{LIBRARY}/shop/orders.py:take"
    assert [f.function for f in user_frames(stack(shop, SQLA))] == ["take"]
    assert still_on_stack(stack(shop, SQLA), stack(shop)) == 1
