"""The paged cache as the engine asks for it on a GPU, against the form for a CPU."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import interpreter
import numpy as np
import pytest
import torch
from attention_helpers import random_rows
from sampling_helpers import Bench, Facts, V, prompt_of, request, run, tokens_of
from torch import Tensor

from weft.engine.model.attention import Attention
from weft.engine.model.attention_form import AttentionForm
from weft.engine.sampling.gpu_paged import TritonPagedAttention
from weft.engine.sampling.kv_cache import KVCache, PagedAttention
from weft.engine.sampling.open_attention import paged_attentions

FORMS = [
    pytest.param(None, id="none"),
    pytest.param(AttentionForm(0.4), id="scaled"),
    pytest.param(AttentionForm(0.4, window=4), id="window"),
]


@pytest.fixture(scope="module")
def device() -> torch.device:
    return interpreter.kernel_device()


def two_steps(
    device: torch.device, form: AttentionForm | None, *, uses_triton: bool
) -> list[Tensor]:
    """A prefill beside a whole sequence, then a token of one and some of the other."""
    cache = KVCache(Facts(), 8, 4, device=device)
    model: Any = SimpleNamespace(uses_triton=uses_triton)
    attentions = paged_attentions(model, cache, is_deterministic=False)
    tables, outs = np.array([[6, 2, 3, 0], [1, 4, 7, 5]]), []
    for cached, fresh in [([0, 0], [10, 5]), ([10, 5], [1, 9])]:
        rows = [x.to(device) for x in random_rows(sum(fresh) + 3, 4, 2, 16, torch.float32)]
        attention: Attention = attentions(tables, np.array(cached), np.array(fresh), padding=3)
        outs.append(attention.attend(1, rows[0], rows[1], rows[2], form))
    return outs


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_that_of_paged_attention(
    form: AttentionForm | None, device: torch.device
) -> None:
    found = two_steps(device, form, uses_triton=True)
    for x, y in zip(found, two_steps(device, form, uses_triton=False), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-4, atol=2e-6)  # float32 sums in another order


def test_the_model_chooses(device: torch.device) -> None:
    cache = KVCache(Facts(), 8, 4, device=device)
    step = np.array([[0]]), np.array([0]), np.array([1])
    for uses_triton, kind in ((True, TritonPagedAttention), (False, PagedAttention)):
        model: Any = SimpleNamespace(uses_triton=uses_triton)
        assert isinstance(paged_attentions(model, cache, is_deterministic=True)(*step), kind)


@pytest.mark.skipif(not interpreter.IS_INTERPRETED, reason="the model is on the CPU")
def test_generation_by_the_kernels_is_that_by_torch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench.random(tmp_path, vocab_size=V, max_context=64, num_layers=1)
    requests = [
        request(length, prompt_of(length), max_tokens=4, temperature=0.0) for length in (1, 9)
    ]
    expected = run(bench.generator(), *requests)
    monkeypatch.setattr(bench.model, "uses_triton", True)
    found = run(bench.generator(), *requests)
    for each in requests:
        assert tokens_of(found[each.key]) == tokens_of(expected[each.key])
