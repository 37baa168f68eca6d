"""Adapters as peft writes them, for a base model of two layers, without any model."""

import json
from typing import Any

import numpy as np
from safetensors.numpy import save

from weft.client.worker_messages import SiteSpan

CONFIG = {
    "base_model_name_or_path": "org/base",
    "bias": "none",
    "lora_alpha": 8,
    "lora_dropout": 0.0,
    "peft_type": "LORA",
    "r": 2,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}
LAYERS = [0, 1]


def span(name: str, family: str, width: int, out: int, layers: list[int] | None = None) -> SiteSpan:
    return SiteSpan(
        name=name,
        layers=LAYERS if layers is None else layers,
        family=family,
        in_features=width,
        out_features=out,
    )


SPANS = [
    span("model.layers.{}.self_attn.q_proj", "attn", 6, 8),
    span("model.layers.{}.self_attn.v_proj", "attn", 6, 4),
    span("model.layers.{}.self_attn.o_proj", "attn", 8, 6),
    span("model.layers.{}.mlp.up_proj", "mlp", 6, 10),
    span("lm_head", "unembed", 6, 12, []),
]


def key(module: str, half: str) -> str:
    return f"base_model.model.{module}.lora_{half}.weight"


def make_tensors(
    modules: tuple[str, ...] = ("self_attn.q_proj", "self_attn.v_proj"), rank: int = 2
) -> dict[str, np.ndarray]:
    """Random values for some modules of both layers; "lm_head" stands for itself."""
    generator = np.random.default_rng(0)
    shapes = {part.name.removeprefix("model.layers.{}."): part for part in SPANS}
    found = {}
    for module in modules:
        part = shapes[module]
        for name in [part.name.format(layer) for layer in part.layers] or [part.name]:
            sizes = {"A": (rank, part.in_features), "B": (part.out_features, rank)}
            for half, shape in sizes.items():
                found[key(name, half)] = generator.standard_normal(shape, np.float32)
    return found


def make_adapter(tensors: dict[str, np.ndarray] | None = None, **config: Any) -> dict[str, bytes]:
    """The two files of an adapter, by name."""
    return {
        "adapter_model.safetensors": save(make_tensors() if tensors is None else tensors),
        "adapter_config.json": json.dumps({**CONFIG, **config}).encode(),
    }
