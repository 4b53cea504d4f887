"""The help texts of the markers, for ``pytest --markers``."""

ALLOW = 'allow_pool_leaks(n=1, reason="..."): the test leaks exactly n connections'
LIMIT = (
    'limit_pool(checkouts=1, hold="250 ms"): the most connections that the test may '
    "hold at once, and the longest time for each"
)
MARKERS = frozenset({"allow_pool_leaks", "limit_pool"})
