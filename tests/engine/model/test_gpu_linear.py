"""Linears by our own Triton product: where they serve, and rows that no other row changes."""

from functools import partial
from pathlib import Path

import interpreter
import pytest
import torch
from random_models import save_random_model

from weft.engine.model.decoder import Decoder
from weft.engine.model.gpu_linear import TritonLinear
from weft.engine.model.linear import BaseLinear, DenseLinear

DTYPES = [torch.bfloat16, torch.float32]
# Sums of 80 products in another order; bfloat16 keeps 8 bits.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 1e-2}


def random(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator).to(interpreter.kernel_device(), dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("accumulate", [False, True])
def test_it_computes_what_a_dense_linear_does(dtype: torch.dtype, accumulate: bool) -> None:
    weight, bias = random(48, 80, dtype=dtype), random(48, dtype=dtype, seed=1)
    x, dy = random(9, 80, dtype=dtype, seed=2), random(48, 9, dtype=dtype, seed=3).t()
    found, dense = TritonLinear(weight, bias), DenseLinear(weight.float(), bias.float())

    for mine, theirs in (
        (found.forward(x, torch.ones_like(dy).contiguous(), accumulate), dense.forward(x.float())),
        (
            found.backward_input(dy, torch.ones_like(x), accumulate),
            dense.backward_input(dy.float()),
        ),
    ):
        exact = theirs + accumulate
        assert (mine.float() - exact).norm() <= TOLERANCE[dtype] * exact.norm()
    assert found.shape == dense.shape
    assert found.shard == dense.shard


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_decode_row_has_the_bits_of_a_train_row(dtype: torch.dtype) -> None:
    linear = TritonLinear(random(200, 80, dtype=dtype), random(200, dtype=dtype, seed=1))
    x = random(150, 80, dtype=dtype, seed=2)
    trained = linear.forward(x)

    for row in (0, 63, 64, 149):
        assert torch.equal(linear.forward(x[row : row + 1])[0], trained[row])


@pytest.mark.parametrize(
    ("row_tile", "uses_triton", "kind"),
    [
        pytest.param(16, True, TritonLinear, id="deterministic by triton"),
        pytest.param(0, True, DenseLinear, id="by triton"),
        pytest.param(16, False, DenseLinear, id="deterministic"),
        pytest.param(0, False, DenseLinear, id="plain"),
    ],
)
def test_a_decoder_multiplies_by_it_in_deterministic_mode_on_the_triton_kernels(
    tmp_path: Path, row_tile: int, uses_triton: bool, kind: type[BaseLinear]
) -> None:
    save_random_model(tmp_path, num_layers=1)
    decoder = Decoder.load(tmp_path, row_tile=row_tile, uses_triton=uses_triton)
    (layer,) = decoder._layers

    groups = (layer.qkv, layer.o, layer.gate_up, layer.down)
    assert {type(base) for group in groups for base in group.bases} == {kind}
    assert type(decoder.head) is kind


@pytest.mark.skipif(interpreter.IS_INTERPRETED, reason="memory of a CUDA device")
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dense_linear_adds_to_rows_that_lie_apart_without_memory_of_its_own(
    dtype: torch.dtype,
) -> None:
    linear, x = DenseLinear(random(512, 256, dtype=dtype)), random(300, 256, dtype=dtype)
    wide, dx = random(300, 3, 512, dtype=dtype), torch.zeros_like(x)
    products = (
        partial(linear.forward, x, wide[:, 1], accumulate=True),
        partial(linear.backward_input, wide[:, 0], dx, accumulate=True),
    )
    for product in products:
        product()  # the library takes its workspace once
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        product()
        assert torch.cuda.max_memory_allocated() == before
