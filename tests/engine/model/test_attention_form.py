"""Windows, capped scores and sinks: in packed batches and in pages, against the plain formula."""

import itertools

import numpy as np
import pytest
import torch
from sampling_helpers import Facts
from torch import Tensor

from weft.engine.model.attention import PackedAttention
from weft.engine.model.attention_form import AttentionForm
from weft.engine.sampling.kv_cache import KVCache, PagedAttention

H, G, K, SIZE = 4, 2, 8, 4
LENGTHS = (5, 300, 1, 17)
SINKS = torch.tensor([0.5, -1.0, 2.0, 0.0])
FORMS = [
    pytest.param(AttentionForm(0.2), id="scale"),
    pytest.param(AttentionForm(K**-0.5, window=3), id="window"),
    pytest.param(AttentionForm(K**-0.5, window=64), id="window longer than most"),
    pytest.param(AttentionForm(0.5, softcap=1.5), id="softcap"),
    pytest.param(AttentionForm(K**-0.5, sinks_H=SINKS), id="sinks"),
    pytest.param(AttentionForm(0.3, window=9, softcap=2.0, sinks_H=SINKS), id="all"),
]


def random_rows(num_rows: int) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn(num_rows, heads, K, generator=random) for heads in (H, G, G, H)]


def expected(q_THK: Tensor, k_TGK: Tensor, v_TGK: Tensor, form: AttentionForm) -> Tensor:
    """One sequence, head by head and query by query."""
    rows = []
    for query in range(len(q_THK)):
        first = max(0, query + 1 - form.window) if form.window else 0
        for head in range(H):
            group = head // (H // G)
            scores = k_TGK[first : query + 1, group] @ q_THK[query, head] * form.scale
            if form.softcap:
                scores = form.softcap * torch.tanh(scores / form.softcap)
            weights = scores.exp()
            total = weights.sum()
            if form.sinks_H is not None:
                total = total + form.sinks_H[head].double().exp()
            rows.append((weights / total) @ v_TGK[first : query + 1, group])
    return torch.stack(rows).view(len(q_THK), H, K)


@pytest.mark.parametrize("form", FORMS)
def test_packed_output_and_gradients_follow_the_formula(form: AttentionForm) -> None:
    q, k, v, dout = random_rows(sum(LENGTHS))
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out = PackedAttention(np.cumsum([0, *LENGTHS])).attend(0, q, k, v, form)
    found = (out, *torch.autograd.grad(out, (q, k, v), dout))

    parts, start = [], 0
    exact = [x.detach().double().requires_grad_() for x in (q, k, v)]
    for length in LENGTHS:
        q_THK, k_TGK, v_TGK = (x[start : start + length] for x in exact)
        parts.append(expected(q_THK, k_TGK, v_TGK, form))
        start += length
    wanted = torch.cat(parts)
    truth = (wanted, *torch.autograd.grad(wanted, exact, dout.double()))

    for mine, plain in zip(found, truth, strict=True):
        torch.testing.assert_close(mine.double(), plain, rtol=1e-4, atol=1e-5)  # float32 sums


@pytest.mark.parametrize("form", FORMS)
def test_pages_filled_in_pieces_give_the_same(form: AttentionForm) -> None:
    length, pieces = 41, (0, 13, 14, 15, 37, 38, 41)
    q, k, v, _ = random_rows(2 * length)
    cache = KVCache(Facts(num_layers=1, num_kv_heads=G, head_dim=K), 64, SIZE)
    tables = np.arange(22).reshape(2, 11)
    found = torch.empty(2, length, H, K)
    for first, last in itertools.pairwise(pieces):
        rows = torch.cat([torch.arange(first, last), length + torch.arange(first, last)])
        counts = np.array([last - first] * 2)
        step = PagedAttention(cache, tables, np.array([first, first]), counts)
        found[:, first:last] = step.attend(0, q[rows], k[rows], v[rows], form).view(2, -1, H, K)
    whole = PackedAttention([0, length, 2 * length]).attend(0, q, k, v, form)
    torch.testing.assert_close(found.view_as(whole), whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_nothing_of_a_sequence_reaches_another(form: AttentionForm) -> None:
    q, k, v, _ = random_rows(40)
    attention = PackedAttention([0, 20, 40])
    clean = attention.attend(0, q, k, v, form)
    for x in (q, k, v):
        x[:20] = torch.nan
    assert torch.equal(attention.attend(0, q, k, v, form)[20:], clean[20:])


def test_a_form_that_says_nothing_changes_no_bit() -> None:
    q, k, v, _ = random_rows(40)
    attention = PackedAttention([0, 7, 40])
    plain = attention.attend(0, q, k, v)
    assert torch.equal(attention.attend(0, q, k, v, AttentionForm(K**-0.5, window=64)), plain)


@pytest.mark.parametrize("form", FORMS)
def test_a_step_brings_nothing_to_the_device_for_its_later_layers(
    form: AttentionForm, monkeypatch: pytest.MonkeyPatch
) -> None:
    q, k, v, _ = random_rows(2)
    cache = KVCache(Facts(num_layers=2, num_kv_heads=G, head_dim=K), 64, SIZE)
    step = PagedAttention(cache, np.arange(22).reshape(2, 11), np.array([20, 3]), np.array([1, 1]))
    first = step.attend(0, q, k, v, form)
    monkeypatch.setattr(torch, "from_numpy", None)
    assert torch.equal(step.attend(1, q, k, v, form), first)
