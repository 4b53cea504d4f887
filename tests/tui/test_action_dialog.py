"""The dialogue before an action: No has the focus, and only what was seen is told."""

from __future__ import annotations

import threading

import pytest
from fakes import FakeSource, frame, hold, process, server_row, server_status, snapshot
from helpers import until_async

from poolwatch.diagnosis.sessions import Session
from poolwatch.errors import RefusedError
from poolwatch.model import Backend, Connection
from poolwatch.model.actions import Chosen, Outcome, Target, Waiter
from poolwatch.tui.action_dialog import ActionDialog
from poolwatch.tui.app import Dashboard
from poolwatch.tui.state.chosen import chosen

SIZES = [(80, 24), (160, 45)]
BAD = "[/b] \x1b]0;owned\x07\x1b[2J\x9b31m\u202e 漢字 \ud800"
SEEN = (10.0, 10.5)


class FakeActions:
    """Answers with what it was given; a cleared ``free`` makes it hang."""

    def __init__(self, target, outcome=None):
        self.target = target
        self.outcome = outcome or Outcome(True, "backend 21737 is gone")
        self.acted = []
        self.free = threading.Event()
        self.free.set()

    def look(self, chosen):
        self.free.wait(60)
        if isinstance(self.target, Exception):
            raise self.target
        return self.target

    def act(self, action, target):
        self.free.wait(60)
        assert target is self.target
        self.acted.append(action)
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return self.outcome


def a_chosen(**changes):
    values = {
        "pid": 21737,
        "server": "1/2.5",
        "connection": Connection(1.0, 0.1, None, 4711),
        "seen": SEEN,
        "process": "billing, pid 8812 on web-1",
        "site": "billing/export.py:88 from shop/cart.py:51",
        "sites": {7: "shop/cart.py:14", 8: "shop/cart.py:14", 9: "pay.py:3"},
    }
    return Chosen(**{**values, **changes})


def a_target(state="idle in transaction", chosen=None, **changes):
    row = server_row(state, state_age_s=175.0, xact_age_s=176.0, query="update t set a")
    values = {
        "chosen": chosen or a_chosen(),
        "started": "1.5",
        "xact_started": "1.5",
        "query_started": "1.5",
        "statement_hash": "1",
        "row": row,
        "user": "billing",
        "database": "shop",
        "application": "billing-api",
        "client": "10.0.3.7",
        "frees": tuple(Waiter(pid, "app", "2.5") for pid in (7, 8, 9, 10)),
        "behind_others": (Waiter(11, None, None),),
    }
    return Target(**{**values, **changes})


def text_of(app):
    return "\n".join(strip.text for strip in app.screen._compositor.render_strips())


class Opened:
    """A dashboard with the dialogue open."""

    def __init__(self, actions, action="terminate", size=(80, 24), chosen=None):
        self.results = []
        self.app = Dashboard(FakeSource(snapshot(process(hold()))), actions=actions)
        self.dialog = ActionDialog(action, chosen or a_chosen(), actions)
        self._running = self.app.run_test(size=size)

    async def __aenter__(self):
        self.pilot = await self._running.__aenter__()
        self.app.push_screen(self.dialog, self.results.append)
        return self

    async def __aexit__(self, *error):
        await self._running.__aexit__(*error)

    async def shows(self, *words):
        """Wait for words; where the lines are wrapped does not matter."""
        for word in words:
            await until_async(lambda w=word: w in " ".join(self.text().split()))

    def text(self):
        """The lines of the dialogue, without what is beside it."""
        if not self.app.screen.query("#dialog"):
            return ""
        box = self.app.screen.query_one("#dialog").region
        strips = self.app.screen._compositor.render_strips()[box.y : box.bottom]
        return "\n".join(strip.crop(box.x, box.right).text for strip in strips)


@pytest.mark.parametrize("size", SIZES)
async def test_it_says_what_will_happen_and_y_does_it(size):
    actions = FakeActions(a_target())
    async with Opened(actions, size=size) as opened:
        await opened.shows(
            "END THE SESSION of backend 21737",
            "billing, pid 8812 on web-1",
            "billing/export.py:88 from shop/cart.py:51",
            "role billing, database shop at 10.0.3.7",
            "idle in transaction for 2m55s, transaction open for 2m56s",
            "update t set a",
            "transaction of 2m56s is rolled back",
            "4 sessions behind it can go on: 2 at shop/cart.py:14",
            "1 more session behind it waits for others too",
            "Yes, end it",
        )
        assert opened.app.focused.id == "no"
        await opened.pilot.press("y")
        await opened.shows("✓ backend 21737 is gone", "Close")
        assert actions.acted == ["terminate"]
        await opened.pilot.press("enter")
        await until_async(lambda: opened.results)
        assert opened.results == [actions.outcome]


@pytest.mark.parametrize("key", ["enter", "n", "escape", "q", "ctrl+c"])
async def test_anything_but_y_leaves_without_doing_it(key):
    actions = FakeActions(a_target())
    async with Opened(actions) as opened:
        await opened.shows("Yes, end it")
        await opened.pilot.press(key)
        await until_async(lambda: opened.results)
        assert opened.results == [None]
        assert opened.app.is_running
    assert actions.acted == []


async def test_the_mouse_and_the_arrows_answer_too():
    actions = FakeActions(a_target())
    async with Opened(actions) as opened:
        await opened.shows("Yes, end it")
        await opened.pilot.click("#no")
        await until_async(lambda: opened.results)
        assert actions.acted == []
        for press in (lambda: opened.pilot.click("#yes"), None):
            opened.app.push_screen(
                ActionDialog("terminate", a_chosen(), actions), opened.results.append
            )
            await opened.shows("Yes, end it")
            if press is None:
                await opened.pilot.press("right", "enter")
            else:
                await press()
            await opened.shows("is gone")
            await opened.pilot.press("escape")
    assert actions.acted == ["terminate"] * 2


