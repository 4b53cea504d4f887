"""Every kind of pool, one after the other."""

import pytest
from adapters.kinds import every_kind


@pytest.fixture(params=every_kind(), ids=lambda kind: kind.name)
def kind(request):
    """A kind of pool, as it is driven in this test."""
    driver = request.param()
    yield driver
    driver.end()
