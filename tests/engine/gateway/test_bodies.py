"""Bodies of the SDK: read with its defaults, refused by the name of the field."""

import ast
import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from weft.client.errors import BadRequest
from weft.engine.gateway import bodies
from weft.engine.gateway.errors import Unserved
from weft.engine.gateway.unserved import UNSERVED, refuse_unserved

GATEWAY = Path(__file__).resolve().parents[3] / "engine" / "gateway"
CHUNK = {"type": "encoded_text", "tokens": [1, 2]}
LORA = {"rank": 8, "train_unembed": True, "train_mlp": True, "train_attn": True}
ADAM = {"learning_rate": 1e-4, "beta1": 0.9, "beta2": 0.95, "eps": 1e-12}
TARGETS = {"data": [1, -1], "dtype": "int64", "shape": [1, 2]}
SAMPLE: dict[str, Any] = {
    "num_samples": 2,
    "prompt": {"chunks": [CHUNK]},
    "sampling_params": {"max_tokens": 3, "temperature": 0, "top_k": -1, "top_p": 1.0},
    "sampling_session_id": "s:sample:0",
    "seq_id": 0,
    "topk_prompt_logprobs": 0,
    "type": "sample",
}
# What the SDK sends, field by field; of those with more than one form each.
EXAMPLES: list[tuple[str, dict[str, Any]]] = [
    ("ClientConfig", {"sdk_version": "0.38.0"}),
    ("CreateSession", {"tags": [], "sdk_version": "0.28.1", "type": "create_session"}),
    (
        "CreateSession",
        {"tags": ["a"], "user_metadata": {"a": "b"}, "sdk_version": "0.38.0", "display_name": "d"},
    ),
    ("SessionHeartbeat", {"session_id": "s", "type": "session_heartbeat"}),
    ("FinishSession", {"reason": {"type": "success"}, "detail": None}),
    (
        "CreateModel",
        {"session_id": "s", "model_seq_id": 0, "base_model": "b", "lora_config": LORA},
    ),
    (
        "CreateModel",
        {
            "session_id": "s",
            "model_seq_id": 0,
            "base_model": "b",
            "lora_config": LORA,
            "user_metadata": {"a": "b"},
            "optimizer_config": {"type": "adamw"},
            "type": "create_model",
        },
    ),
    ("GetInfo", {"model_id": "m", "type": "get_info"}),
    ("OptimStep", {"model_id": "m", "seq_id": 1, "adam_params": ADAM, "type": "optim_step"}),
    (
        "SaveWeights",
        {"model_id": "m", "path": "p", "seq_id": 1, "overwrite": False, "ttl_seconds": 3600},
    ),
    ("LoadWeights", {"model_id": "m", "seq_id": 1, "path": "p", "optimizer": True}),
    ("LoadWeights", {"session_id": "s", "model_seq_id": 1, "path": "p", "optimizer": False}),
    ("SaveWeightsForSampler", {"model_id": "m", "path": "p", "seq_id": 1, "kind": "snapshot"}),
    ("SaveWeightsForSampler", {"model_id": "m", "sampling_session_seq_id": 0, "seq_id": 1}),
    ("SaveWeightsExternal", {"model_id": "m", "path": "p", "seq_id": 1, "ttl_seconds": 3600}),
    ("CreateSamplingSession", {"session_id": "s", "sampling_session_seq_id": 0, "model_path": "p"}),
    ("JoinSamplingSession", {"sampling_session_id": "s", "type": "join_sampling_session"}),
    ("Sample", SAMPLE),
    ("Sample", {**SAMPLE, "target_prompt_logprobs": TARGETS, "record_stability_info": False}),
    ("Sample", {**SAMPLE, "sampling_params": {"stop": "a", "temperature": 1, "top_p": 1}}),
    ("Sample", {**SAMPLE, "sampling_params": {"stop": [1], "seed": 3}}),
    ("RetrieveFuture", {"request_id": "r", "allow_metadata_only": True}),
    (
        "RetrieveFutures",
        {
            "target": {
                "type": "sampling_session",
                "sampling_session_id": "s",
                "cloned_sampler_id": 1,
            },
            "prev_cursor": 2,
            "timeout": 0.0,
            "retrieved_request_ids": ["r"],
        },
    ),
    ("CancelFuture", {"request_id": "r"}),
    ("WeightsInfo", {"tinker_path": "p"}),
    ("SetTtl", {"ttl_seconds": None}),
    ("CopyWeights", {"session_id": "s", "model_seq_id": 1, "source_path": "p"}),
]
KINDS = {
    name: value
    for name, value in vars(bodies).items()
    if isinstance(value, type) and issubclass(value, bodies.Body) and value is not bodies.Body
}


