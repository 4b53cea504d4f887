"""One module per pool library; each turns what its pool does into ledger entries."""
