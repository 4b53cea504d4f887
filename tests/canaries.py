"""A secret at every place of a statement where one can be, in each dialect."""

from __future__ import annotations

CANARY = "hunter2"
HEX = CANARY.encode().hex()
NUMBER = "481516234215"

POSTGRES = (
    f"select '{CANARY}', 'it''s {CANARY}', E'{CANARY}', E'a''{CANARY}'",
    f"select E'a\\'{CANARY}', 'x\\{CANARY}', E'\\\\' || '{CANARY}'",
    f"select U&'{CANARY}', u&'d!0061{CANARY}' uescape '!', N'{CANARY}'",
    f"select B'{NUMBER}', x'{HEX}', bytea '\\x{HEX}', 0x{NUMBER}, {NUMBER}::int8",
    f"select $${CANARY}$$, $t1$ ' {CANARY} $$ $t1$, $é${CANARY}$é$, $$ {CANARY}",
    f"select 'a'\n'{CANARY}', date'{CANARY}', interval '{CANARY}'",
    f"select 1 -- {CANARY}, it's {CANARY}\r, '{CANARY}'\n, '{CANARY}'",
    f"select /* {CANARY} /* '{CANARY} */ {CANARY} */ '{CANARY}' /* {CANARY}",
    f"""select '{{"k": "{CANARY}", "n": {NUMBER}}}'::jsonb -> '{CANARY}'""",
    f"select array['{CANARY}', '{NUMBER}'], '{{{CANARY}}}'::text[], a[{NUMBER}:]",
    f"select -{NUMBER}, .{NUMBER}, {NUMBER}.5, 1.{NUMBER}e-3, 1_{NUMBER}, @{NUMBER}",
    f"insert into t (\"it's\") values (default, '{CANARY}', {NUMBER})",
    f"create table t (a text default '{CANARY}', b int default {NUMBER})",
    f"copy t (a, b) from stdin;\n{CANARY}\t{NUMBER}\n\\.\n",
    f"copy t from stdin with (format csv)\n{CANARY},it's {CANARY}\n",
    f"copy t from program 'curl {CANARY}'",
    f"alter role me login password '{CANARY}' valid until 'infinity'",
    f'create user me password "{CANARY}"',
    f"set role none; set password_encryption to {CANARY}, '{CANARY}'",
    f'set local app.token = {CANARY}; set session app.a to "a;{CANARY}"',
    f"/* x */ set time zone {CANARY}; set names {CANARY}",
    f"alter role me in database d set app.token = {CANARY}",
    f"alter system set app.token to {CANARY}",
    f"create function f() returns int set app.token = {CANARY} as $${CANARY}$$",
    f"create user mapping for me server s options (user 'a', password '{CANARY}')",
    f"create subscription s connection 'host=h password={CANARY}' publication p",
    f"select dblink('password={CANARY}'), set_config('a.b', '{CANARY}', true)",
    f"notify channel, '{CANARY}'; comment on table t is '{CANARY}'",
    f"do $do$ begin execute '{CANARY}'; end $do$; prepare transaction '{CANARY}'",
)
OTHERS = (
    f'select "{CANARY}", "a""{CANARY}", "it\'s {CANARY}", "a\\"{CANARY}"',
    f"select `it's`, '{CANARY}', `a``b`, \"{CANARY}\"",
    f"select `a\"b`, '{CANARY}'",
    f"select [it's], '{CANARY}', [a\"b], '{CANARY}'",
    f"select q'[it's {CANARY}]', nq'{{it's {CANARY}}}', Q'!it's {CANARY}!'",
    f"select 1 # it's {CANARY}\n, '{CANARY}'",
    f"select 1--'a\n{CANARY}'",
    f"select 1 -- a\r it's\n, '{CANARY}'",
    f"select /* /* */ 'a */ {CANARY}'",
    f"select /*! '*/' , '{CANARY}' */ 1",
    f"select /* {CANARY} */ _utf8mb4'{CANARY}', N'{CANARY}', 0x{HEX}, X'{HEX}'",
    f"select $$, 'a$$ {CANARY}'",
    f"create user me identified by {CANARY}",
    f"alter user 'me'@'h' identified by '{CANARY}'",
    f"set @token = {CANARY}; set @@session.a = {CANARY}, b = {CANARY}",
    f"set password for me = '{CANARY}'; pragma key = '{CANARY}'",
    f"alter session set app_token = {CANARY}",
)
"""MySQL, SQLite, Oracle and others: what is a name in one is a literal in another."""


def found_in(text: str) -> list[str]:
    """The secrets that a text contains, in part or encoded."""
    secrets = (CANARY[:5], HEX[:8], NUMBER[:10])
    return [each for each in secrets if each in text.lower()]
