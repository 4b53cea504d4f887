"""A plugin for other projects' tests: every pool is instrumented.

``foreign_suites.py`` runs them with and without it.
"""

from __future__ import annotations

import logging

import poolwatch
from poolwatch.agent.instrument import agent

poolwatch.instrument()
logging.getLogger("poolwatch").disabled = True  # tests count the lines of all loggers


def pytest_unconfigure():
    """Say that it was there."""
    print(f"\npoolwatch has seen {next(agent.ledger._pool_numbers) - 1} pools")
