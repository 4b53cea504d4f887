import pytest
from drawn import selection
from fakes import (
    finding,
    frame,
    hold,
    pool,
    process,
    server_row,
    server_status,
    snapshot,
)

from poolwatch.tui.state.filtering import parse
from poolwatch.tui.state.rows import build, by_harm
from poolwatch.tui.state.trees import Trees
from poolwatch.tui.views import named

LOCKED = server_row("active", wait_event="Lock:transactionid", blocked_by=(10,))
IDLE = server_row("idle in transaction", state_age_s=40.0)


def built(*processes):
    seen = snapshot(*processes)
    return build(seen, Trees(seen))


def words(*processes):
    return {row.key[:3]: row.verdict for row in built(*processes)}


def test_every_verdict_has_its_word():
    holds = (
        hold("blocker", backend_pid=10, server=IDLE),
        hold("blocked", backend_pid=11, server=LOCKED),
        hold("leaked", verdict="leaked"),
        hold("idle", verdict="long", backend_pid=12, server=IDLE),
        hold("long", verdict="long"),
        hold("fresh", backend_pid=13, server=IDLE),
    )
    assert list(words(process(*holds)).values()) == [
        "ROOT 1",
        "BLOCKED",
        "LEAKED",
        "IDLE-TX",
        "LONG",
        "ok",
    ]


def test_a_finding_makes_an_idle_transaction_one():
    found = (finding("idle_in_transaction", holds=("h1",)),)
    one = process(hold("h1", backend_pid=1, server=IDLE), findings=found)
    assert words(one) == {(8812, "h1", "web-1"): "IDLE-TX"}


def test_a_finding_makes_a_ghost_whatever_else_it_is():
    found = (finding("ghost", holds=("h1",)),)
    one = process(hold("h1", verdict="leaked"), hold("h2"), findings=found)
    assert list(words(one).values()) == ["GHOST", "ok"]


def test_blocking_is_seen_across_processes_of_one_server():
    one = process(hold("a", backend_pid=10, server=IDLE), pid=1)
    two = process(hold("b", backend_pid=11, server=LOCKED), pid=2)
    assert words(one, two) == {
        (1, "a", "web-1"): "ROOT 1",
        (2, "b", "web-1"): "BLOCKED",
    }


def test_the_same_pid_on_another_server_is_not_accused():
    elsewhere = (server_status(address="other:5432"),)
    one = process(hold("a", backend_pid=10, server=IDLE), pid=1, servers=elsewhere)
    two = process(hold("b", backend_pid=11, server=LOCKED), pid=2)
    assert words(one, two) == {(1, "a", "web-1"): "ok", (2, "b", "web-1"): "BLOCKED"}


def test_harm_comes_first_and_equals_keep_their_order():
    holds = [hold(f"h{n}", held_s=5.0) for n in (10, 9, 2)]
    holds.append(hold("z", held_s=1.0, verdict="leaked"))
    for turned in (holds, holds[::-1]):
        rows = sorted(built(process(*turned)), key=by_harm)
        assert [row.key[1] for row in rows] == ["z", "h2", "h9", "h10"]


@pytest.mark.parametrize(
    ("by", "first"), [("held", "old"), ("call site", "a"), ("pool", "p")]
)
def test_other_orders(board, by, first):
    holds = (
        hold("old", held_s=99.0, pool="zz"),
        hold("a", site=frame("/a/a.py:1"), pool="zz"),
        hold("p", pool="aa", site=frame("/z/z.py:1")),
    )
    pools = (pool("aa"), pool("zz"))
    b = board(snapshot(process(*holds, pools=pools)))
    named("holds").state(b).sort = by
    assert selection(b).shown[0].key[1] == first
    named("holds").state(b).reverse = True
    assert selection(b).shown[-1].key[1] == first


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("", "h1 h2 h3"),
        ("state:idle-tx", "h2"),
        ("state:nope", ""),
        ("verdict:leaked", "h1"),
        ("!verdict:leaked", "h2 h3"),
        ("held:>30s", "h1 h2"),
        ("held:<1m", "h3"),
        ("endpoint:/pay", "h3"),
        ("task:export", "h2"),
        ("thread:worker", "h1 h3"),
        ("pid:4242", "h2"),
        ("app:orders-api", "h1 h2 h3"),
        ("REPO.PY", "h1 h2 h3"),
        ("export held:>30s", "h2"),
        ("[/b]", ""),
    ],
)
def test_filter(board, text, shown):
    holds = (
        hold("h1", verdict="leaked", held_s=300.0),
        hold(
            "h2", task="export-1", thread=None, held_s=70, backend_pid=4242, server=IDLE
        ),
        hold("h3", labels={"endpoint": "/pay"}),
    )
    b = board(snapshot(process(*holds)))
    b.filter = parse(text)
    kept = sorted(row.key[1] for row in selection(b).shown)
    assert " ".join(kept) == shown


def test_a_filter_that_makes_no_sense_says_so():
    assert "30s" in (parse("held:>soon").error or "")
    assert parse("held:>soon").tests == ()
