"""What a state takes, and whether chunks use all of it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import Mamba2Config, Mamba2ForCausalLM, MambaConfig, MambaForCausalLM

from weft.engine.hosted.load import load_hosted
from weft.engine.hosted.model import SequentialHosted
from weft.engine.hosted.state_tensors import chunks_use_all, num_bytes
from weft.engine.model.linear import FrozenLinears

TOKENS = torch.arange(3, 15)
SMALL: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "state_size": 8,
    "num_hidden_layers": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def load(path: Path, module: Any, dtype: torch.dtype) -> SequentialHosted:
    """A recurrent model with random weights, loaded."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:
                parameter.copy_(0.1 * torch.randn(parameter.shape, generator=generator))
    module.save_pretrained(path)
    model = load_hosted(path, dtype=dtype)
    assert isinstance(model, SequentialHosted)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_code_that_starts_its_recurrence_anew_with_a_chunk_is_seen(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    # Mamba's convolution goes on, its state space does not: 4e-4 of the logits with these weights.
    model = load(tmp_path, MambaForCausalLM(MambaConfig(**SMALL)), dtype)
    assert not model.continues_in_chunks
    model.continues_in_chunks = True
    assert not chunks_use_all(model, TOKENS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_code_whose_chunks_go_on_from_the_whole_state_is_let(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    config = Mamba2Config(**SMALL, num_heads=8, head_dim=8, n_groups=2)
    model = load(tmp_path, Mamba2ForCausalLM(config), dtype)
    assert model.continues_in_chunks
    assert chunks_use_all(model, TOKENS)


def test_the_bytes_of_a_state_are_those_of_its_tensors(tmp_path: Path) -> None:
    model = load(tmp_path, MambaForCausalLM(MambaConfig(**SMALL)), torch.float32)
    state = model.new_state()
    assert num_bytes(state) == 0
    model.advance(state, TOKENS, FrozenLinears())
    # Two layers of 64 channels: 4 columns of convolution and 8 of state each.
    assert num_bytes(state) == 2 * 64 * (4 + 8) * 4 == model.state_bytes(len(TOKENS))
