"""The filter language, apart from the views."""

import pytest

from poolwatch.tui.state.filtering import parse

KNOWN = {"state", "site", "held", "pid", "pool", "task", "endpoint"}
ROW = {
    "state": ["idle-tx", "idle in transaction"],
    "site": ["/srv/app/pay.py:9", "app/pay.py:9", "pay.py:9", "pay"],
    "held": [42.0],
    "pid": [812, 21737],
    "pool": ["orders"],
    "task": ["nightly export"],
    "endpoint": ["/pay"],
}


class Row:
    def __init__(self, fields=ROW):
        self.fields = fields

    def values(self, name):
        return self.fields.get(name)

    def texts(self):
        return [str(each) for values in self.fields.values() for each in values]


@pytest.mark.parametrize(
    "text",
    [
        "state:idle-tx", "STATE:IDLE", 'state="idle in transaction"', "site=pay.py:9",
        "held>30s", "held:>30s", "held:30s", "held>=42", "held<1m", "held:<1m",
        "pid=812", "pid:21737", "!pid:8", "pool!=audit", "!pool=audit",
        'task="nightly export"', '"nightly export"', "nosuch|orders",
        "pool:audit|pool:orders", "pool:audit | held>1s", "endpoint:/pay", "export",
        "held>", "pool:", "|", '"', '"nightly', "!!export", "waited>3s", "!waited>3s",
    ],
)  # fmt: skip
def test_what_matches(text):
    found = parse(text, KNOWN | {"waited"})
    assert found.error is None
    assert found(Row())


@pytest.mark.parametrize(
    "text",
    [
        "state=idle", "site=pay.py", "held>42", "held<30s", "held:50s", "pid:81",
        "pool:audit", "pool!=orders", "!export", "nosuch|audit", "held>1s pool:audit",
        '"export nightly"', "pool>3",
    ],
)  # fmt: skip
def test_what_does_not_match(text):
    found = parse(text, KNOWN)
    assert found.error is None
    assert not found(Row())


def test_an_unknown_field_names_the_known_ones_and_hides_nothing():
    found = parse("pol:orders held>30s", KNOWN)
    assert found.error == (
        "no field 'pol'; there are pool, endpoint, held, pid, site, state, task"
    )
    assert found(Row())
    assert len(found.tests) == 1


def test_a_duration_that_is_none_says_so():
    found = parse("held>soon", KNOWN)
    assert found.error == (
        "held: 'soon' is no number and no duration such as 30s, 5m, 200ms"
    )


def test_text_that_looks_like_a_time_is_text():
    assert parse("03:12", KNOWN).error is None
    assert parse('"lock:tuple"', KNOWN).error is None
