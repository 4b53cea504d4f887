"""The snapshot document: JSON, schema 1.

A document is ``{"schema": 1, "processes": [...], "unreachable": [...]}``; the members
of each object are the fields of the record of the same meaning in
:mod:`poolwatch.model`, by the same names. Durations are seconds, unknown is null.

Fields marked VIEWERS_ONLY there are left out, unless both ends are poolwatch's own.
"""

from __future__ import annotations

import json
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from typing import Any, TypeVar

from poolwatch.errors import UnreachableError
from poolwatch.model import SCHEMA, Snapshot

T = TypeVar("T")


def to_document(snapshot: Snapshot, *, viewers: bool = False) -> dict[str, Any]:
    """Return the JSON-able document of a snapshot.

    ``viewers`` adds the fields that only poolwatch's own programs use.
    """
    return {"schema": SCHEMA, **to_object(snapshot, viewers=viewers)}


def to_json(snapshot: Snapshot, *, viewers: bool = False) -> str:
    """Return the document as text, on one line."""
    return json.dumps(to_document(snapshot, viewers=viewers), ensure_ascii=False)


def from_json(text: str | bytes) -> Snapshot:
    """Read a document; raises UnreachableError with one sentence if it is none."""
    return from_object(Snapshot, _document(text))


def list_to_json(records: Sequence[object], member: str) -> str:
    """Return a document with a list of records, viewers' fields included."""
    items = [to_object(record, viewers=True) for record in records]
    return json.dumps({"schema": SCHEMA, member: items}, ensure_ascii=False)


def list_from_json(kind: type[T], text: str | bytes, member: str) -> list[T]:
    """Read the records under one member of a document; raises UnreachableError."""
    items = _document(text).get(member)
    if not isinstance(items, list):
        raise UnreachableError(f"the document has no list of {member}")
    return [from_object(kind, item) for item in items]


def _document(text: str | bytes) -> dict[str, Any]:
    try:
        document = json.loads(text)
    except ValueError:
        raise UnreachableError("the answer is not a whole JSON document") from None
    if not isinstance(document, dict) or "schema" not in document:
        raise UnreachableError("the answer is not a poolwatch document")
    if document["schema"] != SCHEMA:
        raise UnreachableError(
            f"the document has schema {document['schema']!r}, this poolwatch reads "
            f"schema {SCHEMA}: use the same version of poolwatch on both sides"
        )
    return document


def from_object(kind: type[T], value: object) -> T:
    """Build a record from its JSON object; raises UnreachableError if it is none."""
    try:
        return typing.cast(T, _decode(kind, value))
    except (TypeError, ValueError, KeyError) as error:
        raise UnreachableError(f"the document is damaged: {error}") from None


def to_object(record: Any, *, viewers: bool = False) -> Any:
    """Return the JSON-able form of a record, a sequence or a plain value."""
    if is_dataclass(record) and not isinstance(record, type):
        return {
            name: to_object(getattr(record, name), viewers=viewers)
            for name, private in _members(type(record))
            if viewers or not private
        }
    if isinstance(record, tuple | list):
        return [to_object(item, viewers=viewers) for item in record]
    if isinstance(record, Mapping):
        return dict(record)
    if isinstance(record, float):
        return round(record, 6)  # microseconds: the clock gives no more
    return record


@cache
def _members(kind: type) -> tuple[tuple[str, bool], ...]:
    return tuple((f.name, bool(f.metadata.get("viewers_only"))) for f in fields(kind))


@cache
def _hints(kind: type) -> tuple[tuple[str, Any, bool], ...]:
    hints = typing.get_type_hints(kind)
    return tuple((f.name, hints[f.name], f.default is MISSING) for f in fields(kind))


def _decode(kind: Any, value: Any) -> Any:
    origin = typing.get_origin(kind)
    if isinstance(kind, type) and is_dataclass(kind):
        return _decode_record(kind, value)
    if origin is not None:
        return _decode_generic(kind, origin, value)
    if kind is float and type(value) is int:
        return float(value)
    if not isinstance(value, kind):
        raise TypeError(f"expected {kind.__name__}, found {value!r:.40}")
    return value


def _decode_record(kind: type, value: Any) -> Any:
    if not isinstance(value, dict):
        raise TypeError(f"expected an object for {kind.__name__}")
    return kind(
        **{
            name: _decode(hint, value[name])
            for name, hint, required in _hints(kind)
            if required or name in value
        }
    )


def _decode_generic(kind: Any, origin: Any, value: Any) -> Any:
    item = typing.get_args(kind)[0]
    if origin is tuple:
        if not isinstance(value, list):
            raise TypeError("expected a list")
        return tuple(_decode(item, each) for each in value)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _decode(item, value)
    if origin is typing.Literal:
        return value
    return {str(key): str(each) for key, each in dict(value).items()}
