"""Small random checkpoints as transformers writes them, for the tests of everybody."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 10000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
_KINDS = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}


def save_random_model(
    path: Path,
    kind: str = "qwen3",
    *,
    seed: int = 0,
    vocab_size: int = 97,
    width: int = 32,
    num_layers: int = 2,
    num_heads: int = 4,
    num_kv_heads: int = 2,
    head_dim: int = 16,
    ffn_width: int = 48,
    max_context: int = 256,
    is_tied: bool = False,
    max_shard_size: str = "5GB",
    dtype: torch.dtype = torch.float32,
    **fields: Any,
) -> Any:
    """Write a random model to `path` and return the transformers module, in eval mode.

    Norm weights and biases are random too, so that leaving one out shows. `fields` go to the
    transformers config as they are, for instance `rope_parameters=LLAMA3_ROPE`.
    """
    config_class, model_class = _KINDS[kind]
    if kind == "mistral":
        fields.setdefault("sliding_window", None)
    config = config_class(
        vocab_size=vocab_size,
        hidden_size=width,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_kv_heads,
        head_dim=head_dim if kind != "qwen2" else width // num_heads,
        intermediate_size=ffn_width,
        max_position_embeddings=max_context,
        tie_word_embeddings=is_tied,
        **fields,
    )
    model = model_class(config).to(dtype).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_(1 + 0.1 * noise if "norm" in name else 0.1 * noise)
    model.save_pretrained(path, max_shard_size=max_shard_size)
    return model