def decode(kind: str, fields: dict[str, Any]) -> Any:
    return bodies.decode(KINDS[kind], json.dumps(fields).encode())


def holds(whole: Any, part: Any) -> bool:
    """Whether what was read has everything that was sent, as it was."""
    if isinstance(part, dict):
        return all(name in whole and holds(whole[name], value) for name, value in part.items())
    return bool(whole == part)


@pytest.mark.parametrize(("kind", "fields"), EXAMPLES)
def test_what_the_sdk_sends_is_read_and_served(kind: str, fields: dict[str, Any]) -> None:
    body = decode(kind, fields)
    refuse_unserved(body)
    assert holds(json.loads(msgspec.json.encode(body)), fields)


@pytest.mark.parametrize(("kind", "fields"), EXAMPLES)
def test_a_field_that_no_sdk_has_is_refused_by_name(kind: str, fields: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match=f"{kind}: .*`banana`") as caught:
        decode(kind, {**fields, "banana": 1})
    assert caught.value.code == "malformed"


def test_defaults_are_those_of_the_sdk() -> None:
    step = decode("OptimStep", {"model_id": "m", "adam_params": {}})
    assert msgspec.structs.astuple(step.adam_params) == (1e-4, 0.9, 0.95, 1e-12, 0.0, 0.0)
    sample = decode("Sample", {**SAMPLE, "sampling_params": {}})
    assert msgspec.structs.astuple(sample.sampling_params) == (None, None, None, 1.0, -1, 1.0)
    lora = decode("CreateModel", {**EXAMPLES[5][1], "lora_config": {"rank": 4}}).lora_config
    assert msgspec.structs.astuple(lora) == (4, None, True, True, True)


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("OptimStep", {"adam_params": {"learning_rate": None}}, "learning_rate.*not finite"),
        ("OptimStep", {"adam_params": None}, "exactly one of `adam_params` and"),
        ("OptimStep", {"seq_id": -1}, "seq_id"),
        ("OptimStep", {"seq_id": True}, "seq_id"),
        ("OptimStep", {"seq_id": 2**63}, "seq_id"),
        ("CreateModel", {"lora_config": {"rank": 8, "seed": 10**30}}, "lora_config.seed"),
        ("CreateModel", {"model_seq_id": 10**9}, "model_seq_id"),
        ("CreateModel", {"user_metadata": {"a": 1}}, "user_metadata"),
        ("CreateModel", {"lora_config": None}, "lora_config"),
        ("LoadWeights", {"seq_id": None}, "`session_id` and `model_seq_id`, or `model_id`"),
        ("LoadWeights", {"session_id": "s", "model_seq_id": 1}, "either `session_id`"),
        ("LoadWeights", {"session_id": "s"}, "either `session_id`"),
        ("LoadWeights", {"base_model": "b"}, "`base_model` is of a new run"),
        ("LoadWeights", {"user_metadata": {}}, "`user_metadata` is of a new run"),
        ("LoadWeights", {"type": "save_weights"}, "type"),
        ("Sample", {"sampling_session_id": None}, "sampling_session_id"),
        ("Sample", {"prompt": {"chunks": [{"type": "banana"}]}}, "banana"),
        ("Sample", {"prompt": {"chunks": [{"tokens": [1]}]}}, "type"),
        ("Sample", {"prompt": {"chunks": [{**CHUNK, "tokens": [1.5]}]}}, "tokens"),
        ("Sample", {"target_prompt_logprobs": {**TARGETS, "shape": [-1]}}, "shape"),
        ("Sample", {"target_prompt_logprobs": {**TARGETS, "dtype": "int32"}}, "dtype"),
        ("FinishSession", {"reason": {"type": "bored"}}, "reason.type"),
    ],
)
def test_a_value_of_another_kind_is_refused_by_name(
    kind: str, changes: dict[str, Any], words: str
) -> None:
    fields = next(fields for name, fields in EXAMPLES if name == kind)
    with pytest.raises(BadRequest, match=words):
        decode(kind, {**fields, **changes})


