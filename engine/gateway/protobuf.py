"""The wire format of Protocol Buffers: messages to bytes and back, by a schema given as data.

Own code, although there is a library: the classes that it generates tie whoever loads them to a
range of versions of the package `protobuf`, and the official SDK, which may be installed beside
this gateway, chooses another. What is needed here is small.

Decoding trusts nothing. A field that the message does not have, a group, another wire type than the
schema's, a field or key that comes twice where one belongs, two of a `oneof`, a number beyond its
type: each is refused by the name of the message and the number of the field, though the format lets
readers skip or merge them. Fields are counted while they are read, so that a body of millions of
empty messages ends at the limit; what lies deeper than the schema is never looked into. Values of
type `bytes` are views of the body, and nothing is copied but strings.

Source: https://protobuf.dev/programming-guides/encoding
"""

import struct
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from ...client.errors import BadRequest
from ...client.limits import limit
from ...client.wire import Buffer, Malformed

Values = dict[str, Any]
"""A message: by the names of its fields numbers, strings, views, `Values`, lists and maps of them.

Fields that are not there are missing.
"""

MAX_FIELDS = limit("protobuf_fields")

_VARINT, _FIXED64, _BYTES, _GROUP, _END_GROUP, _FIXED32 = range(6)
_WITH_NUMBER = (_VARINT, _BYTES)  # the value, or how many bytes it has
_WIRE_TYPES = {"bytes": _BYTES, "string": _BYTES, "double": _FIXED64}  # the others are varints
_RANGES = {
    "bool": (0, 2**64),
    "int32": (-(2**31), 2**31),
    "int64": (-(2**63), 2**63),
    "uint32": (0, 2**32),
}
_DOUBLE = struct.Struct("<d")


@dataclass(frozen=True, slots=True)
class Field:
    """One field of a message.

    kind: "bytes", "string", "double", "bool", "int32" (also of enumerations), "int64", "uint32", or
        the message that it holds.
    """

    number: int
    name: str
    kind: "str | Message"
    max_count: int = 0  # of a repeated field or a map; 0: it comes once
    is_map: bool = False  # from strings to `kind`, a message or "double"
    inner: "Message | None" = field(init=False)  # what it holds, of a map an entry
    tag: int = field(init=False)

    def __post_init__(self) -> None:
        inner = self.kind if isinstance(self.kind, Message) else None
        if self.is_map:
            entry = (Field(1, "key", "string"), Field(2, "value", self.kind))
            # An entry's key and value are written even when they are 0 or empty.
            inner = Message(f"an entry of {self.name}", *entry, keeps_empty=True)
        wire_type = _BYTES if inner is not None else _WIRE_TYPES.get(str(self.kind), _VARINT)
        object.__setattr__(self, "inner", inner)
        object.__setattr__(self, "tag", self.number << 3 | wire_type)


class Message:
    """The fields that a message may have."""

    __slots__ = ("by_tag", "fields", "keeps_empty", "name", "oneof", "skips_others")

    def __init__(
        self,
        name: str,
        *fields: Field,
        oneof: Sequence[str] = (),
        keeps_empty: bool = False,
        skips_others: bool = False,
    ) -> None:
        """Describe a message.

        Args:
            name: for people.
            fields: in the order in which they are written.
            oneof: names of fields of which at most one is there.
            keeps_empty: fields that are 0 or empty are written, too.
            skips_others: fields that it does not have are passed over, not refused.
        """
        self.name = name
        self.fields = fields
        self.oneof = oneof
        self.keeps_empty = keeps_empty
        self.skips_others = skips_others
        self.by_tag = {item.tag: item for item in fields}
        for item in fields:  # integers may also come packed
            if item.max_count and item.tag & 7 == _VARINT:
                self.by_tag[item.number << 3 | _BYTES] = item


# --- reading --------------------------------------------------------------------------------------


