"""The records of the libraries: what they name is there, and they load no library."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

from poolwatch.adapters.base import LibraryPools
from poolwatch.adapters.registry import unsupported_message
from poolwatch.diagnosis.pool_options import options_of
from poolwatch.runtime import libraries
from poolwatch.runtime.libraries import LibraryInfo, PoolOptions


def test_a_record_does_not_load_its_library():
    """A viewer reads the records on a machine where no library is installed."""
    code = (
        "import sys; from poolwatch.runtime.libraries import by_package; "
        "print(*sorted(set(by_package()) & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout == "\n"


@pytest.mark.parametrize(
    "library", libraries.with_pools().values(), ids=lambda each: each.module
)
def test_the_adapter_and_the_classes_are_there(library):
    import_module(library.module)
    module, _, name = library.adapter.partition(":")
    adapter = getattr(import_module(f"poolwatch.adapters.{module}"), name)
    assert issubclass(adapter, LibraryPools)
    for module, name in library.pool_classes:
        assert isinstance(getattr(import_module(module), name), type)
    for kind in library.options.keys() - {"*", "django"}:  # an alias has no class
        assert hasattr(import_module(library.module), kind.rpartition(".")[2])


@pytest.mark.parametrize("driver", libraries.drivers(), ids=lambda each: each.name)
def test_a_driver_that_connects_has_a_timeout(driver):
    if driver.connect_module is not None:
        assert callable(import_module(driver.connect_module).connect)
        assert driver.connect_timeout


def test_the_options_of_a_kind():
    assert options_of("asyncpg.Pool").size == "max_size"
    assert options_of("NullConnectionPool").keep_options is None
    assert options_of("SimpleConnectionPool").size == "maxconn"
    for kind in ("QueuePool", "AsyncAdaptedQueuePool", "Mine"):
        assert options_of(kind).made_by == "create_engine"


def test_one_more_library(monkeypatch):
    """Its record alone has everybody know it."""
    options = PoolOptions("aiomysql.create_pool", "maxsize", None, "", None)
    mysql = LibraryInfo(
        packages=("aiomysql",),
        module="aiomysql",
        adapter="aiomysql_pool.pools:Pools",
        instrumentable="an aiomysql pool",
        options={"aiomysql.Pool": options},
    )
    there = (*libraries.libraries(), mysql)
    for module in ("poolwatch.runtime.libraries", "poolwatch.diagnosis.pool_options"):
        monkeypatch.setattr(f"{module}.libraries", lambda: there)
    assert options_of("aiomysql.Pool") is options
    assert "an asyncpg pool or an aiomysql pool, or no argument" in unsupported_message(
        object()
    )