@pytest.mark.parametrize(
    "body",
    [
        pytest.param(b"", id="empty"),
        pytest.param(b"[]", id="list"),
        pytest.param(b'{"request_id": "a"} x', id="something behind"),
        pytest.param(b'{"request_id": "\xff"}', id="not UTF-8"),
        pytest.param(b'{"request_id": NaN}', id="NaN"),
        pytest.param(b'{"request_id": 1e999}', id="too large a number"),
        pytest.param(b'{"request_id": ' + b"[" * 1_000_000, id="deep"),
    ],
)
def test_what_is_no_json_of_its_kind_is_malformed(body: bytes) -> None:
    with pytest.raises(BadRequest, match="RetrieveFuture: ") as caught:
        bodies.decode(bodies.RetrieveFuture, body)
    assert caught.value.code == "malformed"


def test_plain_data_that_is_nested_too_deep_is_malformed() -> None:
    body = b'{"model_id": "m", "optimizer_params": ' + b'{"a":' * 100_000
    with pytest.raises(BadRequest, match="recursion"):
        bodies.decode(bodies.OptimStep, body)
    assert bodies.peek(body) is None


def test_a_large_body_is_refused_unread() -> None:
    with pytest.raises(BadRequest, match="at most 8388608") as caught:
        bodies.decode(bodies.GetInfo, b" " * ((8 << 20) + 1))
    assert caught.value.code == "too_large"


@pytest.mark.parametrize(
    ("kind", "changes", "words"),
    [
        ("CreateSession", {"project_id": "p"}, "project_id is 'p'"),
        ("CreateModel", {"optimizer_config": {"type": "dimuon"}}, "optimizer_config is .*dimuon"),
        ("CreateModel", {"optimizer_config": {"type": "adamw", "x": 1}}, "optimizer_config"),
        (
            "OptimStep",
            {"adam_params": None, "optimizer_params": {"type": "dimuon"}},
            "optimizer_params is .*dimuon",
        ),
        ("LoadWeights", {"weights_access_token": "secret"}, "weights_access_token is given"),
        ("SaveWeightsForSampler", {"kind": "inflight"}, "kind is 'inflight'"),
        ("SaveWeightsExternal", {"age_encryption_recipients": ["age1"]}, "age_encryption_recip"),
        ("Sample", {"base_model": "b"}, "base_model is 'b'"),
        ("Sample", {"model_path": "p"}, "model_path is 'p'"),
        ("Sample", {"record_stability_info": True}, "record_stability_info is True"),
        (
            "Sample",
            {"prompt": {"chunks": [CHUNK, {"type": "image", "data": "", "format": "png"}]}},
            "type 'image'",
        ),
        (
            "Sample",
            {
                "prompt": {
                    "chunks": [{"type": "image_asset_pointer", "location": "", "format": "png"}]
                }
            },
            "type 'image_asset_pointer'",
        ),
        ("Sample", {"prompt": {"chunks": [{"type": "dmel", "dmel": ""}]}}, "type 'dmel'"),
        ("CopyWeights", {"destination_project_id": "p"}, "destination_project_id is 'p'"),
        ("CopyWeights", {"weights_access_token": "secret"}, "weights_access_token is given"),
    ],
)
def test_what_is_not_served_is_refused_by_name(
    kind: str, changes: dict[str, Any], words: str
) -> None:
    fields = next(fields for name, fields in EXAMPLES if name == kind)
    body = decode(kind, {**fields, **changes})
    with pytest.raises(Unserved, match=words) as caught:
        refuse_unserved(body)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        (b'{"model_id": "m", "seq_id": 3, "adam_params": {"eps": null}}', ("m", 3)),
        (b'{"seq_id": 3, "banana": [1], "model_id": "m"}', ("m", 3)),
        (b'{"model_id": "m"}', None),
        (b'{"model_id": "m", "seq_id": -1}', None),
        (b'{"model_id": "m", "seq_id": 3', None),
        (b'"\xff', None),
    ],
)
def test_the_number_of_a_refused_command_can_be_read(
    body: bytes, found: tuple[str, int] | None
) -> None:
    assert bodies.peek(body) == found


def test_every_field_is_looked_at_by_some_route_or_refused() -> None:
    used = {
        node.attr
        for path in GATEWAY.glob("*.py")
        if path.name != "bodies.py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute)
    }
    unserved = {(kind, refused.name) for kind, all_ in UNSERVED.items() for refused in all_}
    whole = {bodies.AdamParams}  # handed on as they are
    silent = {"type", "sdk_version", "detail"}  # say what is known already, or is for people
    chunks = {bodies.ImageChunk, bodies.ImageAssetPointerChunk, bodies.DmelChunk}  # refused
    missed = [
        f"{kind.__name__}.{name}"
        for kind in KINDS.values()
        if kind not in whole | chunks
        for name in kind.__struct_fields__
        if name not in used | silent and (kind, name) not in unserved
    ]
    assert missed == []
