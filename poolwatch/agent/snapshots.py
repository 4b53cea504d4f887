"""LedgerSource: snapshots of this process, taken from its ledger."""

from __future__ import annotations

import gc
import os
import platform
from datetime import UTC, datetime

from poolwatch.agent.incident_snapshots import IncidentSnapshots
from poolwatch.agent.leak_search import LeakSearch
from poolwatch.agent.ledger_reading import LedgerReading
from poolwatch.agent.records import PoolRecords, pool_records, with_lent
from poolwatch.agent.standstills import Standstills
from poolwatch.agent.submitters import Submitters
from poolwatch.diagnosis import findings
from poolwatch.diagnosis.common import by_severity
from poolwatch.ledger.ledger import Ledger
from poolwatch.ledger.settings import process_name
from poolwatch.model import Finding, Process, Snapshot
from poolwatch.runtime.gc_pause import undisturbed
from poolwatch.runtime.program import parent, program
from poolwatch.version import VERSION

_STARTED = datetime.now(UTC).isoformat(timespec="microseconds")
"""Tells two containers of one pod apart: same host, same pid, same second."""


class LedgerSource:
    """Takes snapshots of the ledger of this process."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._leak_search = LeakSearch()
        self._submitters = Submitters()
        self._standstills = Standstills()
        self.incident_snapshots = IncidentSnapshots()

    def forget(self) -> None:
        """Drop cached searches: in a forked child, or when no pool is left."""
        self._leak_search = LeakSearch()
        self._standstills = Standstills()

    def snapshot(self) -> Snapshot:
        """Return the current snapshot; queries no database and blocks no thread."""
        return Snapshot((self.process(),))

    def process(self, *, search: bool = True) -> Process:
        """Return the record of this process.

        Without ``search`` only cached search results are used. The application's own
        threads, above all an event loop's, must not wait for a search.
        """
        leak_search = self._leak_search
        process = undisturbed(lambda: self._process(leak_search, search))
        if leak_search.found_garbage and gc.isenabled():
            leak_search.found_garbage = False
            gc.collect(1)
        return process

    def awaits_confirmation(self) -> bool:
        """Whether the last snapshot found a leak that the next one must confirm."""
        return self._leak_search.awaits_confirmation()

    def _process(self, leak_search: LeakSearch, search: bool) -> Process:
        test_run = self._ledger.test_run
        reading = LedgerReading(test_run)
        ledgers = list(self._ledger.pools.values())
        for pool in ledgers:
            reading.read(pool, self._ledger.numbers)
        reading.leave_out_outer_waits()
        reading.read_closed(ledgers)
        if search:
            leak_search.search(reading)
        else:
            reading.verify()
        reading.submitters = self._submitters.find(reading.requests())
        leak_search.attach_cached(reading)
        reading.follow_users()
        standstill = self._standstills.read(reading, search=search)
        pools = [
            pool_records(
                reading,
                p,
                leak_search.is_confirmed,
                standstill.blocked,
                read_code=search,
            )
            for p in reading.pools
        ]
        pools = with_lent(reading, pools)
        holds = [each.hold for pool in pools for each in pool.evidence.holds]
        waits = [each.wait for pool in pools for each in pool.evidence.waits]
        process = Process(
            pid=os.getpid(),
            host=platform.node(),
            program=program() if test_run is None else "pytest",
            name=process_name(),
            python=platform.python_version(),
            poolwatch=VERSION,
            started_at=_STARTED,
            pools=tuple([pool.evidence.stats for pool in pools]),
            holds=tuple(sorted(holds, key=lambda hold: -hold.known_s)),
            waits=tuple(sorted(waits, key=lambda wait: -wait.known_s)),
            sites=tuple([each for pool in pools for each in pool.figures.sites]),
            callers=tuple([each for pool in pools for each in pool.figures.callers]),
            labels=tuple([each for pool in pools for each in pool.figures.labels]),
            parent=parent(),
            test=None if test_run is None else test_run.running(),
            findings=by_severity(
                self._standstills.with_deadlocks(
                    reading, standstill, self._findings(reading, pools)
                )
            ),
            departed=tuple(reading.departed),
            idle=tuple(reading.idle),
            frozen=self.incident_snapshots.marks(),
            left_out=leak_search.left_out + standstill.left_out,
        )
        self.incident_snapshots.add_from_findings(process)
        return process

    def _findings(
        self, reading: LedgerReading, pools: list[PoolRecords]
    ) -> list[Finding]:
        origins = self._ledger.origins.records(reading.now)
        evidence = [pool.evidence for pool in pools]
        return [
            *[
                each
                for pool in evidence
                for each in findings.pool_findings(pool, evidence)
            ],
            *findings.process_findings(origins, evidence),
        ]
