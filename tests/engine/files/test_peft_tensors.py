"""adapter_model.safetensors against the sites of its base model."""

from io import BytesIO

import numpy as np
import pytest
import torch
from adapter_files import SPANS, key, make_tensors, span
from safetensors.numpy import save
from safetensors.torch import save as save_torch

from weft.client.errors import BadRequest
from weft.engine.files.peft_config import PeftConfig
from weft.engine.files.peft_tensors import Adapter, StateTensor, match, read_values, to_key
from weft.engine.files.tensors import read_contents

Q0 = "model.layers.0.self_attn.q_proj"
V1 = "model.layers.1.self_attn.v_proj"
ANY = PeftConfig(2, 8.0, None)


def fit(tensors: dict[str, np.ndarray], config: PeftConfig = ANY) -> Adapter:
    return match(config, read_contents(BytesIO(save(tensors))).tensors, SPANS)


def without(name: str) -> dict[str, np.ndarray]:
    return {other: values for other, values in make_tensors().items() if other != name}


def test_every_tensor_of_the_trained_families_is_made() -> None:
    adapter = fit(make_tensors(("self_attn.q_proj", "lm_head")))
    shapes = {tensor.name: tensor.shape for tensor in adapter.tensors}
    assert len(shapes) == 2 * (3 * 2 + 1)
    assert shapes[f"{Q0}.lora_a"] == (2, 6)
    assert shapes[f"{Q0}.lora_b"] == (8, 2)
    assert shapes["lm_head.lora_b"] == (12, 2)
    assert adapter.families == {"attn", "unembed"}
    assert adapter.unembed_site == "lm_head"


def test_a_module_that_the_adapter_leaves_alone_gets_zeros() -> None:
    made = {tensor.name: tensor.source for tensor in fit(make_tensors()).tensors}
    assert made["model.layers.1.self_attn.o_proj.lora_a"] is None
    assert made[f"{V1}.lora_a"] is not None


def test_names_go_there_and_back() -> None:
    assert to_key(f"{Q0}.lora_a") == key(Q0, "A")
    made = {to_key(tensor.name) for tensor in fit(make_tensors()).tensors if tensor.source}
    assert made == set(make_tensors())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_values_are_converted_exactly(dtype: torch.dtype) -> None:
    values = torch.randn(8, 2, generator=torch.Generator().manual_seed(0)).to(dtype)
    file = BytesIO(save_torch({"w": values}))
    tensor = StateTensor("w", (8, 2), read_contents(file).tensors["w"])
    (found,) = read_values(file, tensor)
    assert found.tobytes() == values.float().numpy().tobytes()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    file = BytesIO(save({"w": np.array([[1, value]], np.float32)}))
    tensor = StateTensor(f"{Q0}.lora_a", (1, 2), read_contents(file).tensors["w"])
    with pytest.raises(BadRequest, match="is not finite") as error:
        list(read_values(file, tensor))
    assert error.value.code == "non_finite"


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        pytest.param({}, "no tensors", id="empty"),
        pytest.param(without(key(Q0, "A")), f"lacks '{key(Q0, 'A')}'", id="no A"),
        pytest.param(without(key(V1, "B")), f"lacks '{key(V1, 'B')}'", id="no B"),
        pytest.param(
            {
                name: values
                for name, values in make_tensors().items()
                if "layers.1.self_attn.v" not in name
            },
            "in other layers",
            id="a layer is missing",
        ),
        pytest.param(make_tensors(rank=3), r"is \(3, 6\), not \(2, 6\)", id="rank"),
        pytest.param(
            {**make_tensors(), key(Q0, "B"): np.zeros((2, 8), np.float32)},
            r"is \(2, 8\), not \(8, 2\)",
            id="transposed",
        ),
        pytest.param(
            {**make_tensors(), key(Q0, "A"): np.zeros((2, 6), np.float64)}, "is F64", id="wide"
        ),
        pytest.param(
            {**make_tensors(), key("model.layers.0.mlp.router", "A"): np.zeros((2, 6))},
            "router.*this model has sites in lm_head, o_proj",
            id="no such module",
        ),
        pytest.param({"base_model.model.x.lora_embedding_A": np.zeros(1)}, "embeddings", id="emb"),
        pytest.param({f"{Q0}.lora_magnitude_vector": np.zeros(1)}, "DoRA", id="DoRA"),
        pytest.param({f"base_model.model.{Q0}.bias": np.zeros(1)}, "biases", id="bias"),
        pytest.param(
            {"base_model.model.lm_head.base_layer.weight": np.zeros(1)},
            "save_embedding_layers=False",
            id="base weights",
        ),
        pytest.param(
            {"base_model.model.lm_head.modules_to_save.weight": np.zeros(1)},
            "whole modules",
            id="modules to save",
        ),
        pytest.param({"../../etc/passwd": np.zeros(1)}, "no tensor of a LoRA", id="anything"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(tensors: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        fit(tensors)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (("q_proj",), "v_proj.*is not among its target_modules"),
        (("q_proj", "v_proj", "o_proj"), "'o_proj', and the adapter has no tensors of"),
        ((Q0, "v_proj"), "layers.1.self_attn.q_proj.*is not among"),
    ],
)
def test_targets_and_tensors_must_agree(targets: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadRequest, match=message):
        fit(make_tensors(), PeftConfig(2, 8.0, targets))


@pytest.mark.parametrize(
    "targets",
    [
        pytest.param(("q_proj", "v_proj"), id="last parts"),
        pytest.param(("self_attn.q_proj", "v_proj", "fc"), id="more, and one that is not there"),
        pytest.param(("self_attn.q_proj", "v_proj", "proj"), id="no end of a whole part"),
    ],
)
def test_targets_may_be_ends_of_names(targets: tuple[str, ...]) -> None:
    assert fit(make_tensors(), PeftConfig(2, 8.0, targets)).families == {"attn"}


def test_a_name_may_mean_modules_that_the_adapter_leaves_alone() -> None:
    spans = [span("h.{}.attn.c_proj", "attn", 6, 8), span("h.{}.mlp.c_proj", "mlp", 6, 8)]
    zeros = {"A": np.zeros((2, 6), np.float32), "B": np.zeros((8, 2), np.float32)}
    tensors = {
        key(f"h.{layer}.attn.c_proj", half): values
        for layer in (0, 1)
        for half, values in zeros.items()
    }
    contents = read_contents(BytesIO(save(tensors)))
    adapter = match(PeftConfig(2, 8.0, ("c_proj",)), contents.tensors, spans)
    assert adapter.families == {"attn"}
