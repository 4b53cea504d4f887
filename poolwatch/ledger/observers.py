"""Those who want to know of holds as they begin and end. Mostly there is none, or one.

An observer is any object that has some of these methods. Each is called in the thread
where it happens, on the way of a checkout or of a return, and in the middle of a
garbage collection: it must be quick and may not fail. (If it fails all the same, the
hooks of that pool are switched off.)

``taken(book, hold)``                   a connection was lent
``ended(book, hold, now, collected)``   it has come back, by itself or by the collector
``lost(lender, hold, now)``             it was the collector: told before it leaves the
                                        account of whoever took it; the lender has the
                                        books, or will have

Besides there may be viewers, who come and go as they like: for them all is kept that
can be seen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import Protocol

    from poolwatch.ledger.checkout import Account, Checkout, Lender
    from poolwatch.ledger.pool import PoolBook
    from poolwatch.stacks.holder import Holder

    class Naming(Protocol):
        """An observer that says beforehand who answers for what one thread takes.

        A hold that is taken in no event loop, and not as a long one, may then be noted
        by the adapter, without a call of ``taken``. Of how a hold ends it wants to know
        only if it was lost.
        """

        holder: Holder | None
        """The thread, once it is known."""
        current: Account | None
        """Who it is."""
        rising: Sequence[object]
        """As long as there are any, ``answering`` must be asked for it."""

        def answering(self) -> Account | None:
            """Who it is, in any case."""

        def lost(self, lender: Lender, hold: Checkout, now: float) -> None:
            """See above."""

        def taken(self, book: PoolBook, hold: Checkout) -> None:
            """See above."""

        def meet_shared(self, name: str, kind: str) -> None:
            """Be told that a pool with one connection for all was used."""

    Taken = Callable[[PoolBook, Checkout], None]
    Ended = Callable[[PoolBook, Checkout, float, bool], None]
    Lost = Callable[[Lender, Checkout, float], None]


MOST_UNSEEN = 2048
"""Times of a pool's holds that may queue up while nobody can look."""


class Observers:
    """Changed while other threads call: what they call is replaced, never changed."""

    __slots__ = ("_all", "ended", "lost", "naming", "taken", "watched")

    def __init__(self) -> None:
        self._all: tuple[object, ...] = ()
        self.watched = True
        """Whether viewers may come and look: see admit_viewers."""
        self.taken: Taken | None = None
        """Tells all that want to know it; None if nobody does."""
        self.ended: Ended | None = None
        self.lost: Lost | None = None
        self.naming: Naming | None = None
        """The only one that there is, if it is such a one, and nobody can look."""

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self._all)

    def admit_viewers(self, admitted: bool) -> None:
        """Let viewers come and look, or nobody."""
        self.watched = admitted
        self._find_naming()

    def append(self, observer: object) -> None:
        """Tell one more."""
        self._tell(*self._all, observer)

    def remove(self, observer: object) -> None:
        """Tell it no more."""
        self._tell(*[each for each in self._all if each is not observer])

    def _tell(self, *observers: object) -> None:
        self._all = observers
        names = "taken", "ended", "lost"
        self.taken, self.ended, self.lost = map(self._as_one, names)
        self._find_naming()

    def _find_naming(self) -> None:
        alone = len(self._all) == 1 and not self.watched
        only = self._all[0] if alone else None
        self.naming = only if hasattr(only, "rising") else None  # type: ignore[assignment]

    def _as_one(self, name: str) -> Callable[..., None] | None:
        calls = [getattr(each, name) for each in self._all if hasattr(each, name)]
        if len(calls) <= 1:
            return calls[0] if calls else None

        def tell(*args: Any) -> None:
            for call in calls:
                call(*args)

        return tell
