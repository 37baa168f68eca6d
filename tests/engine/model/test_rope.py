"""Rotary positions against transformers' tables and the definition as a rotation."""

from pathlib import Path

import pytest
import torch
from random_models import save_random_model
from rope_examples import ROPES

from weft.engine.model.config import ModelConfig
from weft.engine.model.rope import Rope, inverse_frequencies, rope_bytes, rotate

CPU = torch.device("cpu")


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_tables_are_those_of_transformers(tmp_path: Path, rope: dict[str, object]) -> None:
    model = save_random_model(tmp_path, "llama", head_dim=64, rope_parameters=rope)
    positions = torch.tensor([0, 1, 63, 64, 200, 255])

    cosines, sines = Rope(ModelConfig.from_directory(tmp_path), CPU, torch.float32).at(positions)

    expected = model.model.rotary_emb(torch.zeros(1), positions[None])
    # Float32 powers and the blend are rounded in another order: 255 radians of 24 bits.
    for found, wanted in zip((cosines, sines), expected, strict=True):
        torch.testing.assert_close(found[:, 0], wanted[0, :, :32], rtol=0, atol=5e-5)


@pytest.mark.parametrize("rope", ROPES.values(), ids=ROPES.keys())
def test_frequencies_are_those_of_transformers(tmp_path: Path, rope: dict[str, object]) -> None:
    model = save_random_model(tmp_path, "llama", head_dim=64, rope_parameters=rope)

    frequencies = inverse_frequencies(ModelConfig.from_directory(tmp_path))

    # Float32 powers and the blend are rounded in another order.
    torch.testing.assert_close(frequencies, model.model.rotary_emb.inv_freq, rtol=1e-6, atol=0)


def test_the_tables_take_as_many_bytes_as_planned() -> None:
    rope = small_rope(torch.bfloat16)

    held = sum(part.nbytes for part in rope.at(torch.arange(32)))

    assert held == rope_bytes(SMALL, torch.bfloat16)


SMALL = ModelConfig(
    vocab_size=9,
    width=16,
    num_layers=1,
    num_heads=2,
    num_kv_heads=1,
    head_dim=8,
    ffn_width=16,
    max_context=32,
)


def small_rope(dtype: torch.dtype = torch.float32) -> Rope:
    return Rope(SMALL, CPU, dtype)


def test_pairs_half_a_head_apart_turn_by_position_times_frequency() -> None:
    x = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    positions = torch.tensor([0, 5, 31])
    angles = positions[:, None, None] * 10000.0 ** -(torch.arange(4) / 4)

    y = rotate(x, *small_rope().at(positions))

    turned = torch.complex(x[..., :4], x[..., 4:]) * torch.polar(torch.ones(()), angles)
    torch.testing.assert_close(y, torch.cat([turned.real, turned.imag], -1), rtol=1e-5, atol=1e-6)


def test_the_gradient_is_the_rotation_back() -> None:
    x = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0)).requires_grad_()
    angles = small_rope().at(torch.tensor([1, 5, 31]))

    y = rotate(x, *angles)
    (dx,) = torch.autograd.grad(y, x, y.detach())

    torch.testing.assert_close(dx, x.detach(), rtol=1e-5, atol=1e-6)


def test_a_position_has_the_same_bits_wherever_it_stands() -> None:
    x = torch.randn(1, 2, 8, generator=torch.Generator().manual_seed(0))
    alone = rotate(x, *small_rope().at(torch.tensor([7])))

    crowd = rotate(x.expand(21, 2, 8), *small_rope().at(torch.arange(21) % 8))

    assert torch.equal(crowd[7:16:8], alone.expand(2, 2, 8))


def test_tables_take_the_dtype_of_the_model() -> None:
    cosines, sines = small_rope(torch.bfloat16).at(torch.tensor([3]))

    assert (cosines.dtype, sines.dtype) == (torch.bfloat16, torch.bfloat16)
