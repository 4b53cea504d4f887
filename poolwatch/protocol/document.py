"""The snapshot document: JSON, schema 1.

A document is ``{"schema": 1, "processes": [...], "unreachable": [...]}``. The members
of each object are named like the fields of the matching record in
:mod:`poolwatch.model`. Durations are in seconds; unknown values are null. Fields marked
VIEWERS_ONLY are left out, except between poolwatch's own programs. Those marked
IN_HISTORY are there if the snapshot is of a history.

The text is built record by record. A single call of ``json.dumps`` would hold the GIL
of the application until a thousand stacks are encoded. Equal stacks are the same object
in a snapshot, and are encoded once.

Viewers that look every second ask for a compact document: it has each frame and each
stack once, in tables of its own, and numbers in their places. That is a fifth of the
text, and of the time to read it.
"""

from __future__ import annotations

import json
import math
import reprlib
import threading
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from json.encoder import encode_basestring_ascii as _quoted
from operator import attrgetter
from typing import Any, TypeVar

from poolwatch.errors import UnreachableError
from poolwatch.model import SCHEMA, FindingKind, Frame, Snapshot

T = TypeVar("T")
Decoder = Callable[[Any], Any]
_Stack = tuple[Frame, ...]

_MAX_CONTAINERS = 4_000_000
"""Lists and objects of a document: 10,000 holds have a hundredth of it in compact form,
and a quarter otherwise. Each of them takes 60 bytes or more, however short its text."""


def to_json(snapshot: Snapshot, *, viewers: bool = False, compact: bool = False) -> str:
    """Return the document as ASCII text, on one line.

    ``viewers``: add the fields that only poolwatch's own programs use. ``compact``:
    with tables, as from_json() reads them.
    """
    kind = _CompactEncoder if compact else _Encoder
    encoder = kind(viewers=viewers, of_history=snapshot.at is not None)
    members = encoder.record(snapshot)
    return f'{{"schema": {SCHEMA}, {encoder.tables()}{members[1:]}'


def list_to_json(records: Sequence[object], member: str) -> str:
    """Return a document with one list of records, VIEWERS_ONLY fields included."""
    items = _Encoder(viewers=True).value(tuple(records))
    return f'{{"schema": {SCHEMA}, {_quoted(member)}: {items}}}'


def to_object(record: object) -> dict[str, Any]:
    """Return one record, such as an incident, as its document has it."""
    found: dict[str, Any] = json.loads(_Encoder(viewers=False).value(record))
    return found


def to_document(snapshot: Snapshot, *, viewers: bool = False) -> dict[str, Any]:
    """Return the document as dicts, lists, strings and numbers."""
    document: dict[str, Any] = json.loads(to_json(snapshot, viewers=viewers))
    return document


def from_json(text: str | bytes) -> Snapshot:
    """Read a document; raises UnreachableError with one sentence if it is invalid."""
    return from_document(_document(text))


def from_document(document: Mapping[str, Any]) -> Snapshot:
    """Read a document that has been parsed; raises UnreachableError, too."""
    _tables.frames = from_object(_Stack, document.get("frames", []))
    _tables.stacks = from_object(tuple[_Stack, ...], document.get("stacks", []))
    return from_object(Snapshot, document)


def list_from_json(kind: type[T], text: str | bytes, member: str) -> list[T]:
    """Read the records under one member of a document; raises UnreachableError."""
    return list_from_document(kind, _document(text), member)


def list_from_document(
    kind: type[T], document: Mapping[str, Any], member: str
) -> list[T]:
    """Read them from a document that has been parsed; raises UnreachableError, too."""
    items = document.get(member)
    if not isinstance(items, list):
        raise UnreachableError(f"the document has no list of {member}")
    return [from_object(kind, item) for item in items]


def parse(text: str | bytes) -> Any:
    """Parse JSON of unknown origin; raises ValueError if it is none, or too much."""
    brackets = ("[", "{") if isinstance(text, str) else (b"[", b"{")
    if sum(map(text.count, brackets)) > _MAX_CONTAINERS:  # type: ignore[arg-type]
        raise ValueError("too many lists and objects")
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("too deeply nested") from None


def _document(text: str | bytes) -> dict[str, Any]:
    try:
        document = parse(text)
    except ValueError:
        raise UnreachableError("the answer is not a complete JSON document") from None
    if not isinstance(document, dict) or "schema" not in document:
        raise UnreachableError("the answer is not a poolwatch document")
    if document["schema"] != SCHEMA:
        raise UnreachableError(
            f"the document has schema {_short(document['schema'])}, this poolwatch "
            f"reads schema {SCHEMA}: use the same version of poolwatch on both sides"
        )
    return document


