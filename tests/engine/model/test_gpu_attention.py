"""Attention of packed sequences as the engine asks for it on a GPU, against `PackedAttention`."""

from types import SimpleNamespace
from typing import Any

import interpreter
import numpy as np
import pytest
import torch
from attention_helpers import random_rows
from torch import Tensor

from weft.engine.model.attention import Attention, PackedAttention
from weft.engine.model.attention_form import AttentionForm
from weft.engine.model.gpu_attention import TritonAttention, TritonAttentions
from weft.engine.model.open_attention import packed_attentions

LENGTHS, PADDING = [9, 0, 1, 20], 2
FORMS = [
    pytest.param(None, id="none"),
    pytest.param(AttentionForm(0.4, window=100), id="scaled"),
    pytest.param(AttentionForm(0.4, window=4), id="window"),
    pytest.param(AttentionForm(0.4, softcap=2.0), id="softcap"),
]


@pytest.fixture(scope="module")
def device() -> torch.device:
    return interpreter.kernel_device()


def opened(device: torch.device, *, uses_triton: bool = True) -> Any:
    model: Any = SimpleNamespace(uses_triton=uses_triton, device=device)
    return packed_attentions(model, is_deterministic=True)


def output_and_gradients(
    attention: Attention, rows: list[Tensor], form: AttentionForm | None
) -> list[Tensor]:
    leaves = [x.clone().requires_grad_() for x in rows[:3]]
    out = attention.attend(0, leaves[0], leaves[1], leaves[2], form)
    return [out.detach(), *torch.autograd.grad(out, leaves, rows[3])]


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_that_of_packed_attention(
    form: AttentionForm | None, device: torch.device
) -> None:
    rows = [x.to(device) for x in random_rows(sum(LENGTHS) + PADDING, 4, 2, 16, torch.float32)]
    bounds = np.cumsum([0, *LENGTHS])
    found = output_and_gradients(opened(device)(bounds), rows, form)
    expected = output_and_gradients(PackedAttention(bounds, device), rows, form)
    for x, y in zip(found, expected, strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=2e-6)  # float32 sums in another order


def test_batches_take_turns_in_the_same_memory(device: torch.device) -> None:
    rows = [x.to(device) for x in random_rows(30, 2, 1, 16, torch.float32)]
    attentions = opened(device)
    first = output_and_gradients(attentions(np.array([0, 30])), rows, None)
    output_and_gradients(attentions(np.array([0, 3, 3, 29])), rows, None)
    again = output_and_gradients(attentions(np.array([0, 30])), rows, None)
    assert all(torch.equal(x, y) for x, y in zip(first, again, strict=True))


def test_a_gradient_after_the_next_batch_was_begun_is_refused(device: torch.device) -> None:
    rows = [x.to(device) for x in random_rows(9, 2, 1, 16, torch.float32)]
    attentions = opened(device)
    out = attentions(np.array([0, 9])).attend(0, rows[0].requires_grad_(), rows[1], rows[2])
    attentions(np.array([0, 4, 9])).attend(0, rows[0], rows[1], rows[2])
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        out.sum().backward()


def test_a_batch_of_nobody_is_zero(device: torch.device) -> None:
    rows = [x.to(device) for x in random_rows(2, 2, 1, 16, torch.float32)]
    for bounds in ([0], [0, 0]):
        assert not opened(device)(bounds).attend(0, rows[0], rows[1], rows[2]).any()


def test_the_model_chooses(device: torch.device) -> None:
    assert isinstance(opened(device)([0, 1]), TritonAttention)
    assert isinstance(opened(device, uses_triton=False)([0, 1]), PackedAttention)


def test_pytorchs_own_kernel_serves_in_default_mode_only(device: torch.device) -> None:
    assert TritonAttentions(device, is_deterministic=True).varlen is None
    assert TritonAttentions(device, is_deterministic=False).varlen is not None


def test_pytorchs_own_kernel_gets_the_rows_of_sequences_alone() -> None:
    class Fake:
        """Stands for PyTorch's function, which needs a GPU."""

        def options(self, q_THK: Tensor, k_TGK: Tensor) -> dict[str, Any]:
            return {"window_size": (-1, 0)}

        def attend(self, q: Tensor, k: Tensor, v: Tensor, *rest: Any) -> Tensor:
            cu_seqlens, longest, options = rest
            assert cu_seqlens.dtype == torch.int32
            assert cu_seqlens.tolist() == [0, 9, 9, 10, 30]
            assert (longest, options) == (20, {"window_size": (-1, 0), "scale": 0.25})
            assert len(q) == len(k) == len(v) == 30
            return q * 2

    owner = TritonAttentions("cpu", is_deterministic=False)
    owner.varlen = Fake()  # type: ignore[assignment]
    q, k, v, dout = random_rows(32, 4, 2, 16, torch.float32)
    q.requires_grad_()
    out = owner(np.cumsum([0, *LENGTHS])).attend(0, q, k, v)
    (dq,) = torch.autograd.grad(out, q, dout)
    assert torch.equal(out[:30], 2 * q[:30])
    assert torch.equal(dq[:30], 2 * dout[:30])
    assert not out[30:].any()
    assert not dq[30:].any()
