"""A decoder on the Triton kernels beside one on PyTorch: values, gradients, checkpoints."""

from pathlib import Path
from typing import Any

import interpreter
import pytest
import torch
from kernel_errors import relative_error
from random_models import save_random_model
from torch import Tensor

from weft.engine.model.attention import PackedAttention
from weft.engine.model.checkpoint_files import read_weights
from weft.engine.model.config import ModelConfig
from weft.engine.model.decoder import Decoder
from weft.engine.model.gpu_pieces import TritonPieces
from weft.engine.model.linear import FrozenLinears
from weft.engine.model.pieces import TorchPieces

BOUNDS = [0, 4, 5]  # rows of the two sequences
MODELS = [
    pytest.param("qwen3", {}, id="qwen3"),  # norms of heads
    pytest.param("llama", {"head_dim": 6, "ffn_width": 37}, id="llama, odd widths"),
]


def load(path: Path, dtype: torch.dtype, uses_triton: bool, is_exact: bool = False) -> Decoder:
    """The model in its dtype; `is_exact`: with the same weights in float32."""
    config, device = ModelConfig.from_directory(path), interpreter.kernel_device()
    weights = read_weights(path, config, device=device, dtype=dtype)
    if is_exact:
        weights = {name: weight.float() for name, weight in weights.items()}
    decoder = Decoder(config, weights, uses_triton=uses_triton)
    decoder.embed.requires_grad_()
    return decoder


def run(decoder: Decoder, **options: Any) -> list[Tensor]:
    """Hidden states of two sequences and the gradient of the embedding."""
    generator, num_rows = torch.Generator().manual_seed(0), BOUNDS[-1]
    tokens = torch.randint(0, 97, (num_rows,), generator=generator).to(decoder.device)
    positions = torch.tensor([0, 1, 2, 3, 0], device=decoder.device)
    attention = PackedAttention(BOUNDS, decoder.device)
    hidden = decoder.forward(tokens, positions, attention, FrozenLinears(), **options)
    weights = torch.randn(num_rows, decoder.config.width, generator=generator)
    weights = weights.to(hidden.dtype).to(hidden.device)
    return [hidden.detach(), *torch.autograd.grad(hidden, decoder.embed, weights)]


@pytest.mark.parametrize(("kind", "fields"), MODELS)
def test_in_float32_both_forms_agree(tmp_path: Path, kind: str, fields: dict[str, Any]) -> None:
    save_random_model(tmp_path, kind, **fields)
    plain = run(load(tmp_path, torch.float32, uses_triton=False))
    found = run(load(tmp_path, torch.float32, uses_triton=True))
    for mine, theirs in zip(found, plain, strict=True):
        assert relative_error(mine, theirs) < 3e-6  # some tens of operations of 6e-8 each


@pytest.mark.parametrize(("kind", "fields"), MODELS)
def test_in_bfloat16_the_error_is_at_most_twice_that_of_pytorch(
    tmp_path: Path, kind: str, fields: dict[str, Any]
) -> None:
    save_random_model(tmp_path, kind, **fields)
    # A ten thousandth of the error in bfloat16 is as good as none.
    exact = run(load(tmp_path, torch.bfloat16, uses_triton=False, is_exact=True))
    plain = run(load(tmp_path, torch.bfloat16, uses_triton=False))
    found = run(load(tmp_path, torch.bfloat16, uses_triton=True))
    for mine, theirs, oracle in zip(found, plain, exact, strict=True):
        assert mine.dtype == torch.bfloat16
        assert relative_error(mine, oracle) <= 2 * relative_error(theirs, oracle)


@pytest.mark.parametrize("layers", [{1}, {0, 1}])
def test_checkpointed_layers_change_no_bit(tmp_path: Path, layers: set[int]) -> None:
    save_random_model(tmp_path, width=16, num_heads=2, num_kv_heads=1, ffn_width=16)
    decoder = load(tmp_path, torch.bfloat16, uses_triton=True)
    plain, saved = run(decoder), run(decoder, checkpoint_layers=layers)
    assert all(torch.equal(a, b) for a, b in zip(plain, saved, strict=True))


@pytest.mark.parametrize("used", [(0,), (1,), (0, 1)])
def test_a_sum_and_its_norm_may_be_used_apart(used: tuple[int, ...]) -> None:
    device, generator = interpreter.kernel_device(), torch.Generator().manual_seed(0)
    x, delta = (torch.randn(3, 16, generator=generator).to(device) for _ in range(2))
    weight, gradients = 1 + 0.1 * x[0], []
    for pieces in (TorchPieces(), TritonPieces()):
        leaves = [x.clone().requires_grad_(), delta.clone().requires_grad_()]
        both = pieces.add_rms_norm(leaves[0], leaves[1], weight, 1e-5)
        total = torch.stack([(both[place] * (1 + place)).sum() for place in used]).sum()
        gradients.append(torch.autograd.grad(total, leaves))
    for mine, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