def from_object(kind: type[T], value: object) -> T:
    """Read one record; raises UnreachableError with one sentence if it is damaged."""
    try:
        return typing.cast("T", _decoder(typing.cast("Any", kind))(value))
    except (
        AttributeError,
        TypeError,
        ValueError,
        LookupError,
        OverflowError,
        RecursionError,
    ) as error:
        raise UnreachableError(f"the document is damaged: {error}") from None


# -- writing -----------------------------------------------------------------------


class _Encoder:
    """Encodes one document."""

    def __init__(self, *, viewers: bool, of_history: bool = False) -> None:
        self._viewers = viewers
        self._of_history = of_history
        self._known: dict[int, str] = {}
        """JSON of frames and stacks, by ``id()``: the snapshot keeps them alive."""

    def tables(self) -> str:
        """The members that precede the others."""
        return ""

    def value(self, value: Any) -> str:
        write = _WRITERS.get(type(value))
        if write is not None:
            return write(value)
        if type(value) is tuple:
            return self._sequence(value)
        if type(value) is Frame:
            return self._frame(value)
        if is_dataclass(value):
            return self.record(value)
        # labels, and subclasses of str and int such as enum members
        return json.dumps(dict(value) if isinstance(value, Mapping) else value)

    def record(self, record: Any) -> str:
        kind: Any = type(record)
        names, get = _members(kind, self._viewers, self._of_history)
        value = self.value
        pairs = zip(names, get(record), strict=True)
        return "{" + ", ".join([name + value(each) for name, each in pairs]) + "}"

    def _sequence(self, items: tuple[Any, ...]) -> str:
        if not items:
            return "[]"
        text = self._known.get(id(items))
        if text is None:
            if type(items[0]) is not Frame:
                return "[" + ", ".join(map(self.value, items)) + "]"
            text = self._known[id(items)] = self._new_stack(items)
        return text

    def _frame(self, frame: Frame) -> str:
        text = self._known.get(id(frame))
        if text is None:
            text = self._known[id(frame)] = self._new_frame(frame)
        return text

    def _new_stack(self, stack: tuple[Frame, ...]) -> str:
        return "[" + ", ".join(map(self._frame, stack)) + "]"

    def _new_frame(self, frame: Frame) -> str:
        file, line, function = frame
        return (
            f'{{"file": {_quoted(file)}, "line": {line}, '
            f'"function": {_quoted(function)}}}'
        )


class _CompactEncoder(_Encoder):
    """Puts frames and stacks into tables; each is encoded as its number there."""

    def __init__(self, *, viewers: bool, of_history: bool = False) -> None:
        super().__init__(viewers=viewers, of_history=of_history)
        self._frames: dict[Frame, str] = {}
        self._stacks: dict[tuple[Frame, ...], str] = {}

    def tables(self) -> str:
        """The tables, once all else has been encoded."""
        stacks = ", ".join(map(super()._new_stack, self._stacks))
        frames = ", ".join(map(super()._new_frame, self._frames))
        return f'"frames": [{frames}], "stacks": [{stacks}], '

    def _new_stack(self, stack: tuple[Frame, ...]) -> str:
        return self._stacks.setdefault(stack, repr(len(self._stacks)))

    def _new_frame(self, frame: Frame) -> str:
        return self._frames.setdefault(frame, repr(len(self._frames)))


def _number(value: float) -> str:
    """Seconds, rounded to microseconds: the clock is no more precise."""
    return repr(round(value, 6)) if math.isfinite(value) else "null"


_WRITERS: dict[type, Callable[[Any], str]] = {
    str: _quoted,
    float: _number,
    int: repr,
    bool: lambda value: "true" if value else "false",
    type(None): lambda _: "null",
}


@cache
def _members(
    kind: type, viewers: bool, of_history: bool
) -> tuple[tuple[str, ...], Callable[[Any], Any]]:
    """The JSON names of a record's members, and a function that reads their values."""
    chosen = [
        field.name
        for field in fields(kind)
        if viewers
        or not field.metadata.get("viewers_only")
        or (of_history and field.metadata.get("in_history"))
    ]
    return tuple(f"{_quoted(name)}: " for name in chosen), attrgetter(*chosen)


# -- reading -----------------------------------------------------------------------


