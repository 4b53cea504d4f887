"""Two programs in three processes, with everything that a dashboard has to show.

A leak, a long hold, a lock chain over both programs with a foreign root, an open and
idle transaction, an empty pool with waits, and a process that becomes silent.
"""

from __future__ import annotations

from datetime import UTC, datetime

from fakes import (
    finding,
    frame,
    hold,
    pool,
    process,
    server_row,
    server_status,
    snapshot,
    times,
    wait,
)

from poolwatch.model import Backend, Process, SiteStats, Snapshot, Unreachable

AT = datetime(2026, 3, 2, 9, 3, 24, tzinfo=UTC).timestamp()
"""The moment, in seconds since the epoch."""
STARTED = "2026-03-02T04:51:12Z"
REPORT = frame("/srv/shop/report/run.py:13", "report_rows")
CART = frame("/srv/shop/cart.py:14", "add_to_cart")
PAY = frame("/srv/billing/pay/service.py:130", "pay")
EXPORT = frame("/srv/billing/export.py:88", "export_invoice")
HTTP = frame("/srv/billing/export.py:93", "export_invoice")
LIBRARY = frame("/usr/lib/python3.12/site-packages/sqlalchemy/pool/base.py:712", "get")
SOURCES = {
    "/srv/shop/report/run.py": {
        12: "def report_rows(region: str):",
        13: "    connection = engine.connect()",
        14: "    return connection.execute(rows, {'region': region})",
    },
    "/srv/billing/export.py": {
        87: "    engine = billing_engine()",
        88: "    with engine.begin() as connection:",
        89: "        connection.execute(lock_invoice, {'id': id})",
        92: "        connection.execute(mark_sent, {'id': id})",
        93: "        requests.post(TAX_OFFICE, data=invoice.xml())",
    },
}
"""By file and line: the source code that a detail shows."""


def lines(file: str) -> tuple[str, ...]:
    """The lines of a source file; none if it is not known."""
    known = SOURCES.get(file, {})
    return tuple(known.get(n, "") for n in range(1, max(known, default=0) + 1))


def moment(after_s: float, *, silent: bool = False) -> Snapshot:
    """A reading; at first nothing is wrong but the leak, later the pool is empty."""
    shop, worker, billing = _shop(after_s), _worker(after_s), _billing(after_s)
    if not silent:
        return snapshot(shop, worker, billing)
    why = "it is stopped (state T) and does not answer"
    since = datetime.fromtimestamp(AT - 8, UTC).isoformat()
    lost = Unreachable(worker.pid, why, since, True, worker.host, STARTED)
    return snapshot(shop, billing, unreachable=(lost,))


def _shop(after_s: float) -> Process:
    """Its pool becomes empty: a leak, and sessions wait behind billing."""
    leak = hold(
        "h1",
        site=REPORT,
        stack=(REPORT, LIBRARY),
        held_s=120 + after_s,
        thread="report-2",
        labels={"endpoint": "GET /report"},
        backend_pid=31853,
        statement="SELECT sum(amount) FROM orders WHERE region = ?",
        verdict="leaked",
        evidence=("the thread report-2 has ended",),
        server=server_row(
            "idle", state_age_s=119 + after_s, query="SELECT sum(amount)"
        ),
    )
    waiting_s = after_s - 20
    carts = [
        hold(
            f"h{n + 2}",
            site=CART,
            held_s=waiting_s - n,
            thread=f"cart-{n + 3}",
            labels={"endpoint": "POST /cart"},
            backend_pid=pid,
            statement="UPDATE invoice SET total = ? WHERE id = ?",
            server=server_row(
                "active",
                state_age_s=waiting_s - n,
                xact_age_s=waiting_s - n,
                wait_event="Lock:transactionid",
                query="UPDATE invoice SET total = ? WHERE id = ?",
                blocked_by=(blocker,),
            ),
        )
        for n, (pid, blocker) in enumerate(((21999, 21737), (27069, 26844)))
        if waiting_s > n
    ]
    waits = [
        wait(f"w{n}", site=CART, waited_s=waiting_s - 5 * n, thread=f"cart-{n + 5}")
        for n in range(1, 4)
        if waiting_s > 5 * n
    ]
    text = f"pool 'orders' is empty: 4 of 4 out, {len(waits)} wait"
    empty = finding(text=text, waits=tuple(each.id for each in waits), sites=(CART,))
    blocked = finding(
        "lock_wait",
        text="shop/cart.py:14 is blocked by billing/export.py:88",
        proof="pg_blocking_pids(21999) = 21737",
        remedy="Commit before the HTTP request.",
        holds=tuple(each.id for each in carts),
        sites=(CART,),
    )
    lost = finding(
        "leaked.orphaned",
        text="report/run.py:13 checked out 1 connection in a thread that has ended",
        proof="the thread report-2 has ended",
        remedy="Check out the connection in a with block.",
        holds=("h1",),
        sites=(REPORT,),
    )
    done = hold("h4", site=CART, held_s=0.2, thread="cart-1", backend_pid=22161)
    held = [leak, *carts, done]
    out, full = len(held), len(waits) > 0
    return process(
        *held,
        pid=9120,
        started_at=STARTED,
        pools=(
            pool(
                size=2,
                max_overflow=2,
                checked_out=out,
                idle=4 - out,
                waiting=len(waits),
                hold_s=times(0.8),
            ),
        ),
        waits=tuple(waits),
        findings=(*[empty] * full, *[blocked] * bool(carts), lost),
        sites=(
            SiteStats("orders", CART, 4120, 1.9, times(0.8), times(0.02), 0),
            SiteStats("orders", REPORT, 31, 1.0, times(0.3), times(0.02), 1),
        ),
        servers=(server_status(identity="7512-1", others=(_metabase(after_s),)),),
    )


