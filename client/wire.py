"""Headers to bytes and back: msgpack maps, closed, bounded before anything is allocated.

A header is a map of its fields and its `kind`. Decoding trusts nothing: an unknown kind or key, a
missing key without a default, a repeated key, a wrong type, a number beyond 64 bits, deep nesting
or a long list is refused with `Malformed`, which names it.
"""

import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, TypeGuard, cast, get_args, get_origin, get_type_hints

import msgpack  # pyright: ignore[reportMissingTypeStubs]

from . import file_messages, messages, worker_messages
from .errors import BadRequest
from .limits import limit
from .messages import Array, Command, Header, Request, Sample

Buffer = bytes | bytearray | memoryview

_packb: Callable[[object], bytes] = cast(Any, msgpack).packb
_unpackb: Callable[..., object] = cast(Any, msgpack).unpackb

_MAX_BYTES = limit("header_bytes")
_MAX_ITEMS = limit("header_items")
_MAX_DEPTH = limit("header_depth")
_MAX_INT = 2**63


class Malformed(BadRequest):
    """The bytes are not a message of this protocol."""

    code = "malformed"


def encode(header: Header) -> bytes:
    """Encode a header.

    Raises:
        BadRequest: `too_large`, over the limit `header_bytes`.
    """
    return _pack(_to_map(header), header.kind)


def decode(raw: Buffer) -> Header:
    """Decode a header.

    Raises:
        Malformed: as said above.
        BadRequest: `too_large`, over the limit `header_bytes`.
    """
    if len(raw) > _MAX_BYTES:
        raise BadRequest(f"header of {len(raw)} bytes, at most {_MAX_BYTES}", "too_large")
    try:
        fields: object = _unpackb(
            raw,
            object_pairs_hook=_unique_keys,
            ext_hook=_no_extension,
            max_array_len=_MAX_ITEMS,
            max_map_len=_MAX_ITEMS,
            max_ext_len=0,
        )
    except Malformed:
        raise
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise Malformed(f"header is not msgpack: {error or type(error).__name__}") from None
    if not _is_map(fields):
        raise Malformed(f"header is a {type(fields).__name__}, not a map")
    kind = fields.pop("kind", None)
    record = _RECORDS.get(kind) if isinstance(kind, str) else None
    if record is None:
        raise Malformed(f"unknown kind of message {_short(kind)}")
    return cast(Header, record.build(fields))


def digest(header: Command | Sample, frames: Sequence[Buffer]) -> bytes:
    """16 bytes over the content of a request: its header without ids of transport, and its frames.

    The same command sent again has the same digest, whatever its `request_id`.
    """
    return _digest(_to_map(header), frames)


def digest_bytes(data: Buffer) -> bytes:
    """16 bytes over a part of a file."""
    return hashlib.blake2b(data, digest_size=16).digest()


def encode_signed(header: Command | Sample, frames: Sequence[Buffer]) -> bytes:
    """Encode a request with its digest, whatever digest it holds."""
    fields = _to_map(header)
    fields["digest"] = _digest(fields, frames)
    fields["request_id"] = header.request_id
    return _pack(fields, header.kind)


def encode_request(header: Request, frames: Sequence[Buffer]) -> bytes:
    """Encode a request with what follows it; those that have a digest get it."""
    if isinstance(header, Command | Sample):
        return encode_signed(header, frames)
    return encode(header)


def _digest(fields: dict[str, Any], frames: Sequence[Buffer]) -> bytes:
    fields["request_id"] = 0
    fields["digest"] = b""
    state = hashlib.blake2b(_pack(fields, fields["kind"]), digest_size=16)
    for frame in frames:
        state.update(frame)
    return state.digest()


# --- how a record is read and written -------------------------------------------------------------

Check = Callable[[Any, str], Any]

_EXACT = (int, float, str, bool, bytes)
_SECRET = ("hello.api_key", "worker_hello.secret")  # never shown in a message


class _Record:
    """The fields of one dataclass, with what reads each of them."""

    def __init__(self, cls: type[Any], name: str) -> None:
        hints = get_type_hints(cls)
        fields = dataclasses.fields(cls)
        self.cls = cls
        self.name = name
        self.names = tuple(field.name for field in fields)
        self.checks: dict[str, Check] = {
            field.name: _check_for(hints[field.name]) for field in fields
        }
        # Values of exactly these types need no look by a check; of 64 bits they are all but int.
        self.plain = {key: hint for key, hint in hints.items() if hint in _EXACT}
        self.paths = {field.name: f"{name}.{field.name}" for field in fields}
        self.required = tuple(
            field.name
            for field in fields
            if field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        )
        nested: dict[str, Callable[[Any], object]] = {
            "arrays": _array_values,
            "models": dataclasses.asdict,
            "model": dataclasses.asdict,
            "sites": dataclasses.asdict,
        }
        self.nested = {key: nested[key] for key in self.names if key in nested}

    def build(self, fields: dict[str, Any]) -> Any:
        checks, paths, plain = self.checks, self.paths, self.plain
        for key, value in fields.items():
            kind = type(value)  # pyright: ignore[reportUnknownVariableType]
            if kind is plain.get(key) and (kind is not int or value < _MAX_INT):
                continue
            if key not in checks:
                raise Malformed(f"{self.name} has no field {_short(key)}")
            fields[key] = checks[key](value, paths[key])
        if len(fields) < len(self.names):
            for key in self.required:
                if key not in fields:
                    raise Malformed(f"{self.name} lacks {key!r}")
        return self.cls(**fields)