class _Tables(threading.local):
    """The tables of the compact document that this thread reads."""

    frames: tuple[Frame, ...] = ()
    stacks: tuple[tuple[Frame, ...], ...] = ()


_tables = _Tables()


@cache
def _decoder(hint: Any) -> Decoder:
    """Return the function that builds a value of this type from JSON."""
    if hint in _READERS:
        return _READERS[hint]
    origin = typing.get_origin(hint)
    if origin is None:
        return _record_decoder(hint) if is_dataclass(hint) else _plain_decoder(hint)
    if origin is typing.Literal:
        return _literal_decoder(typing.get_args(hint))
    if origin is tuple:
        return _list_decoder(_decoder(typing.get_args(hint)[0]))
    if origin in (typing.Union, types.UnionType):
        return _optional_decoder(_decoder(typing.get_args(hint)[0]))
    return _read_texts


def _record_decoder(kind: Any) -> Decoder:
    hints = typing.get_type_hints(kind)
    members = [
        (field.name, _decoder(hints[field.name]), field.default is MISSING)
        for field in fields(kind)
    ]
    names = [name for name, _, _ in members]
    decoders = [decode for _, decode, _ in members]

    def read(value: Any) -> Any:
        if len(value) >= len(names):  # nearly always: the same version wrote it
            try:
                found = [value[name] for name in names]
            except KeyError:
                pass
            else:
                pairs = zip(decoders, found, strict=True)
                return kind(*[decode(each) for decode, each in pairs])
        given = {
            name: decode(value[name])
            for name, decode, is_required in members
            if is_required or name in value
        }
        return kind(**given)

    return read


def _list_decoder(item: Decoder) -> Decoder:
    def read(value: Any) -> Any:
        if type(value) is not list:
            raise TypeError(f"expected a list, found {_short(value)}")
        return tuple(map(item, value))

    return read


def _optional_decoder(item: Decoder) -> Decoder:
    return lambda value: None if value is None else item(value)


def _literal_decoder(allowed: tuple[object, ...]) -> Decoder:
    def read(value: Any) -> Any:
        if value not in allowed:
            raise ValueError(f"{_short(value)} is none of {allowed}")
        return value

    return read


def _plain_decoder(kind: type) -> Decoder:
    def read(value: Any) -> Any:
        if type(value) is not kind:
            raise TypeError(f"expected {kind.__name__}, found {_short(value)}")
        return value

    return read


def _short(value: Any) -> str:
    """A value for a sentence, however large or deep it is."""
    return f"{reprlib.repr(value):.40}"


def _read_int(value: Any) -> int:
    if type(value) is not int or not -_LARGEST_INT <= value <= _LARGEST_INT:
        raise TypeError(f"expected a whole number, found {_short(value)}")
    return value


_LARGEST_INT = 2**53
"""No number of ours is larger; databases and floats cannot hold many digits more."""
_LARGE = 1e300
"""Numbers up to here need no further check."""


def _read_float(value: Any) -> float:
    if type(value) is float and -_LARGE < value < _LARGE:
        return value
    if type(value) not in (int, float):
        raise TypeError(f"expected a number, found {_short(value)}")
    number = float(value)
    if not math.isfinite(number):
        raise ValueError(f"expected a number of seconds, found {_short(value)}")
    return number


def _read_texts(value: Any) -> Mapping[str, str]:
    return {str(key): str(each) for key, each in value.items()}


_frames: dict[tuple[str, int, str], Frame] = {}
"""Frames read so far: documents repeat the same few."""


def _read_frame(value: Any) -> Frame:
    if type(value) is int:
        return _tables.frames[value]
    key = (value["file"], value["line"], value["function"])
    frame = _frames.get(key)
    if frame is None:
        if [type(part) for part in key] != [str, int, str]:
            raise TypeError(f"expected a frame, found {_short(value)}")
        if len(_frames) > 20_000:
            _frames.clear()
        frame = _frames[key] = Frame(*key)
    return frame


_read_frames = _list_decoder(_read_frame)


def _read_stack(value: Any) -> tuple[Frame, ...]:
    if type(value) is int:
        return _tables.stacks[value]
    stack: tuple[Frame, ...] = _read_frames(value)
    return stack


_READERS: dict[Any, Decoder] = {
    Frame: _read_frame,
    _Stack: _read_stack,
    float: _read_float,
    int: _read_int,
    FindingKind: _plain_decoder(str),  # a newer agent may diagnose more than we know
}
