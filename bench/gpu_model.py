"""Qwen3 models with random weights, made on the device: no checkpoint is read or written."""

import torch

from weft.engine.model.checkpoint_files import expected_tensors
from weft.engine.model.config import ModelConfig
from weft.engine.model.decoder import Decoder

_QWEN3 = {
    "model_type": "qwen3",
    "vocab_size": 151_936,
    "head_dim": 128,
    "num_key_value_heads": 8,
    "max_position_embeddings": 40_960,
    "rope_theta": 1_000_000.0,
}
MODELS: dict[str, dict[str, object]] = {
    "Qwen3-0.6B": _QWEN3
    | {
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "intermediate_size": 3072,
        "num_hidden_layers": 28,
        "tie_word_embeddings": True,
    },
    "Qwen3-4B": _QWEN3
    | {
        "hidden_size": 2560,
        "num_attention_heads": 32,
        "intermediate_size": 9728,
        "num_hidden_layers": 36,
        "tie_word_embeddings": True,
    },
    "Qwen3-8B": _QWEN3
    | {
        "hidden_size": 4096,
        "num_attention_heads": 32,
        "intermediate_size": 12288,
        "num_hidden_layers": 36,
        "tie_word_embeddings": False,
    },
}
ROW_TILE = 256  # of deterministic mode, as the worker has it on a CPU
TINY = _QWEN3 | {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "tie_word_embeddings": True,
}


def random_decoder(fields: dict[str, object], device: torch.device) -> tuple[Decoder, Decoder]:
    """A model by its config.json, and the same weights in deterministic mode.

    Of bfloat16 and by Triton on CUDA, of float32 and by PyTorch on a CPU.
    """
    is_cuda = device.type == "cuda"
    dtype = torch.bfloat16 if is_cuda else torch.float32
    config = ModelConfig.from_fields(fields)
    torch.manual_seed(0)
    weights = {
        name: torch.ones(shape, device=device, dtype=dtype)
        if len(shape) == 1
        else torch.randn(shape, device=device, dtype=dtype).mul_(0.02)
        for name, shape in expected_tensors(config).items()
    }
    free, fixed = (
        Decoder(config, weights, row_tile=row_tile, uses_triton=is_cuda)
        for row_tile in (0, ROW_TILE)
    )
    return free, fixed


def matmul_parameters(model: Decoder) -> int:
    """Weights that every token is multiplied with: a product costs two operations for each."""
    return sum(site.in_features * site.out_features for site in model.sites)


def activation_bytes(model: Decoder) -> int:
    """About what one token keeps for backward in all layers that are not recomputed."""
    config = model.config
    kept = 6 * config.width + 3 * config.q_width + 4 * config.kv_width + 3 * config.ffn_width
    return config.num_layers * kept * model.dtype.itemsize