def _to_map(header: Header) -> dict[str, Any]:
    record = _RECORDS[header.kind]
    fields: dict[str, Any] = {"kind": header.kind}
    for key in record.names:
        fields[key] = getattr(header, key)
    for key, values in record.nested.items():
        value = fields[key]
        fields[key] = [values(item) for item in value] if _is_list(value) else values(value)
    return fields


_array_values = attrgetter(*(field.name for field in dataclasses.fields(Array)))


def _pack(fields: dict[str, Any], kind: str) -> bytes:
    raw = _packb(fields)
    if len(raw) > _MAX_BYTES:
        raise BadRequest(
            f"the header of {kind} takes {len(raw)} bytes, at most {_MAX_BYTES}", "too_large"
        )
    return raw


def _is_list(value: object) -> TypeGuard[list[Any]]:
    return type(value) is list


def _is_map(value: object) -> TypeGuard[dict[Any, Any]]:
    return type(value) is dict


def _unique_keys(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs):
        raise Malformed("header repeats a key")
    return fields


def _no_extension(code: int, data: bytes) -> Any:
    raise Malformed(f"header holds msgpack extension {code}")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _wrong(value: object, path: str, wanted: str) -> Malformed:
    if path in _SECRET:
        return Malformed(f"{path} is of type {type(value).__name__}, not {wanted}")
    return Malformed(f"{path} is {_short(value)} ({type(value).__name__}), not {wanted}")


def _int(value: Any, path: str) -> int:
    if type(value) is not int or value >= _MAX_INT:  # msgpack has none below -2**63
        raise _wrong(value, path, "a 64-bit int")
    return value


def _float(value: Any, path: str) -> float:
    if type(value) is float:
        return value
    if type(value) is not int:
        raise _wrong(value, path, "a float")
    return float(value)


def _str(value: Any, path: str) -> str:
    if type(value) is not str:
        raise _wrong(value, path, "a str")
    return value


def _bool(value: Any, path: str) -> bool:
    if type(value) is not bool:
        raise _wrong(value, path, "a bool")
    return value


def _bytes(value: Any, path: str) -> bytes:
    if type(value) is not bytes:
        raise _wrong(value, path, "bytes")
    return value


def _any(value: Any, path: str, depth: int = 2) -> Any:
    if value is None or isinstance(value, str | bool | bytes | float):
        return value
    if isinstance(value, int):
        return _int(value, path)
    if depth >= _MAX_DEPTH:
        raise Malformed(f"{path} is nested deeper than {_MAX_DEPTH}")
    if _is_list(value):
        return [_any(item, path, depth + 1) for item in value]
    if _is_map(value):
        return {_str(key, path): _any(item, path, depth + 1) for key, item in value.items()}
    raise _wrong(value, path, "plain data")


def _array(value: Any, path: str) -> Array:
    """An array's fields as a list; they are many, so the usual case is checked at one go."""
    if _is_list(value) and tuple(map(type, value)) == _ARRAY_TYPES:
        _ints(value[2], path)
        _int(value[4], path)
        return Array(*value)
    raise _wrong(value, path, "a list of an array's fields")


_ARRAY_TYPES = (str, str, list, str, int, float)


def _ints(value: list[Any], path: str) -> None:
    for item in value:
        _int(item, path)


def _list_of(check: Check) -> Check:
    def read(value: Any, path: str) -> list[Any]:
        if _is_list(value):
            return [check(item, path) for item in value]
        raise _wrong(value, path, "a list")

    return read


def _dict_of(check: Check) -> Check:
    def read(value: Any, path: str) -> dict[str, Any]:
        if _is_map(value):
            return {_str(key, path): check(item, path) for key, item in value.items()}
        raise _wrong(value, path, "a map")

    return read


def _record_of(cls: type[Any]) -> Check:
    record = _Record(cls, cls.__name__.lower())

    def read(value: Any, path: str) -> Any:
        if _is_map(value):
            return record.build(value)
        raise _wrong(value, path, "a map")

    return read


_PLAIN: dict[Any, Check] = {
    int: _int,
    float: _float,
    str: _str,
    bool: _bool,
    bytes: _bytes,
    Any: _any,
    Array: _array,
}


def _check_for(hint: Any) -> Check:
    if hint in _PLAIN:
        return _PLAIN[hint]
    if get_origin(hint) is list:
        return _list_of(_check_for(get_args(hint)[0]))
    if get_origin(hint) is dict:
        return _dict_of(_check_for(get_args(hint)[1]))
    return _record_of(hint)


def _kinds() -> dict[str, _Record]:
    found: dict[str, _Record] = {}
    for module in (messages, file_messages, worker_messages):
        for cls in vars(module).values():
            if isinstance(cls, type) and issubclass(cls, Header) and "kind" in vars(cls):
                found[cls.kind] = _Record(cls, cls.kind)
    return found


_RECORDS = _kinds()
KINDS: tuple[str, ...] = tuple(sorted(_RECORDS))
