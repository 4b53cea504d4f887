"""What is recorded of each pool: open holds and waits, and statistics of ended ones."""
