"""Call sites of a pool are bounded, and no checkout is lost."""

from __future__ import annotations

from fix_core import Look, null_pool_of

from poolwatch.ledger.site_table import MAX_SITES
from poolwatch.model import OTHER_SITES


def test_many_sites_are_counted_together(instrument):
    """Beyond the bound, call sites are counted as others: no checkout is lost."""
    pool = null_pool_of()
    watch = instrument(pool)
    total = MAX_SITES + 70
    for number in range(total):
        scope = {"pool": pool, "__name__": "generated"}
        exec(f"def f{number}():\n    pool.connect().close()\nf{number}()", scope)
    sites = Look().process.sites
    assert len(sites) == MAX_SITES + 1
    assert sum(site.count for site in sites) == total
    assert {site.site: site.count for site in sites}[OTHER_SITES] == 70
    assert Look().counters(watch).checkouts == total
