"""One folder per library: it turns what a pool does into ledger entries.

The package of each folder has a ``LIBRARY``, the record that other rooms read: see
poolwatch.runtime.libraries.
"""
