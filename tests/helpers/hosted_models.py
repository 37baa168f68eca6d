"""Tiny random checkpoints of many architectures, and what becomes of each here."""

import json
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

VOCABULARY = 97
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 16}
MAMBA = {"mamba_n_heads": 4, "mamba_d_head": 16, "mamba_d_state": 8, "mamba_chunk_size": 16}
DELTA = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FFN = ("gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class Family:
    """One architecture: its config beyond the sizes all share, and what is expected of it."""

    runs_on: str
    adapted: tuple[str, ...]  # last part of the names of its sites, the unembedding left out
    config: dict[str, Any] = field(default_factory=dict)
    targets: tuple[str, ...] = ("attn", "mlp", "unembed")
    frozen: tuple[str, ...] = ()  # reasons


MOE = ("experts", "router")
ATTN_ONLY = ("attn", "unembed")
FAMILIES = {
    "gemma2": Family("packed", ATTENTION + FFN, {"head_dim": 8, "sliding_window": 8}),
    "gemma3_text": Family(
        "packed",
        ATTENTION + FFN,
        {
            "head_dim": 8,
            "sliding_window": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma4_text": Family(
        "packed",
        ATTENTION + FFN,
        {
            "head_dim": 8,
            "global_head_dim": 16,
            "hidden_size_per_layer_input": 0,
            "num_kv_shared_layers": 0,
            "sliding_window": 8,
        },
    ),
    "phi": Family("packed", ("q_proj", "k_proj", "v_proj", "dense", "fc1", "fc2")),
    "phi3": Family("packed", ("qkv_proj", "o_proj", "gate_up_proj", "down_proj")),
    "olmo2": Family("packed", ATTENTION + FFN),
    "granite": Family(
        "packed", ATTENTION + FFN, {"logits_scaling": 4.0, "attention_multiplier": 0.3}
    ),
    "cohere2": Family("packed", ATTENTION + FFN, {"head_dim": 8, "sliding_window": 8}),
    "gpt2": Family(
        "packed",
        ("c_attn", "c_proj", "c_fc"),
        {"n_inner": 48, "num_key_value_heads": None, "intermediate_size": None},
    ),
    "gpt_neox": Family(
        "packed",
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        {"num_key_value_heads": None},
    ),
    "gpt_oss": Family(
        "packed",
        ATTENTION,
        {"head_dim": 8, "num_local_experts": 4, "sliding_window": 8, **EXPERTS},
        ATTN_ONLY,
        MOE,
    ),
    "mixtral": Family("packed", ATTENTION, {"num_local_experts": 4}, ATTN_ONLY, MOE),
    "qwen3_moe": Family(
        "packed", ATTENTION, {"num_experts": 4, "head_dim": 8, **EXPERTS}, ATTN_ONLY, MOE
    ),
    "deepseek_v3": Family(
        "packed",
        ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj", *FFN),
        {
            "n_routed_experts": 4,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "v_head_dim": 8,
            "qk_nope_head_dim": 8,
            "qk_rope_head_dim": 8,
            "num_key_value_heads": 4,
            **EXPERTS,
        },
        frozen=MOE,
    ),
    "qwen3_next": Family(
        "sequential",
        ("in_proj_qkvz", "in_proj_ba", "out_proj", *ATTENTION, *FFN),
        {
            "num_experts": 4,
            "shared_expert_intermediate_size": 16,
            "head_dim": 8,
            "layer_types": ["linear_attention", "full_attention"],
            **DELTA,
            **EXPERTS,
        },
        frozen=("Conv1d is no linear layer", *MOE),
    ),
    "jamba": Family(
        "sequential",
        ("in_proj", "x_proj", "out_proj", *ATTENTION, *FFN),
        {
            "num_experts": 2,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "expert_layer_period": 2,
            "expert_layer_offset": 1,
            "mamba_d_state": 8,
        },
        frozen=(
            "Conv1d is no linear layer",
            "JambaMambaMixer is no linear layer",
            "not called once for all rows of a pass",
            *MOE,
        ),
    ),
    "bamba": Family(
        "sequential",
        ("in_proj", "out_proj", *ATTENTION, *FFN),
        {"attn_layer_indices": [1], **MAMBA},
        frozen=("Conv1d is no linear layer",),
    ),
    "falcon_h1": Family(
        "sequential",
        ("in_proj", "out_proj", *ATTENTION, *FFN),
        {"head_dim": 8, "mamba_d_ssm": 32, **MAMBA, "mamba_d_head": 8},
        frozen=("Conv1d is no linear layer",),
    ),
    "lfm2": Family(
        "sequential",
        ("in_proj", "out_proj", "q_proj", "k_proj", "v_proj", "w1", "w2", "w3"),
        {"layer_types": ["conv", "full_attention"]},
        frozen=("Conv1d is no linear layer",),
    ),
    "granitemoehybrid": Family(
        "sequential",
        ("in_proj", "out_proj", *ATTENTION, "input_linear", "output_linear"),
        {
            "layer_types": ["mamba", "attention"],
            "num_local_experts": 2,
            "num_experts_per_tok": 1,
            "shared_intermediate_size": 16,
            **MAMBA,
        },
        frozen=("Conv1d is no linear layer", *MOE),
    ),
    "mamba2": Family(
        "sequential",
        ("in_proj", "out_proj"),
        {
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 8,
            "n_groups": 2,
            "chunk_size": 16,
            "expand": 2,
        },
        ATTN_ONLY,
        ("Conv1d is no linear layer",),
    ),
    "llama4_text": Family(
        "sequential",
        ATTENTION + FFN,
        {
            "num_local_experts": 2,
            "head_dim": 8,
            "intermediate_size_mlp": 48,
            "attention_chunk_size": 16,
        },
        frozen=MOE,
    ),
    "bloom": Family(
        "sequential",
        ("query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"),
        {"n_head": 4, "n_layer": 2},
    ),
    "gptj": Family(
        "sequential",
        ("q_proj", "k_proj", "v_proj", "out_proj", "fc_in", "fc_out"),
        {"n_embd": 32, "rotary_dim": 8},
    ),
}


def save_family(path: Path, model_type: str, **fields: Any) -> Path:
    """Write a random checkpoint; norms, biases and all else are random, too."""
    family = FAMILIES.get(model_type)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 256,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
    }
    values = sizes | (family.config if family else {}) | fields
    config = AutoConfig.for_model(
        model_type, **{key: value for key, value in values.items() if value is not None}
    )
    module = AutoModelForCausalLM.from_config(config)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.2 * noise)
    module.save_pretrained(path)
    return path


