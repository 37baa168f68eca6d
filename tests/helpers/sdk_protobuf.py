"""The SDK's protobuf messages as Google's library reads and writes them, from a table of the facts.

The schema of the gateway is not used: the two are compared.
"""

import random
import re
from functools import cache
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "tinker_public"

# [repeated] type name = number; `map<K, V>` as in proto3; | before a field puts it into the oneof.
TABLE = """
SparseCsr: bytes values=1; bytes crow_indices=2; bytes col_indices=3
Tensor: |bytes dense=1; |SparseCsr sparse_csr=2; DType dtype=3; repeated int64 shape=4
EncodedTextChunk: bytes tokens=1
ImageDimensions: int32 width=1; int32 height=2
ImageChunk: bytes data=1; string format=2; int32 expected_tokens=3;
    ImageDimensions override_dimensions=4
DmelChunk: bytes dmel=1
Chunk: |EncodedTextChunk encoded_text=1; |ImageChunk image=2; |DmelChunk dmel=3
PromptProvenanceSpan: string sequence_id=1; int64 offset=2; int64 length=3
SampledProvenanceSpan: string sequence_id=1; int64 offset=2; int64 length=3
ProvenanceSpan: |PromptProvenanceSpan prompt_tokens=1; |SampledProvenanceSpan sampled_tokens=2
Datum: repeated Chunk model_input=1; map<string,Tensor> loss_fn_inputs=2;
    repeated ProvenanceSpan model_input_spans=3; repeated ProvenanceSpan loss_fn_input_spans=4
LossConfigValue: |double number=1; |string text=2
ForwardBackwardRequest: string model_id=1; int32 seq_id=2; repeated Datum data=3; string loss_fn=4;
    map<string,double> loss_fn_config=5; bool forward_only=6;
    map<string,LossConfigValue> loss_fn_config_v2=7
BatchedTensor: bytes data=1; bytes offsets=2; DType dtype=3; repeated int64 trailing_shape=4
ArrayRecord: string type_tag=1; map<string,BatchedTensor> fields=2; int64 num_datums=3
ForwardBackwardOutput: string loss_fn_output_type=1; repeated ArrayRecord loss_fn_outputs=2;
    map<string,double> metrics=3
TopkLogprobs: bytes token_ids=1; bytes logprobs=2; uint32 k=3; uint32 length=4
SampledSequence: StopReason stop_reason=1; bytes tokens=2; bytes logprobs=3;
    TopkLogprobs topk_sampled_logprobs=4
PromptAltTokens: Tensor tokens=1; Tensor logprobs=2
SampleResponse: repeated SampledSequence sequences=1; bytes prompt_logprobs=2;
    TopkLogprobs topk_prompt_logprobs=3; int32 prompt_cache_hit_tokens=4;
    Tensor target_prompt_logprobs=5; PromptAltTokens prompt_alt_tokens=6
"""
ENUMS = {
    "StopReason": ("STOP", "LENGTH"),
    "DType": ("UNSPECIFIED", "FLOAT32", "INT64", "INT32", "BFLOAT16"),
}
_KIND = descriptor_pb2.FieldDescriptorProto
_SCALARS = {
    "bytes": _KIND.TYPE_BYTES,
    "string": _KIND.TYPE_STRING,
    "double": _KIND.TYPE_DOUBLE,
    "bool": _KIND.TYPE_BOOL,
    "int32": _KIND.TYPE_INT32,
    "int64": _KIND.TYPE_INT64,
    "uint32": _KIND.TYPE_UINT32,
}
_FIELD = re.compile(r"(\|?)(repeated )?(map<string,)?(\w+)>? (\w+)=(\d+)")


@cache
def message_class(name: str) -> Any:
    """The class of a message in Google's library."""
    return message_factory.GetMessageClass(_pool().FindMessageTypeByName(f"{PACKAGE}.{name}"))


def names() -> list[str]:
    """Of all messages."""
    return re.findall(r"^(\w+):", TABLE, re.MULTILINE)


