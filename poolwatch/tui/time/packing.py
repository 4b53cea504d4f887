"""Packs snapshots for the memory of the dashboard.

Pickles never leave the process. Beside the document of :mod:`poolwatch.protocol`, which
is for others, they take a quarter of the time, and objects that processes share, such
as the sessions of one server, are packed once.
"""

from __future__ import annotations

import io
import pickle
import zlib
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from operator import attrgetter
from types import MappingProxyType
from typing import Any

from poolwatch.model import Snapshot

_LEVEL = 3
"""Of zlib. Level 6 saves an eighth of the memory and takes twice as long."""


class _Reducers(dict[type, Callable[[Any], Any]]):
    """How each type of record is pickled: by its constructor and its values.

    The default asks a Python function of every record for its state.
    """

    def __missing__(self, kind: type) -> Callable[[Any], Any]:
        if not is_dataclass(kind):
            raise KeyError(kind)
        names = [field.name for field in fields(kind)]
        get = attrgetter(*names)

        def reduce(record: Any) -> tuple[type, tuple[Any, ...]]:
            values = get(record)
            return kind, values if len(names) > 1 else (values,)

        self[kind] = reduce
        return reduce


_reducers = _Reducers({MappingProxyType: lambda mapping: (dict, (dict(mapping),))})


def pack(snapshot: Snapshot) -> bytes:
    """Return a snapshot as compressed bytes."""
    buffer = io.BytesIO()
    pickler = pickle.Pickler(buffer, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = _reducers
    pickler.dump(snapshot)
    return zlib.compress(buffer.getbuffer(), _LEVEL)


def unpack(packed: bytes) -> Snapshot:
    """Return the snapshot that pack() was given."""
    snapshot: Snapshot = pickle.loads(zlib.decompress(packed))  # noqa: S301 - our own
    return snapshot