async def test_before_the_answer_of_postgresql_nothing_can_be_confirmed():
    actions = FakeActions(a_target())
    actions.free.clear()
    async with Opened(actions) as opened:
        await opened.shows("reading the backend")
        await opened.pilot.press("y")
        actions.free.set()
        await opened.shows("Yes, end it")
        assert actions.acted == []
        actions.free.clear()
        await opened.pilot.press("y", "y", "y", "escape")
        await opened.shows("watching what follows")
        actions.free.set()
        await opened.shows("is gone")
        assert actions.acted == ["terminate"]


async def test_an_answer_after_the_dialogue_was_closed_is_dropped():
    actions = FakeActions(a_target())
    actions.free.clear()
    async with Opened(actions) as opened:
        await opened.shows("reading the backend")
        await opened.pilot.press("escape")
        await until_async(lambda: opened.results == [None])
        actions.free.set()
        await until_async(lambda: opened.dialog._state == "question")
        await opened.pilot.press("y")
    assert actions.acted == []


async def test_a_cancel_of_an_idle_backend_offers_to_end_the_session():
    actions = FakeActions(a_target())
    async with Opened(actions, "cancel") as opened:
        await opened.shows("runs no statement (idle in transaction)", "K end the")
        assert "Yes" not in opened.text()
        await opened.pilot.press("y")
        assert actions.acted == []
        await opened.pilot.press("K")
        await opened.shows("END THE SESSION", "Yes, end it")
        await opened.pilot.press("y")
        await opened.shows("is gone")
    assert actions.acted == ["terminate"]


async def test_a_cancel_names_only_the_statement():
    row = server_row("active", xact_age_s=5.0, blocked_by=(9,))
    actions = FakeActions(a_target(row=row, frees=(), behind_others=()))
    actions.outcome = Outcome(False, "backend 21737 has not reacted yet")
    async with Opened(actions, "cancel") as opened:
        await opened.shows(
            "Only the running statement ends",
            "It waits itself, behind pid 9 (pay.py:3)",
            "Nobody waits for its locks.",
        )
        await opened.pilot.press("y")
        await opened.shows("◆ backend 21737 has not reacted yet", "K end the")
    assert actions.acted == ["cancel"]


@pytest.mark.parametrize("error", [RefusedError("backend 1 has ended"), OSError("x")])
async def test_a_refusal_is_a_sentence(error):
    async with Opened(FakeActions(error)) as opened:
        known = isinstance(error, RefusedError)
        await opened.shows(str(error) if known else "it failed: OSError", "Close")
        assert "Yes" not in opened.text()
        await opened.pilot.press("y", "enter")
        await until_async(lambda: opened.results)
        assert not opened.results[0].done


async def test_hostile_text_is_harmless():
    bad = a_chosen(process=BAD, site=BAD, sites={7: BAD})
    row = server_row(BAD, query=BAD * 2000, wait_event=BAD, xact_age_s=1.0)
    target = a_target(
        chosen=bad, row=row, user=BAD, database=BAD, application=BAD, client=BAD
    )
    actions = FakeActions(target, Outcome(True, BAD * 99))
    async with Opened(actions, chosen=bad) as opened:
        await opened.shows("Yes, end it", "owned")
        shown = text_of(opened.app)
        await opened.pilot.press("y")
        await opened.shows("✓ ")
        shown += text_of(opened.app)
    assert not set(shown) & set("\x1b\x07\x9b\u202e\ud800")


async def test_a_question_that_cannot_be_read_cannot_be_answered_with_yes():
    actions = FakeActions(a_target())
    async with Opened(actions) as opened:
        await opened.shows("Yes, end it")
        await opened.pilot.resize_terminal(10, 3)
        await opened.pilot.press("y")
        await opened.pilot.resize_terminal(40, 12)
        await opened.shows("too small")
        await opened.pilot.press("y")
        assert actions.acted == []
        await opened.pilot.resize_terminal(160, 45)
        await opened.shows("Yes, end it")


def test_what_the_user_has_selected():
    status = server_status(identity="1/2.5")
    facts = Connection(60.0, 0.1, "db:5432", 4711)
    row = server_row("idle in transaction", xact_age_s=3.0)
    root = hold("a", backend_pid=7, connection=facts, server=row)
    other = hold("b", backend_pid=8, server=row, site=frame("/srv/pay.py:3"))
    shop = process(root, other, servers=(status,))
    found = chosen(Session(7, shop, hold=root), status, snapshot(shop), SEEN)
    assert (found.pid, found.server, found.connection) == (7, "1/2.5", facts)
    assert (found.xact_age_s, found.seen) == (3.0, SEEN)
    assert found.process == "orders-api, pid 8812 on web-1"
    assert found.site == "orders/repo.py:55"
    assert found.sites == {7: "orders/repo.py:55", 8: "srv/pay.py:3"}
    stranger = Backend(99, 5.0, -1, "psql", row)
    found = chosen(Session(99, backend=stranger), status, snapshot(shop), SEEN)
    assert found.connection == Connection(5.0, 0.0, None, -1)
    assert (found.process, found.site) == (None, None)
    for session, server, moment, why in (
        (Session(7, shop, hold=root), None, None, "not proven"),
        (Session(8, shop, hold=other), status, None, "nothing proves"),
        (Session(0), status, None, "no backend"),
        (Session(5), status, None, "nothing proves"),
        (Session(7, shop, hold=root), status, "2026-01-01T00:00:00Z", "the present"),
    ):
        with pytest.raises(RefusedError, match=why):
            chosen(session, server, snapshot(shop, at=moment), SEEN)