def decode(body: bytes, message: Message) -> Values:
    """Read a message; its `bytes` are views of `body`.

    Raises:
        Malformed: as said above.
        BadRequest: `too_large`, over the limit `protobuf_fields`, or a count of the schema.
    """
    try:
        return _Reader(body).read(message, 0, len(body), {})
    except IndexError:
        raise Malformed(f"{message.name} ends inside a field") from None


def peek(body: bytes, message: Message) -> Values:
    """As much of a message as can be read before something is wrong with it; never raises.

    Args:
        body: of a message that may be damaged.
        message: a schema with `skips_others`, of the fields that are wanted.
    """
    found: Values = {}
    with suppress(IndexError, BadRequest):
        _Reader(body).read(message, 0, len(body), found)
    return found


class _Reader:
    """One body, and how many fields more it may have."""

    __slots__ = ("data", "left", "view")

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.view = memoryview(data)
        self.left = MAX_FIELDS

    def read(self, message: Message, at: int, end: int, found: Values) -> Values:
        """Put the fields of the message between two places into `found`, one by one."""
        data, by_tag = self.data, message.by_tag
        while at < end:
            tag = data[at]
            at += 1
            if tag > 0x7F:
                tag, at = self.varint(at - 1)
            self.left -= 1
            if self.left < 0:
                raise BadRequest(f"more than {MAX_FIELDS} fields in one body", "too_large")
            wire_type = tag & 7
            number, start = 0, at
            if wire_type in _WITH_NUMBER:
                number = data[at]
                at += 1
                if number > 0x7F:
                    number, at = self.varint(at - 1)
                if wire_type == _BYTES:
                    start = at
                    at += number
            elif wire_type == _FIXED64:
                at += 8
            elif wire_type == _FIXED32:
                at += 4
            else:
                raise _refusal(message, tag)
            if at > end:
                raise Malformed(f"{message.name} ends inside field {tag >> 3}")
            item = by_tag.get(tag)
            if item is None:
                if message.skips_others:
                    continue
                raise _refusal(message, tag)
            if item.inner is not None:
                value: Any = self.read(item.inner, start, at, {})
            elif item.kind == "bytes":
                value = self.view[start:at]
            else:
                value = self.value(message, item, wire_type, number, start, at)
            if item.max_count:
                _collect(message, item, found, value)
            elif item.name in found:
                raise Malformed(f"{message.name}.{item.name} (field {item.number}) is there twice")
            else:
                found[item.name] = value
        if message.oneof and len(found) > 1:
            given = [name for name in message.oneof if name in found]
            if len(given) > 1:
                raise Malformed(f"{message.name} has both {given[0]} and {given[1]}")
        return found

    def value(
        self, message: Message, item: Field, wire_type: int, number: int, start: int, end: int
    ) -> object:
        """A number or a string, or several numbers: what lies between two places, or is `number`."""
        if wire_type == _VARINT:
            return _number(message, item, number)
        if item.kind == "double":
            return _DOUBLE.unpack_from(self.data, start)[0]
        if item.kind == "string":
            try:
                return str(self.view[start:end], "utf-8")
            except UnicodeDecodeError:
                raise Malformed(f"{message.name}.{item.name} is not UTF-8") from None
        return self.packed(message, item, start, end)

    def packed(self, message: Message, item: Field, at: int, end: int) -> list[int]:
        """Integers end to end."""
        found: list[int] = []
        while at < end:
            number, at = self.varint(at)
            if at > end:
                raise Malformed(f"{message.name}.{item.name} ends inside a number")
            found.append(_number(message, item, number))
            _check_count(message, item, len(found))
        return found

    def varint(self, at: int) -> tuple[int, int]:
        """The number at a place, unsigned, and the place after it."""
        data = self.data
        number = shift = 0
        while True:
            byte = data[at]
            at += 1
            number |= (byte & 0x7F) << shift
            if byte < 0x80:
                break
            shift += 7
            if shift == 70:
                raise Malformed("a number of more than ten bytes")
        if number >= 2**64:
            raise Malformed("a number of more than 64 bits")
        return number, at


