"""No literal of a statement leaves the process, wherever it was cut off."""

from __future__ import annotations

import random

import pytest
from canaries import OTHERS, POSTGRES, found_in

from poolwatch.text.masking import MAX_LENGTH, mask_literals


@pytest.mark.parametrize(
    ("sql", "masked"),
    [
        ("select * from t where id = 42", "select * from t where id = ?"),
        ("select 'it''s', E'a', U&'b', x'ff', B'01'", "select ?, ?, ?, ?, ?"),
        ("select $$a$$, $tag$ 'x' $$ $tag$", "select ?, ?"),
        ("select %(name)s, :name, $1, @name", "select %(name)s, :name, $1, @name"),
        ('select "Col1" from "t-2"', 'select "Col1" from "t-2"'),
        ("select a1, t2.b3 from t4", "select a1, t2.b3 from t4"),
        ("select 1.5e-10, .5, 0xff, 1_000, -7", "select ?, ?, ?, ?, -?"),
        ("select x::int4, arr[1:4111]", "select x::int4, arr[?:?]"),
        ("select @4111", "select @?"),
        ("select 1 -- user 'bob' 42\n, 2", "select ? -- ?\n, ?"),
        ("/* 'bob' /* 42 */ x */ select 1", "/* ? */ select ?"),
        (
            "select 1 /*call_site='a%2Fb.py%3A42',tenant='x'*/",
            "select ? /*call_site='a%2Fb.py%3A42'*/",
        ),
        ("select 1 /*call_site='x y'*/", "select ? /* ? */"),
        ("set a.b = word; update t set c = d", "set a.b = ?; update t set c = d"),
        ("create table t (password text)", "create table t (password text)"),
        ('alter table "a;b" set schema c', 'alter table "a;b" set schema c'),
        ("copy t from stdin", "copy t from stdin"),
        ("copy t from stdin;\n1\t2", "copy t from stdin …"),
        ("select 'a\\'secret', x", "select ? …"),
        ("", ""),
    ],
)
def test_masked(sql, masked):
    """Literals become a question mark; names, keywords and placeholders stay."""
    assert mask_literals(sql) == masked


@pytest.mark.parametrize(
    ("sql", "masked"),
    [
        ('select "a", `b`, [c d]', "select ?, `b`, [c d]"),
        ("select `it's`, 1", "select ? …"),
        ("select q'[it's]', 1", "select ? …"),
        ("select 1 # a\n, 2 -- it's\n, 3", "select ? -- ?\n, ? ? …"),
    ],
)
def test_masked_in_other_dialects(sql, masked):
    """In MySQL and SQLite double quotes are perhaps those of a literal."""
    assert mask_literals(sql, postgres=False) == masked


@pytest.mark.parametrize("sql", [*POSTGRES, *OTHERS])
def test_no_secret_survives_any_cut(sql):
    """A literal is masked in the statement, and in every prefix of it."""
    for end in range(len(sql) + 1):
        for postgres in {sql in POSTGRES, False}:
            masked = mask_literals(sql[:end], postgres=postgres)
            assert not found_in(masked), (sql[:end], masked)


def test_random_statements():
    """Random mixtures of everything: no random literal is left."""
    chance = random.Random(7)
    pieces = [
        "select", " ", ",", "(", ")", "\n", '"n"', "tbl.col", "%(p)s", ":p", "$1",
        "::text", "/* note */", "-- note\n", "'a''b'", "$$x$$", "E'q'", "=", "--",
    ]  # fmt: skip
    for _ in range(3000):
        secrets = [f"zq{chance.randrange(10**6):06}zq" for _ in range(3)]
        numbers = [str(chance.randrange(10**6, 10**7)) for _ in range(2)]
        parts = chance.choices(pieces, k=chance.randrange(1, 15))
        for secret in secrets:
            literal = chance.choice(["'{}'", "$${}$$", "E'{}'", "'x''{}'"])
            parts.insert(
                chance.randrange(len(parts) + 1), f" {literal.format(secret)} "
            )
        for number in numbers:
            parts.insert(chance.randrange(len(parts) + 1), f" {number} ")
        sql = "".join(parts)
        masked = mask_literals(sql[: chance.randrange(len(sql) // 2, len(sql) + 1)])
        if "--" not in sql:  # a comment ends a line: what was a literal may be none
            assert "zq" not in masked, sql
        assert not any(number in masked for number in numbers), sql


def test_a_megabyte():
    """A huge statement is cut before it is read."""
    assert len(mask_literals("select " + "x, " * 500_000)) <= MAX_LENGTH + 2
    assert mask_literals("select '" + "s" * 2_000_000 + "'") == "select ? …"
    assert mask_literals("(" * 1_000_000).endswith("…")