def _metabase(after_s: float) -> Backend:
    """A session of another program, which blocks one of ours."""
    row = server_row(
        "idle in transaction",
        state_age_s=700 + after_s,
        xact_age_s=700 + after_s,
        wait_event="Client:ClientRead",
        query="SELECT * FROM ledger FOR UPDATE",
        xmin_age=311,
    )
    return Backend(26746, 900.0, 51244, "metabase", row, "10.0.9.2", 0, "shop", "bi")


def _worker(after_s: float) -> Process:
    """It has a long hold, and is silent in the end."""
    slow = hold(
        "h1",
        site=REPORT,
        held_s=40 + after_s,
        thread="report-7",
        labels={"endpoint": "GET /report"},
        backend_pid=22150,
        verdict="long",
        now=(REPORT,),
        server=server_row("active", state_age_s=40 + after_s, query="SELECT * FROM t"),
    )
    return process(
        slow,
        pid=9121,
        started_at=STARTED,
        pools=(pool(size=2, max_overflow=2, idle=1),),
        servers=(server_status(identity="7512-1"),),
    )


def _billing(after_s: float) -> Process:
    """One request holds up the shop, and one waits behind somebody else's session."""
    age_s = after_s - 10
    export = hold(
        "h1",
        pool="billing",
        site=EXPORT,
        stack=(EXPORT, LIBRARY),
        now=(HTTP,),
        held_s=age_s,
        thread="export-17",
        labels={"endpoint": "POST /invoice"},
        backend_pid=21737,
        statement="UPDATE invoice SET sent = ? WHERE id = ?",
        in_sql_s=0.038,
        in_transaction_idle_s=age_s - 0.1,
        verdict="long",
        evidence=(f"held {age_s:.0f}s, longer than 30s",),
        server=server_row(
            "idle in transaction",
            state_age_s=age_s,
            xact_age_s=age_s,
            wait_event="Client:ClientRead",
            query="UPDATE invoice SET sent = ? WHERE id = ?",
        ),
    )
    pay = hold(
        "h2",
        pool="billing",
        site=PAY,
        held_s=after_s + 2,
        thread="checkout-1",
        labels={"endpoint": "POST /pay"},
        backend_pid=26844,
        server=server_row(
            "active",
            state_age_s=after_s + 2,
            xact_age_s=after_s + 2,
            wait_event="Lock:transactionid",
            query="UPDATE ledger SET paid = ? WHERE id = ?",
            blocked_by=(26746,),
        ),
    )
    idle = finding(
        "idle_in_transaction",
        severity="warning",
        pool="billing",
        text=f"billing/export.py:88 is idle in a transaction for {age_s:.0f}s",
        proof="the server says so",
        remedy="Commit before the HTTP request.",
        holds=("h1",),
        sites=(EXPORT,),
    )
    held = [export, pay] if age_s > 0 else [pay]
    return process(
        *held,
        pid=8812,
        name="billing",
        started_at=STARTED,
        pools=(pool("billing", size=12, checked_out=len(held), idle=2),),
        findings=(idle,) if age_s > 0 else (),
        sites=(SiteStats("billing", EXPORT, 311, 0.9, times(0.8), times(0.01), 0),),
        servers=(server_status("billing", identity="7512-1"),),
    )