def save_mxfp4(path: Path) -> dict[str, Tensor]:
    """A gpt-oss with packed experts, as it is published; returns their weights by name.

    Two 4-bit floats to a byte, the lower half first; 32 of them share a power of two. Source: OCP
    Microscaling Formats (MX) Specification v1.0, sections 5.3.3 and 6.3.
    """
    save_family(path, "gpt_oss", hidden_size=64, intermediate_size=64, head_dim=16)
    tensors, random = load_file(path / "model.safetensors"), torch.Generator().manual_seed(0)
    magnitudes = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0])
    values, weights = torch.cat([magnitudes, -magnitudes]), {}
    for name in [name for name in tensors if name.endswith("experts.gate_up_proj")]:
        for part in (name, name.replace("gate_up_proj", "down_proj")):
            num_experts, in_features, out_features = tensors.pop(part).shape
            groups = (num_experts, out_features, in_features // 32)
            blocks = torch.randint(0, 256, (*groups, 16), generator=random).byte()
            scales = torch.randint(119, 123, groups, generator=random).byte()
            pairs = torch.stack([values[(blocks & 15).long()], values[(blocks >> 4).long()]], -1)
            scaled = pairs.view(*groups, 32) * torch.exp2(scales.float() - 127)[..., None]
            weights[part] = scaled.view(num_experts, out_features, in_features).transpose(1, 2)
            tensors |= {f"{part}_blocks": blocks, f"{part}_scales": scales}
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((path / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "mxfp4"}
    (path / "config.json").write_text(json.dumps(config))
    return weights


def own_module(path: Path) -> Any:
    """The checkpoint in transformers' own code, float32, frozen."""
    module = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    return module.eval().requires_grad_(False)


@contextmanager
def adapters_hooked(
    module: Any, tensors: Mapping[str, Tensor], scale: float
) -> Iterator[dict[str, Tensor]]:
    """Adapters added to a module's linears from outside; yields leaves that record gradients.

    Args:
        tensors: `<site>.lora_a` [R, D] and `<site>.lora_b` [O, R].
    """
    leaves = {name: tensor.clone().requires_grad_() for name, tensor in tensors.items()}
    with ExitStack() as stack:
        for name in {name.rsplit(".", 1)[0] for name in leaves}:
            hook = partial(_add, leaves[f"{name}.lora_a"], leaves[f"{name}.lora_b"], scale)
            stack.callback(module.get_submodule(name).register_forward_hook(hook).remove)
        yield leaves


def _add(
    lora_a: Tensor, lora_b: Tensor, scale: float, _: Any, inputs: Any, output: Tensor
) -> Tensor:
    delta: Tensor = inputs[0] @ lora_a.T @ lora_b.T
    return output + scale * delta
