"""The hold profile: exact by call site, divided among the stacks that were seen."""

from __future__ import annotations

import fakes
import pytest

from poolwatch.diagnosis.hold_profile import Group, HoldProfile, hold_profile
from poolwatch.model import NO_SAMPLES, SiteStats, Snapshot, Unreachable

SITE = fakes.frame("/srv/db.py:8", "take")
CART = fakes.frame("/srv/cart.py:20", "cart")
MAIL = fakes.frame("/srv/mail.py:30", "mail")


def held(seconds, caller=None, site=SITE):
    return SiteStats(
        "orders", site, 1, 0.0, NO_SAMPLES, NO_SAMPLES, 0, caller=caller, held_s=seconds
    )


def hold(name, seconds, caller=CART):
    stack = (fakes.frame("/lib/pool.py:1", "checkout"), SITE, caller)
    return fakes.hold(name, site=SITE, stack=stack, held_s=seconds, caller=caller)


def process(*holds, sites, callers=(), **changes):
    pools = (fakes.pool("orders"),)
    values = {"sites": sites, "callers": callers, "pools": pools, "servers": ()}
    return fakes.process(*holds, name="shop", **{**values, **changes})


def looks(*processes):
    return [(float(at), Snapshot((each,))) for at, each in enumerate(processes)]


def seconds(profile):
    """By the functions of each stack."""
    return {
        " ".join(frame.function for frame in stack): value
        for stack, value in profile.items()
    }


def test_a_hold_that_is_open_has_what_it_grew_by():
    """The time before the first look does not count, nor do inner library frames."""
    found = hold_profile(
        looks(
            process(hold("h1", 40.0), sites=(held(50.0),)),
            process(hold("h1", 41.0), hold("h2", 0.5, MAIL), sites=(held(51.5),)),
        )
    )
    assert seconds(found) == {
        "shop pool orders cart take": 1.0,
        "shop pool orders mail take": 0.5,
    }


def test_what_was_not_seen_stands_under_the_call_site():
    """A hold that was seen and has ended stands for one interval at most."""
    found = hold_profile(
        looks(
            process(sites=(held(0.0),)),
            process(hold("h1", 0.25), sites=(held(1.0),)),
            process(sites=(held(4.0),)),
        )
    )
    assert seconds(found) == {
        "shop pool orders cart take": 1.25,
        "shop pool orders take": 2.75,
    }


def test_the_statistics_of_callers_count():
    found = hold_profile(
        looks(
            process(sites=(held(10.0),), callers=(held(6.0, CART), held(4.0, MAIL))),
            process(
                hold("h1", 0.5),
                sites=(held(14.0),),
                callers=(held(7.0, CART), held(7.0, MAIL)),
            ),
        )
    )
    assert seconds(found) == pytest.approx(
        {
            "shop pool orders cart take": 1.0,
            "shop pool orders mail take": 3.0,
        }
    )


@pytest.mark.parametrize(
    "callers",
    [
        pytest.param((held(9.0, CART), held(5.0, MAIL)), id="just told apart"),
        pytest.param((held(14.0, MAIL),), id="not the caller of the hold"),
    ],
)
def test_callers_that_do_not_add_up_do_not_count(callers):
    found = hold_profile(
        looks(
            process(sites=(held(10.0),)),
            process(hold("h1", 0.5), sites=(held(14.0),), callers=callers),
        )
    )
    assert sum(found.values()) == pytest.approx(4.0)
    assert seconds(found)["shop pool orders cart take"] == pytest.approx(0.5)


def test_the_sum_is_the_growth_whatever_was_seen():
    """Also if the holds were seen a little later than their call site was counted."""
    found = hold_profile(
        looks(
            process(hold("h1", 1.0), hold("h2", 1.0), sites=(held(7.0),)),
            process(hold("h1", 2.1), hold("h2", 2.1, MAIL), sites=(held(9.0),)),
            process(hold("h1", 3.0), sites=(held(10.5),)),
        )
    )
    assert sum(found.values()) == pytest.approx(3.5)


def test_processes_that_come_go_and_are_silent():
    """A new one counts from its beginning; one that was silent from its first look."""
    old = {"pid": 1, "started_at": "2026-11-29T08:00:00Z"}
    silent = Unreachable(2, "it is stopped")
    started = looks(
        process(hold("h1", 5.0), sites=(held(5.0),), **old),
        process(hold("h1", 6.0), sites=(held(6.0),), **old),
    )
    started[0] = 0.0, Snapshot(started[0][1].processes, (silent,))
    came = process(hold("h9", 0.75, MAIL), sites=(held(0.75),), pid=3)
    woke = process(hold("h1", 90.0), sites=(held(90.0),), pid=2)
    started[1] = 1.0, Snapshot((*started[1][1].processes, came, woke))
    started.append((2.0, Snapshot((process(sites=(held(1.0),), pid=3),))))
    assert seconds(hold_profile(started)) == {
        "shop pool orders cart take": 1.0,
        "shop pool orders mail take": 1.0,
    }


def test_a_hold_from_before_a_stretch_of_history():
    """Of a hold that is older only the time since the beginning counts."""
    found = HoldProfile()
    group = Group("shop", "orders", SITE)
    found.count(group, 60.0)
    holds = hold("h1", 600.0), hold("h2", 30.0, MAIL)
    found.see(30.0, process(*holds, sites=()), unseen_s=30.0)
    assert seconds(found.by_stack()) == {
        "shop pool orders cart take": 30.0,
        "shop pool orders mail take": 30.0,
    }
