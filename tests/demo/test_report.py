"""The table of ``poolwatch demo --headless``, from hand-made snapshots."""

from __future__ import annotations

from poolwatch.demo.faults import Fault
from poolwatch.demo.report import sightings, table
from poolwatch.model import (
    NO_SAMPLES,
    Finding,
    Frame,
    Hold,
    Process,
    SiteStats,
    Snapshot,
)

HERE = Frame("/app/reports.py", 14, "_connection")
FAULT = Fault("never-closed", HERE.file, HERE.line, HERE.function)


def hold(site: Frame) -> Hold:
    return Hold(
        id="h1", pool="p1", backend_pid=7, held_s=12.0, waited_s=0.0, thread="web-1",
        task=None, labels={}, site=site, stack=(site,), now=(), statement=None,
        in_sql_s=None, in_transaction_idle_s=None, verdict="leaked", evidence=(),
        server=None,
    )  # fmt: skip


def snapshot(*holds: Hold, leaked: int = 0, findings: tuple[Finding, ...] = ()):
    stats = SiteStats("p1", HERE, 1, 0.5, NO_SAMPLES, NO_SAMPLES, leaked)
    process = Process(
        pid=1, host="h", program="shop", name=None, python="3.11", poolwatch="0.1",
        started_at="2026-01-01T00:00:00Z", pools=(), holds=holds, waits=(),
        sites=(stats,), findings=findings,
    )  # fmt: skip
    return Snapshot((process,))


def test_a_hold_at_the_planted_line_is_a_sighting() -> None:
    """Seen means: a hold whose call site is that very line."""
    (row,) = sightings(snapshot(hold(HERE)), {"never-closed": FAULT})
    assert row.seen
    assert "reports.py:14" in table([row])
    assert "1 hold, 12s" in table([row])


def test_another_line_of_the_same_file_is_none() -> None:
    """One line off is not seen."""
    (row,) = sightings(
        snapshot(hold(Frame(HERE.file, 15, "f"))), {"never-closed": FAULT}
    )
    assert not row.seen
    assert "not seen" in table([row])


def test_a_connection_that_was_collected_is_seen_by_its_site() -> None:
    """A dropped connection is no hold any more; its line still counts it."""
    (row,) = sightings(snapshot(leaked=3), {"dropped": FAULT})
    assert row.seen
    assert "3 collected" in table([row])


def test_findings_are_named_by_hold_or_by_site() -> None:
    """Each kind once, whether it names the hold or the line."""

    def finding(kind: str, **where: tuple[object, ...]) -> Finding:
        return Finding(kind, "critical", "p1", "", "", "", **where)  # type: ignore[arg-type]

    findings = (
        finding("leaked.abandoned", holds=("h1",)),
        finding("long_hold", sites=(HERE,)),
        finding("long_hold", sites=(HERE,)),
        finding("nested", holds=("h2",)),
    )
    (row,) = sightings(snapshot(hold(HERE), findings=findings), {"never-closed": FAULT})
    assert row.findings == ("leaked.abandoned", "long_hold")
