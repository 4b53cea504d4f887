"""The ledger: open holds and waits of each pool, and statistics of ended ones."""
