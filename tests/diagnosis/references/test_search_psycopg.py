"""Who has a psycopg connection in hand: its pool, and those who work for it, do not."""

from __future__ import annotations

import asyncio
import threading

import pytest
from fix_psycopg_pool import LONG
from fix_references import Taken
from psycopg_pool import AsyncConnectionPool, AsyncNullConnectionPool

from poolwatch.agent.instrument import agent

SHELF = []


@pytest.fixture
def search(instrument):
    """Instruments a pool; gives what tells who keeps its only hold."""

    def watch(pool):
        book = agent.ledger.pools[instrument(pool)._pool_id]

        def look():
            (hold,) = book.holds.values()
            taken = Taken()
            taken.holds, taken.takers = (
                {"h1": hold.proxy},
                {"h1": hold.stack_key_and_task()},
            )
            return taken.look().paths.get("h1")

        return look

    return watch


def test_a_worker_of_the_pool_does_not_use_a_connection(search, pools):
    """It remembers the last one it has reset: that is nobody's use of it."""
    was_reset = threading.Event()
    pool = pools(max_size=1, num_workers=1, reset=lambda _: was_reset.set())
    look = search(pool)
    with pool.connection() as connection:
        first = connection
    assert was_reset.wait(LONG)

    def take():
        SHELF.append(pool.getconn())

    thread = threading.Thread(target=take, name="taker")
    thread.start()
    thread.join()
    assert [first] == SHELF
    del first, connection
    try:
        found = look()
        assert (found.kind, found.in_hand) == ("global", False)
        assert found.steps[0].startswith("global 'SHELF'")
    finally:
        pool.putconn(SHELF.pop())


def test_a_cursor_in_hand_is_a_connection_in_hand(search, pools):
    """Who has only a cursor left still uses the connection behind it."""
    pool = pools()
    look = search(pool)
    cursors, go, done = [], threading.Event(), threading.Event()

    def take():
        cursors.append(pool.getconn().cursor())

    def use():
        cursor = cursors.pop()
        go.set()
        done.wait(LONG)
        pool.putconn(cursor.connection)

    taker = threading.Thread(target=take)
    taker.start()
    taker.join()
    user = threading.Thread(target=use, name="user")
    user.start()
    assert go.wait(LONG)
    found = look()
    done.set()
    user.join()
    assert (found.owner, found.in_hand, found.near) == ("user", True, True)
    assert found.steps[0].startswith("local 'cursor'")


def test_an_open_with_block_has_it_in_hand(search, pools):
    """The pool's own generator stands between the block and the connection."""
    pool = pools()
    look = search(pool)
    scope = pool.connection()
    scope.__enter__()
    found = look()
    assert (found.in_hand, found.near) == (True, True)
    assert found.steps[0].startswith("local 'scope'")
    scope.__exit__(None, None, None)


@pytest.mark.parametrize("kind", [AsyncConnectionPool, AsyncNullConnectionPool])
async def test_a_task_that_ended_with_a_connection(search, async_pool, kind):
    """A global keeps it, and nobody who runs: the pool's own tasks neither."""
    was_reset = asyncio.Event()

    async def reset(_):
        was_reset.set()

    async with async_pool(kind, max_size=1, reset=reset, num_workers=1) as pool:
        look = search(pool)
        if kind is AsyncConnectionPool:
            async with pool.connection():
                pass
            await was_reset.wait()

        async def take():
            SHELF.append(await pool.getconn())

        await asyncio.create_task(take(), name="taker")
        try:
            found = look()
            assert (found.kind, found.in_hand) == ("global", False)
        finally:
            await pool.putconn(SHELF.pop())


async def test_wait_for_asks_in_a_task_of_its_own(search, async_pool):
    """On 3.11 that is done at once: the one that awaits it has the connection."""
    async with async_pool() as pool:
        look = search(pool)

        async def take():
            connection = await asyncio.wait_for(pool.getconn(), LONG)
            found = look()
            await pool.putconn(connection)
            return found

        found = await asyncio.create_task(take(), name="taker")
        assert (found.owner, found.in_hand) == ("taker", True)
