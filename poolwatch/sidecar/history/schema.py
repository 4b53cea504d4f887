"""The tables of the history. People query them: the README documents each column.

Times are seconds since the epoch, UTC; durations are seconds. Ids of processes, pools
and call sites are computed from what identifies them (:func:`identifier`), so many
hosts can write without asking each other.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Double,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    Table,
    Text,
)

VERSION = 1
"""A store with a higher version is refused."""
APPLICATION_ID = 0x706F6F6C
"""``PRAGMA application_id`` of our SQLite files: "pool"."""

metadata = MetaData()


def identifier(*parts: object) -> int:
    """A number that is the same wherever it is computed from the same parts."""
    text = "\0".join(map(str, parts)).encode(errors="backslashreplace")
    digest = blake2b(text, digest_size=8).digest()
    return int.from_bytes(digest, "big", signed=True)


def _id(made_by: str) -> Column[int]:
    return Column(
        "id", BigInteger, primary_key=True, autoincrement=False, comment=made_by
    )


store = Table(
    "poolwatch_store",
    metadata,
    Column("version", Integer, nullable=False),
    Column("made_by", Text, nullable=False),
    Column("made_at", Double, nullable=False),
)
"""One row: the version of the schema."""

processes = Table(
    "processes",
    metadata,
    _id("identifier(host, pid, started_at)"),
    Column("host", Text, nullable=False),
    Column("pid", Integer, nullable=False),
    Column("started_at", Double, nullable=False),
    Column("program", Text, nullable=False),
    Column("name", Text),
    Column("python", Text, nullable=False),
    Column("poolwatch", Text, nullable=False),
    Column("last_seen_at", Double, nullable=False),
    Column("ended_at", Double),
    # when it was found ended; null while it lives, or was not seen to end
)

pools = Table(
    "pools",
    metadata,
    _id("identifier(process_id, pool)"),
    Column("process_id", BigInteger, nullable=False, index=True),
    Column("pool", Text, nullable=False),  # its id in snapshots
    Column("name", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("url", Text),
    Column("size", Integer),
    Column("max_overflow", Integer),
    Column("timeout_s", Double),
)

call_sites = Table(
    "call_sites",
    metadata,
    _id("identifier(file, line, function)"),
    Column("file", Text, nullable=False),
    Column("line", Integer, nullable=False),
    Column("function", Text, nullable=False),
    Column("path", Text),  # relative to the sys.path entry of its module
)


def _distribution(name: str) -> tuple[Column[Any], ...]:
    """Columns of the durations that ended within the minute."""
    return (
        Column(f"{name}_count", Integer, nullable=False),
        Column(f"{name}_s", Double, nullable=False),
        # counts up to each of model.BUCKETS
        Column(f"{name}_up_to", JSON(none_as_null=True)),
    )


def _usage() -> tuple[Column[Any], ...]:
    """Columns of what a call site or a label's value has used within the minute."""
    return (
        Column("count", Integer, nullable=False),
        Column("held_s", Double, nullable=False),  # open holds included
        Column("wait_s", Double, nullable=False),
        Column("wait_caused_s", Double, nullable=False),
        Column("leaked", Integer, nullable=False),
    )


pool_minutes = Table(
    "pool_minutes",
    metadata,
    Column("minute", BigInteger, primary_key=True),  # its first second
    Column("pool_id", BigInteger, primary_key=True),
    Column("looks", Integer, nullable=False),
    Column("out_sum", Integer, nullable=False),  # over the looks: the mean is / looks
    Column("out_max", Integer, nullable=False),
    Column("waiting_sum", Integer, nullable=False),
    Column("waiting_max", Integer, nullable=False),
    Column("checkouts", Integer, nullable=False),
    Column("timeouts", Integer, nullable=False),
    Column("connects", Integer, nullable=False),
    Column("leaked", Integer, nullable=False),
    *_distribution("wait"),
    *_distribution("hold"),
)

site_minutes = Table(
    "site_minutes",
    metadata,
    Column("minute", BigInteger, primary_key=True),
    Column("pool_id", BigInteger, primary_key=True),
    Column("call_site_id", BigInteger, primary_key=True),
    *_usage(),
)

label_minutes = Table(
    "label_minutes",
    metadata,
    Column("minute", BigInteger, primary_key=True),
    Column("pool_id", BigInteger, primary_key=True),
    Column("label", Text, primary_key=True),
    Column("value", Text, primary_key=True),
    *_usage(),
)

incidents = Table(
    "incidents",
    metadata,
    Column("id", Text, primary_key=True),  # random
    Column("process_id", BigInteger, nullable=False, index=True),
    Column("pool", Text),  # the name of the pool
    Column("kind", Text, nullable=False),
    Column("severity", Text, nullable=False),
    Column("started_at", Double, nullable=False, index=True),
    Column("last_seen_at", Double, nullable=False),
    Column("ended_at", Double, index=True),
    Column("process", Text, nullable=False),  # the name of the process
    Column("text", Text, nullable=False),
    Column("proof", Text, nullable=False),
    Column("remedy", Text, nullable=False),
    Column("sites", JSON, nullable=False),  # frames
    Column("identity", BigInteger, nullable=False),
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("at", Double, primary_key=True),
    Column("process_id", BigInteger, primary_key=True),
    Column("newest", Boolean, nullable=False),
    # replaced by the next one of its process; False: kept, as of an incident
    Column("incident_id", Text),
    Column("document", LargeBinary, nullable=False),
    # zlib of the snapshot document with one process, viewers' fields included
)
Index("snapshots_by_process", snapshots.c.process_id, snapshots.c.at)

BY_DAY = (pool_minutes, site_minutes, label_minutes, snapshots)
"""Partitioned by day in PostgreSQL."""