def _collect(message: Message, item: Field, found: Values, value: Any) -> None:
    """Put one more value of a repeated field, or one more entry of a map, to the others."""
    if item.is_map:
        entries = found.setdefault(item.name, {})
        key = value.get("key", "")
        if key in entries:
            raise Malformed(f"{message.name}.{item.name} has {key[:100]!r} twice")
        _check_count(message, item, len(entries) + 1)
        missing: object = {} if isinstance(item.kind, Message) else 0.0
        entries[key] = value.get("value", missing)
        return
    values = found.setdefault(item.name, [])
    if isinstance(value, list):
        values += value
    else:
        values.append(value)
    _check_count(message, item, len(values))


def _check_count(message: Message, item: Field, count: int) -> None:
    if count > item.max_count:
        raise BadRequest(
            f"{message.name}.{item.name} has more than {item.max_count} entries", "too_large"
        )


def _number(message: Message, item: Field, number: int) -> int | bool:
    low, high = _RANGES[str(item.kind)]
    value = number - 2**64 if low < 0 and number >= 2**63 else number
    if not low <= value < high:
        raise Malformed(f"{message.name}.{item.name} is {value}, which is no {item.kind}")
    return bool(value) if item.kind == "bool" else value


def _refusal(message: Message, tag: int) -> Malformed:
    number, wire_type = tag >> 3, tag & 7
    name = next((item.name for item in message.fields if item.number == number), "")
    if wire_type in (_GROUP, _END_GROUP):
        return Malformed(f"{message.name} has a group, field {number}")
    if name:
        return Malformed(f"{message.name}.{name} (field {number}) has the wire type {wire_type}")
    return Malformed(f"{message.name} has no field {number}")


# --- writing --------------------------------------------------------------------------------------


def encode(message: Message, values: Mapping[str, Any]) -> bytes:
    """Write a message: fields in the order of the schema, without those that are 0 or empty.

    Args:
        message: the schema.
        values: as `decode` gives them; `bytes` may be any buffer.
    """
    pieces: list[Buffer] = []
    _write(message, values, pieces)
    return b"".join(pieces)


def _write(message: Message, values: Mapping[str, Any], pieces: list[Buffer]) -> int:
    """Append the bytes of a message; how many they are."""
    total = 0
    for item in message.fields:
        if item.name not in values:
            continue
        value = values[item.name]
        is_kept = message.keeps_empty or bool(item.max_count) or item.name in message.oneof
        if item.is_map:
            for key, one in value.items():
                total += _write_message(item, {"key": key, "value": one}, pieces)
        elif item.inner is not None:
            for one in value if item.max_count else (value,):
                total += _write_message(item, one, pieces)
        elif item.max_count and item.tag & 7 == _VARINT:
            packed = b"".join(_varint(one % 2**64) for one in value)
            total += _write_bytes(item.number << 3 | _BYTES, packed, pieces) if packed else 0
        elif item.tag & 7 == _BYTES:
            for one in value if item.max_count else (value,):
                data = one.encode() if isinstance(one, str) else one
                total += _write_bytes(item.tag, data, pieces) if is_kept or len(data) else 0
        elif is_kept or value:
            number = _DOUBLE.pack(value) if item.kind == "double" else _varint(value % 2**64)
            pieces.append(_varint(item.tag) + number)
            total += len(pieces[-1])
    return total


def _write_message(item: Field, values: Mapping[str, Any], pieces: list[Buffer]) -> int:
    assert item.inner is not None
    place = len(pieces)
    pieces.append(b"")
    size = _write(item.inner, values, pieces)
    head = _varint(item.tag) + _varint(size)
    pieces[place] = head
    return len(head) + size


def _write_bytes(tag: int, data: Buffer, pieces: list[Buffer]) -> int:
    size = memoryview(data).nbytes
    head = _varint(tag) + _varint(size)
    pieces += (head, data)
    return len(head) + size


def _varint(number: int) -> bytes:
    if number < 0x80:
        return bytes((number,))
    found = bytearray()
    while number > 0x7F:
        found.append(number & 0x7F | 0x80)
        number >>= 7
    found.append(number)
    return bytes(found)