def random_message(name: str, rng: random.Random, depth: int = 0) -> Any:
    """A message with some of its fields, at random."""
    message = message_class(name)()
    fields = message.DESCRIPTOR.fields
    chosen = [field for field in fields if rng.random() < 0.8 / (1 + depth / 8)]
    taken: set[str] = set()
    for field in chosen:
        if field.containing_oneof is not None:
            if field.containing_oneof.name in taken:
                continue
            taken.add(field.containing_oneof.name)
        _fill(message, field, rng, depth)
    return message


def _fill(message: Any, field: Any, rng: random.Random, depth: int) -> None:
    target = getattr(message, field.name)
    entry = field.message_type
    if entry is not None and entry.GetOptions().map_entry:
        value = entry.fields_by_name["value"]
        for _ in range(rng.randrange(3)):
            key = _text(rng)
            if value.message_type is not None:
                target[key].CopyFrom(random_message(value.message_type.name, rng, depth + 1))
            else:
                target[key] = _scalar(value, rng)
    elif field.is_repeated:
        for _ in range(rng.randrange(4)):
            if entry is not None:
                target.append(random_message(entry.name, rng, depth + 1))
            else:
                target.append(_scalar(field, rng))
    elif entry is not None:
        target.CopyFrom(random_message(entry.name, rng, depth + 1))
    else:
        setattr(message, field.name, _scalar(field, rng))


def _scalar(field: Any, rng: random.Random) -> object:
    match field.type:
        case _KIND.TYPE_BYTES:
            return rng.randbytes(rng.choice((0, 1, 7, 130, 300)))
        case _KIND.TYPE_STRING:
            return _text(rng)
        case _KIND.TYPE_DOUBLE:
            return rng.choice((0.0, -1.5, 1e300, float("inf"), rng.random()))
        case _KIND.TYPE_BOOL:
            return rng.random() < 0.5
        case _KIND.TYPE_ENUM:
            return rng.randrange(2)
    bits = {_KIND.TYPE_INT32: 31, _KIND.TYPE_UINT32: 32, _KIND.TYPE_INT64: 63}[field.type]
    number = rng.choice((0, 1, 127, 128, 2**bits - 1, rng.getrandbits(bits)))
    return -number if field.type != _KIND.TYPE_UINT32 and rng.random() < 0.3 else number


def _text(rng: random.Random) -> str:
    return "".join(rng.choice("ab\u00e9\u4e2d\U0001f9f5") for _ in range(rng.randrange(5)))


@cache
def _pool() -> descriptor_pool.DescriptorPool:
    file = descriptor_pb2.FileDescriptorProto(
        name="tinker_public.proto", package=PACKAGE, syntax="proto3"
    )
    for name, values in ENUMS.items():
        enum = file.enum_type.add(name=name)
        for number, value in enumerate(values):
            enum.value.add(name=f"{name.upper()}_{value}", number=number)
    for line in re.split(r"\n(?=\w)", TABLE.strip()):
        name, _, fields = line.partition(":")
        _add_message(file.message_type.add(name=name), fields)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def _add_message(message: Any, fields: str) -> None:
    for oneof, repeated, is_map, kind, name, number in _FIELD.findall(fields):
        field = message.field.add(name=name, number=int(number), label=_KIND.LABEL_OPTIONAL)
        if is_map:
            camel = "".join(part.capitalize() for part in name.split("_"))
            entry = message.nested_type.add(name=f"{camel}Entry")
            entry.options.map_entry = True
            entry.field.add(
                name="key", number=1, label=_KIND.LABEL_OPTIONAL, type=_KIND.TYPE_STRING
            )
            _set_type(entry.field.add(name="value", number=2, label=_KIND.LABEL_OPTIONAL), kind)
            field.type = _KIND.TYPE_MESSAGE
            field.type_name = f".{PACKAGE}.{message.name}.{entry.name}"
        else:
            _set_type(field, kind)
        if repeated or is_map:
            field.label = _KIND.LABEL_REPEATED
        if oneof:
            if not message.oneof_decl:
                message.oneof_decl.add(name="one")
            field.oneof_index = 0


def _set_type(field: Any, kind: str) -> None:
    if kind in _SCALARS:
        field.type = _SCALARS[kind]
    else:
        field.type = _KIND.TYPE_ENUM if kind in ENUMS else _KIND.TYPE_MESSAGE
        field.type_name = f".{PACKAGE}.{kind}"
