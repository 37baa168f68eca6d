"""What is sent of a saved state."""

import json
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from core_bench import checkpoint
from safetensors.numpy import load, save

from weft.client.errors import BadRequest
from weft.engine.files.outgoing import OutgoingFile, Span, Stream, peft_files, state_files
from weft.engine.files.tensors import read_contents

NAMES = ("model.layers.0.self_attn.q_proj", "lm_head")
STATE = {
    f"{prefix}{name}.lora_{half}": np.full((2, 3), index, np.float32)
    for index, (prefix, name, half) in enumerate(
        (prefix, name, half)
        for prefix in ("", "moment1.", "moment2.")
        for name in NAMES
        for half in "ab"
    )
}
RAW = save(STATE)
RECORD = checkpoint("a", unembed_site="lm_head")


def sent(unembed: str, names: tuple[str, ...] = NAMES, base_model: str = "") -> dict[str, Any]:
    kept = {name: array for name, array in STATE.items() if any(part in name for part in names)}
    raw = save(kept)
    files = peft_files(RECORD, read_contents(BytesIO(raw)), unembed, base_model)
    stream, found, offset = Stream(files), {}, 0
    for file in files:
        data = stream.read(BytesIO(raw), offset, file.size)
        offset += file.size
        is_config = file.name.endswith(".json")
        found[file.name] = json.loads(data) if is_config else load(data)
    return found


def test_an_adapter_has_the_weights_under_the_names_of_peft() -> None:
    found = sent("include")
    assert sorted(found) == ["adapter_config.json", "adapter_model.safetensors"]
    tensors = found["adapter_model.safetensors"]
    assert {name: int(array[0, 0]) for name, array in tensors.items()} == {
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight": 0,
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.weight": 1,
        "base_model.model.lm_head.lora_A.weight": 2,
        "base_model.model.lm_head.lora_B.weight": 3,
    }
    assert found["adapter_config.json"]["target_modules"] == ["lm_head", "q_proj"]


def test_the_unembedding_can_be_left_out() -> None:
    found = sent("omit")
    assert sorted(found) == ["adapter_config.json", "adapter_model.safetensors"]
    assert not [name for name in found["adapter_model.safetensors"] if "lm_head" in name]
    assert found["adapter_config.json"]["target_modules"] == ["q_proj"]


def test_the_unembedding_can_have_an_adapter_of_its_own() -> None:
    found = sent("separate")
    assert len(found) == 4
    assert sorted(found["unembed/adapter_model.safetensors"]) == [
        "base_model.model.lm_head.lora_A.weight",
        "base_model.model.lm_head.lora_B.weight",
    ]
    assert found["unembed/adapter_config.json"]["target_modules"] == ["lm_head"]
    assert found["adapter_config.json"]["target_modules"] == ["q_proj"]


def test_an_adapter_without_the_unembedding_is_whole_either_way() -> None:
    assert sorted(sent("separate", NAMES[:1])) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]


@pytest.mark.parametrize("unembed", ["omit", "separate"])
def test_an_adapter_of_the_unembedding_alone_is_not_emptied(unembed: str) -> None:
    with pytest.raises(BadRequest, match="nothing but the unembedding"):
        sent(unembed, NAMES[1:])


def test_the_config_names_the_base_model_as_asked() -> None:
    name = "base_model_name_or_path"
    assert sent("include")["adapter_config.json"][name] == "tiny"
    assert sent("include", base_model="org/m")["adapter_config.json"][name] == "org/m"


def test_a_state_is_sent_as_it_is_kept() -> None:
    stream = Stream(state_files(read_contents(BytesIO(RAW))))
    assert stream.read(BytesIO(RAW), 0, stream.size) == RAW


@pytest.mark.parametrize("seed", range(10))
def test_any_range_of_a_stream_is_that_of_the_whole(seed: int) -> None:
    generator = np.random.default_rng(seed)
    state = bytes(generator.integers(0, 256, 100, np.uint8))
    files = [
        OutgoingFile("a", (b"head", Span(10, 20), b"", Span(90, 10))),
        OutgoingFile("b", (Span(0, 0), b"x", Span(5, 50))),
    ]
    stream = Stream(files)
    whole = b"head" + state[10:30] + state[90:] + b"x" + state[5:55]
    assert stream.size == len(whole)
    for _ in range(50):
        offset, size = generator.integers(0, 90, 2).tolist()
        assert stream.read(BytesIO(state), offset, size) == whole[offset : offset + size]
