"""What a few tests need when their setup is done, and before they are called.

Most runs have none: pytest asks here only once there is one. Not during the setup,
because plugins beneath count on theirs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest


class BeforeCall:
    """One thing to do for the running test, if there is."""

    def __init__(self, plugins: pytest.PytestPluginManager) -> None:
        self._plugins = plugins
        self._wanted: tuple[pytest.Item, Callable[[], Any]] | None = None

    def do(self, item: pytest.Item, what: Callable[[], Any]) -> None:
        """Call ``what`` then; what it raises fails the test."""
        self._wanted = item, what
        if not self._plugins.is_registered(self):
            self._plugins.register(self)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_call(self, item: pytest.Item) -> None:
        """Do it, once."""
        wanted, self._wanted = self._wanted, None
        if wanted is not None and wanted[0] is item:
            wanted[1]()
