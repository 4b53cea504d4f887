"""Which lines of the application make pools, for which database, and how many.

A pool that is made inside a function is made again at every call. One look at the pools
that are alive does not show that; what was counted when they were made does.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable, Mapping, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from poolwatch.frame import Frame
    from poolwatch.made import Made

LATEST = 8
"""Makings whose times are kept."""
_MOST_PLACES = 128
"""Places kept apart; pools made at further ones are not counted."""
_ATOMS = (str, bytes, int, float, bool, type(None))


class _Making:
    __slots__ = ("alive", "latest", "made", "most_alive", "site", "url")

    def __init__(self, site: Frame, url: str) -> None:
        self.site = site
        self.url = url
        self.made = 0
        self.alive: dict[str, None] = {}
        self.most_alive = 0
        self.latest: deque[float] = deque(maxlen=LATEST)


class Makings:
    """Those of one process. Written without a lock: see the ledger."""

    def __init__(self) -> None:
        self._by_key: dict[Hashable, _Making] = {}
        self._by_pool: dict[str, _Making] = {}

    def note(
        self, stack: Sequence[Frame], url: str | None, purpose: Hashable, pool_id: str
    ) -> None:
        """Count a pool that is made now by the code of that stack, innermost first.

        ``purpose`` tells pools for one URL apart that are meant to be several. Code of
        a library alone, and a database that is not known, are nobody's mistake.
        """
        from poolwatch.onstack import taking_frames  # once for a pool

        frames = taking_frames(stack)
        if url is None or not frames:
            return
        key = frames[0], url, purpose
        making = self._by_key.get(key)
        if making is None:
            if len(self._by_key) >= _MOST_PLACES:
                return
            making = _Making(frames[0], url)
            self._by_key[key] = making
        making.made += 1
        making.alive[pool_id] = None
        making.most_alive = max(making.most_alive, len(making.alive))
        making.latest.append(monotonic())
        self._by_pool[pool_id] = making

    def gone(self, pool_id: str) -> None:
        """Take note that a pool is watched no more: mostly it was collected."""
        making = self._by_pool.pop(pool_id, None)
        if making is not None:
            making.alive.pop(pool_id, None)

    def made(self, now: float) -> list[Made]:
        """All that is known, for who looks now."""
        from poolwatch.made import Made  # whoever looks has it

        return [
            Made(
                each.site,
                each.url,
                each.made,
                (*list(each.alive),),
                each.most_alive,
                tuple([now - at for at in list(each.latest)]),
            )
            for each in list(self._by_key.values())
        ]


def fingerprint(arguments: Any) -> int:
    """Tells connection arguments apart, without keeping what may be secret in them.

    Objects are left out: a new one that is made for each pool tells nothing.
    """
    return hash(repr(_atoms(arguments)))


def _atoms(value: Any) -> Any:
    if isinstance(value, Mapping):
        pairs = [(str(key), _atoms(each)) for key, each in value.items()]
        return sorted(pairs, key=lambda pair: pair[0])
    if isinstance(value, list | tuple):
        return [_atoms(each) for each in value]
    return value if type(value) in _ATOMS else None
