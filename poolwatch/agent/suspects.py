"""The search for what refers to suspicious holds, and the memory of its answers.

A search costs computing time, so an answer is used again for some seconds, and all
searches together take at most 2 % of a core.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass

from poolwatch.agent.moment import Moment
from poolwatch.diagnosis.evidence import HoldEvidence, Search
from poolwatch.diagnosis.verdicts import proven_unused
from poolwatch.ledger.checkout import Checkout
from poolwatch.model import Frame
from poolwatch.stacks.compare import taking_frames

_TRUST_S = 3.0
"""How long an answer is used again, at least."""
_SHARE = 50
"""An answer is also used for this many times what its search cost: 2 % of a core."""
_LONGEST_S = 1.0
"""A first search that took longer is not repeated: a viewer waits for the answer."""
_AGREED = 2
"""Snapshots in a row that must find a hold leaked before it is logged and counted."""

Suspicious = Mapping[Checkout, HoldEvidence]


@dataclass(slots=True)
class _Answer:
    """The last search for one hold, and what earlier ones have found."""

    at: float
    """``time.monotonic()`` of the snapshot."""
    search: Search
    now: tuple[Frame, ...]
    """The holder's stack at that time."""
    times_unused: int = 0
    """Snapshots in a row whose searches have found the hold unused."""
    confirmed: bool = False
    """A second search of the same snapshot has found it unused, too."""


class Suspects:
    """Decides when to search, searches, and remembers the answers."""

    def __init__(self) -> None:
        self._answers: dict[int, _Answer] = {}
        """By the number of the hold."""
        self._trust_s = _TRUST_S
        self._searched_at = float("-inf")
        self._cost_s = 0.0
        """Computing time of the last snapshot's searches."""
        self.left_out: tuple[str, ...] = ()
        """What the last search has not looked at, in words."""
        self.lets_collect = False
        """A search has found no reference to some connection: it is garbage that an
        idle process does not collect. A young collection, which is what a snapshot
        holds back, mostly proves it."""

    def search(self, moment: Moment) -> None:
        """Search for the suspects, if the last answers are too old; verify the holds.

        A hold that is found unused is searched for once more: its connection may have
        moved from one frame to another, and both were read at a moment when it was not
        there.
        """
        suspects = moment.suspects()
        numbers = {hold.number for hold in suspects}
        for number in list(self._answers):
            if number not in numbers:
                self._answers.pop(number, None)
        if self._is_due(suspects, moment.now):
            self._cost_s = 0.0
            self._ask(moment, suspects)
            unused = {h: s for h, s in moment.suspects().items() if self._unused(h, s)}
            twice = bool(unused) and time.monotonic() - moment.now < _LONGEST_S
            if twice:
                self._ask(moment, unused)
            for hold, seen in moment.suspects().items():
                answer = self._answers.get(hold.number)
                if answer is not None:
                    unused_now = self._unused(hold, seen)
                    answer.times_unused = answer.times_unused + 1 if unused_now else 0
                    answer.confirmed = twice
            self._trust_s = max(_TRUST_S, _SHARE * self._cost_s)
            self._searched_at = moment.now
            self.lets_collect = any(
                answer.search.path is None and answer.search.unseen is None
                for answer in self._answers.values()
            )
        moment.verify()

    def use_answers(self, moment: Moment) -> None:
        """Give the holds of a moment the answers that are still valid.

        That a connection is unused takes two searches to prove. It is proven for the
        stack of the first search, until a second snapshot has confirmed it.
        """
        for hold, seen in moment.holds():
            answer = self._answers.get(hold.number)
            if answer is None or seen.stack_changed:
                continue
            certain = (
                answer.times_unused >= _AGREED
                or not self._unused(hold, seen)
                or (answer.confirmed and _same_place(seen.now, answer.now))
            )
            search = answer.search
            seen.search = search if certain else search._replace(pending=True)

    def is_confirmed(self, hold: Checkout) -> bool:
        """Whether two snapshots in a row have found a hold leaked."""
        answer = self._answers.get(hold.number)
        return answer is not None and answer.times_unused >= _AGREED

    def awaits_confirmation(self) -> bool:
        """Whether the last snapshot has found a leak that another one must confirm."""
        answers = list(self._answers.values())
        return any(0 < answer.times_unused < _AGREED for answer in answers)

    def _ask(self, moment: Moment, suspects: Suspicious) -> None:
        import poolwatch.diagnosis.references.search  # noqa: F401 - loading it is no part of the cost

        began = time.thread_time()
        found, self.left_out = _search(suspects)
        self._cost_s += time.thread_time() - began
        moment.verify()
        for hold, seen in suspects.items():
            before = self._answers.get(hold.number)
            if seen.stack_changed:
                self._answers.pop(hold.number, None)
            elif hold.number in found:
                times = before.times_unused if before is not None else 0
                search = found[hold.number]
                self._answers[hold.number] = _Answer(
                    moment.now, search, seen.now, times
                )

    def _is_due(self, suspects: Suspicious, now: float) -> bool:
        """Whether to search now: for old answers if the share of a core allows it.

        The search that is to confirm a leak comes at once.
        """
        if any(self._is_to_be_confirmed(hold, seen) for hold, seen in suspects.items()):
            return True
        affordable = now - self._searched_at >= self._trust_s - _TRUST_S
        return affordable and any(
            (answer := self._answers.get(hold.number)) is None
            or now - answer.at > self._trust_s
            for hold in suspects
        )

    def _is_to_be_confirmed(self, hold: Checkout, seen: HoldEvidence) -> bool:
        answer = self._answers.get(hold.number)
        return (
            answer is not None
            and answer.times_unused < _AGREED
            and self._unused(hold, seen)  # perhaps found before it was suspicious
        )

    def _unused(self, hold: Checkout, seen: HoldEvidence) -> bool:
        answer = self._answers.get(hold.number)
        return answer is not None and proven_unused(seen, answer.search)


def _same_place(now: tuple[Frame, ...], before: tuple[Frame, ...]) -> bool:
    """Whether two stacks are equal, apart from libraries and line numbers."""
    if now == before:
        return True
    one, other = taking_frames(before), taking_frames(now)
    return [(f.file, f.function) for f in one] == [(f.file, f.function) for f in other]


def _search(suspects: Suspicious) -> tuple[dict[int, Search], tuple[str, ...]]:
    """The answer for each hold, by its number, and what was left out, in words."""
    from poolwatch.diagnosis.references.hidden import may_hide
    from poolwatch.diagnosis.references.search import find_all  # only for a suspicion

    result = find_all(
        {str(hold.number): hold.proxy for hold in suspects},
        {str(hold.number): hold.taker() for hold in suspects},
    )
    found = {}
    for hold, seen in suspects.items():
        path = result.paths.get(str(hold.number))
        ambient = path is None or path.kind in ("thread-local", "context variable")
        hidden = ambient and may_hide(seen.stack, seen.now)
        found[hold.number] = Search(path, result.unseen, hidden)
    return found, (result.left_out,) if result.left_out else ()
