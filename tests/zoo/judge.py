"""Compares what poolwatch said with what is true of a case."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field

from zoo.registry import NEVER, Case, place

from poolwatch.errors import NoProcessError
from poolwatch.model import Finding, Frame, Hold, Process, Snapshot

INNOCENT_FOR_S = 1.2
"""How long an innocent is looked at, from its first checkout on, ..."""
EVERY_S = 0.12
"""... and how often."""
PATIENCE_S = 3.5
"""How long a fault may stay unseen, its threshold not counted, ..."""
LOOKS = 25
"""... and in how many looks: on a busy machine they are few and far between."""
STARTING_S = 40.0
"""How long its process may take to its first checkout."""
AFTERWARDS = 2
"""Further looks at a fault: what was found has to stay."""


@dataclass
class Said:
    """One thing that was said, in one or more snapshots."""

    kind: str
    sites: list[str]
    text: str
    proof: str
    remedy: str
    times: int = 1


@dataclass
class Result:
    """What came of one case."""

    name: str
    problems: list[str] = field(default_factory=list)
    said: list[Said] = field(default_factory=list)
    holds: list[str] = field(default_factory=list)
    """Those of the last snapshot, in words."""
    looks: int = 0
    found_after_s: float | None = None
    crash: str | None = None

    @property
    def ok(self) -> bool:
        """Whether the diagnosis was right."""
        return not self.problems and self.crash is None

    def describe(self) -> str:
        """For the one who has to find out why not."""
        lines = [f"{self.name}: after {self.looks} looks", *self.problems]
        if self.crash:
            lines += ["the case itself failed:", self.crash]
        lines.append("what was said:" if self.said else "nothing was said")
        for said in self.said:
            lines.append(f"  {said.kind} at {', '.join(said.sites) or '(no site)'}")
            lines.append(f"    {said.text}")
            lines.append(f"    proof: {said.proof}  (in {said.times} looks)")
            lines.append(f"    remedy: {said.remedy}")
        lines += ["holds at the last look:", *self.holds]
        return "\n".join(lines)

    def to_dict(self) -> dict[str, object]:
        """For the way from a child process."""
        return asdict(self)

    @classmethod
    def from_dict(cls, given: dict[str, object]) -> Result:
        """The other end of that way."""
        said = [Said(**each) for each in given.pop("said")]  # type: ignore[attr-defined]
        return cls(said=said, **given)  # type: ignore[arg-type]


class Judge:
    """Takes the snapshots of one case."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.result = Result(case.name)
        self.main = case.lines(case.marks)
        self.allowed = self.main | case.lines(case.bystanders)
        self.found = False
        self._said: dict[tuple[str, tuple[str, ...]], Said] = {}
        self._most_seen = 0
        self._checkouts = 0
        self._evidence = False
        self._remedies: list[str] = []
        """Those of the findings that could be the main one, in all looks."""

    def watch(self, snapshot: Callable[[], Snapshot]) -> Result:
        """Look until it is clear what is said of the case, and judge it."""
        case = self.case
        lasts = max(INNOCENT_FOR_S, case.lasts) if case.innocent else PATIENCE_S
        if not case.innocent and case.long_after < NEVER:
            lasts += case.long_after
        begun = None
        deadline = time.monotonic() + STARTING_S
        more = AFTERWARDS
        looks_left = LOOKS
        while more and (
            time.monotonic() < deadline
            or (begun is not None and looks_left > 0 and not self._is_shown)
        ):
            with suppress(NoProcessError):  # it has not opened its socket yet
                self.look(snapshot())
            if begun is None and self._checkouts:
                begun = time.monotonic()
                deadline = begun + lasts
            looks_left -= begun is not None
            if self.found and begun is not None:
                if self.result.found_after_s is None:
                    self.result.found_after_s = time.monotonic() - begun
                else:
                    more -= 1
            time.sleep(EVERY_S)
        return self.verdict()

    @property
    def _is_shown(self) -> bool:
        """Whether an innocent has done all that might have been accused."""
        return self.case.innocent and self._most_seen >= self.case.seen

    def look(self, snapshot: Snapshot) -> None:
        """Take in one snapshot."""
        self.result.looks += 1
        self.result.holds = [
            f"  {_words(hold.site)} {hold.verdict}, {hold.held_s:.1f} s, thread "
            f"{hold.thread}, task {hold.task}: {'; '.join(hold.evidence)}"
            for process in snapshot.processes
            for hold in process.holds
        ] + [f"  pid {each.pid}: {each.why}" for each in snapshot.unreachable]
        for process in snapshot.processes:
            self._hear_all(process.findings)
            self._compare_verdicts(process)
            self._most_seen = max(self._most_seen, len(process.holds))
            for pool in process.pools:
                self._checkouts = max(self._checkouts, pool.counters.checkouts)

    def _hear_all(self, findings: tuple[Finding, ...]) -> None:
        covered: dict[str, set[tuple[str, int]]] = {}
        for finding in findings:
            self._hear(finding)
            if finding.kind in self.case.kinds and _lines(finding.sites) & self.main:
                self._remedies.append(finding.remedy)
            covered.setdefault(finding.kind, set()).update(_lines(finding.sites))
        kinds = [kind for kind in self.case.kinds if kind in covered]
        if any(self.main <= covered[kind] for kind in kinds):
            self.found = True

    def _compare_verdicts(self, process: Process) -> None:
        """A hold's verdict has to agree with the findings, and with the truth."""
        leaked = {
            number
            for finding in process.findings
            if finding.kind.startswith("leaked.")
            for number in finding.holds
        }
        for hold in process.holds:
            where = _words(hold.site)
            if (hold.verdict == "leaked") != (hold.id in leaked):
                self._complain(
                    f"{where}: verdict {hold.verdict}, the findings disagree"
                )
            if hold.verdict != "ok" and not _lines_of(hold) & self.allowed:
                proof = "; ".join(hold.evidence)
                self._complain(f"accused: {where} is called {hold.verdict}: {proof}")
            said = " ".join(hold.evidence)
            self._evidence |= self.case.says is not None and self.case.says in said

    def _hear(self, finding: Finding) -> None:
        sites = tuple(_words(site) for site in finding.sites)
        known = self._said.get((finding.kind, sites))
        if known is not None:
            known.times += 1
            return
        self._said[finding.kind, sites] = Said(
            finding.kind, list(sites), finding.text, finding.proof, finding.remedy
        )
        if finding.kind not in (*self.case.kinds, *self.case.also):
            self._complain(f"accused: {finding.kind} is not true here")
            return
        others = _lines(finding.sites) - self.allowed
        if others:
            names = ", ".join(f"{file}:{line}" for file, line in sorted(others))
            self._complain(f"accused: {finding.kind} names {names}")

    def _complain(self, problem: str) -> None:
        if problem not in self.result.problems:
            self.result.problems.append(problem)

    def verdict(self) -> Result:
        """Say whether it was right."""
        case, result = self.case, self.result
        result.said = list(self._said.values())
        if case.kinds and not self.found:
            where = ", ".join(f"{file}:{line}" for file, line in sorted(self.main))
            self._complain(f"missed: {' or '.join(case.kinds)} at {where or 'no site'}")
        if not self._checkouts:
            self._complain("proves nothing: no checkout was seen")
        if self._most_seen < case.seen:
            self._complain(
                f"proves nothing: {self._most_seen} holds seen, not {case.seen}"
            )
        if case.says is not None and not self._evidence:
            self._complain(f"no hold's evidence says {case.says!r}")
        if case.remedy is not None and case.remedy not in " ".join(self._remedies):
            self._complain(f"the remedy does not say {case.remedy!r}")
        return result


def _lines(sites: tuple[Frame, ...]) -> set[tuple[str, int]]:
    return {(place(site.file), site.line) for site in sites}


def _lines_of(hold: Hold) -> set[tuple[str, int]]:
    return _lines((hold.site,) if hold.site else ())


def _words(site: Frame | None) -> str:
    if site is None:
        return "an unknown place"
    return f"{site.file.rpartition('/')[2]}:{site.line} {site.function}"
