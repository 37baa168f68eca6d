"""Gradients of a whole fused train step against `peft` and autograd, tenant by tenant."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lora_helpers import CountOps, gradient_matrices, make_run
from peft import LoraConfig, PeftModel, get_peft_model
from random_models import save_random_model
from torch import Tensor

from weft.engine.adapters.head import Head
from weft.engine.adapters.lora import LoraLinears
from weft.engine.adapters.losses import LossBatch
from weft.engine.adapters.store import AdapterStore, Run
from weft.engine.model.attention import PackedAttention
from weft.engine.model.decoder import Decoder

MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass
class Tenant:
    """One unit of the batch."""

    run: Run | None
    sequences: list[list[int]]

    @property
    def num_tokens(self) -> int:
        return sum(len(sequence) for sequence in self.sequences)


def random_sequences(rng: np.random.Generator, *lengths: int) -> list[list[int]]:
    return [rng.integers(0, 97, length).tolist() for length in lengths]


def train_step(
    model: Decoder,
    store: AdapterStore,
    tenants: list[Tenant],
    weights_T: np.ndarray,
    chunk_rows: int = 32,
) -> Tensor:
    """One fused forward_backward of cross-entropy; the stages are committed."""
    tokens = [np.array(s, np.int64) for tenant in tenants for s in tenant.sequences]
    lengths = [len(sequence) for sequence in tokens]
    runs = [tenant.run for tenant in tenants]
    rows = [tenant.num_tokens for tenant in tenants]
    store.begin(*(run for run in runs if run is not None))
    linears = LoraLinears(store, [None if r is None else r.version for r in runs], runs, rows)
    losses = LossBatch.build(
        loss_fns=["cross_entropy"] * len(runs),
        configs=[{}] * len(runs),
        row_counts=rows,
        targets=np.concatenate([np.roll(sequence, -1) for sequence in tokens]),
        inputs={"weights": weights_T},
        device="cpu",
    )
    hidden_TD = model.forward(
        torch.from_numpy(np.concatenate(tokens)),
        torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])),
        PackedAttention(np.cumsum([0, *lengths])),
        linears,
    )
    head = Head(model.head, len(model.sites) - 1, chunk_rows=chunk_rows)
    result = head.forward_backward(hidden_TD.detach(), losses, linears)
    torch.autograd.backward(hidden_TD, result.dhidden_TD)
    linears.flush()
    store.commit(*(run for run in runs if run is not None))
    return result.logprobs_T


def peft_name(site: str, half: str) -> str:
    return f"base_model.model.{site}.lora_{half.upper()}.default.weight"


def peft_step(base: Any, store: AdapterStore, tenant: Tenant, weights_T: np.ndarray) -> PeftModel:
    """The same loss through transformers, peft and autograd."""
    assert tenant.run is not None
    config = LoraConfig(
        r=tenant.run.rank,
        lora_alpha=int(tenant.run.alpha),
        target_modules=[*MODULES, "lm_head"],
    )
    model = get_peft_model(base, config)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, tensor in store.export_weights(tenant.run.version).items():
            site, half = name.rsplit(".lora_", 1)
            parameters[peft_name(site, half)].copy_(tensor)
    start, losses = 0, []
    for sequence in tenant.sequences:
        tokens = torch.tensor(sequence)
        logits = model(input_ids=tokens[None]).logits[0]
        logprobs = logits.log_softmax(-1).gather(1, tokens.roll(-1)[:, None])[:, 0]
        losses.append(-(torch.from_numpy(weights_T[start:][: len(sequence)]) * logprobs).sum())
        start += len(sequence)
    torch.autograd.backward(torch.stack(losses).sum())
    return model


@pytest.mark.filterwarnings("ignore::FutureWarning")  # of transformers, about what peft calls
@pytest.mark.parametrize("kind", ["qwen3", "llama"])
def test_every_site_equals_peft_for_mixed_ranks_in_one_batch(tmp_path: Path, kind: str) -> None:
    base = save_random_model(tmp_path, kind)
    model = Decoder.load(tmp_path)
    store = AdapterStore(
        model.sites, device="cpu", dtype=torch.float32, state_bytes=8 << 20, weights_bytes=4 << 20
    )
    rng = np.random.default_rng(0)
    runs = [make_run(store, rank, seed=rank) for rank in (1, 4, 7, 16, 64)]
    lengths = [(9,), (5, 11), (16,), (1, 2, 3), (30,)]
    tenants = [
        Tenant(run, random_sequences(rng, *own)) for run, own in zip(runs, lengths, strict=True)
    ]
    tenants.insert(2, Tenant(None, random_sequences(rng, 8, 3)))
    empty = make_run(store, 8, seed=99)
    tenants.insert(4, Tenant(empty, []))
    weights_T = rng.normal(size=sum(t.num_tokens for t in tenants)).astype(np.float32)
    train_step(model, store, tenants, weights_T)
    assert not any(matrix.any() for matrix in gradient_matrices(store, empty).values())
    start = 0
    for tenant in tenants:
        rows = slice(start, start + tenant.num_tokens)
        start = rows.stop
        if tenant.run is None or not tenant.num_tokens:
            continue
        peft_model = peft_step(base, store, tenant, weights_T[rows])
        parameters = dict(peft_model.named_parameters())
        gradients = gradient_matrices(store, tenant.run)
        assert len(gradients) == 2 * len(model.sites)
        for name, found in gradients.items():
            expected = parameters[peft_name(*name.rsplit(".lora_", 1))].grad
            assert expected is not None
            error = float((found - expected).norm() / expected.norm())
            assert error < 1e-4, f"rank {tenant.run.rank}, {name}: {error}"
        base = peft_model.unload()


def test_no_operation_count_depends_on_the_number_of_tenants(tmp_path: Path) -> None:
    save_random_model(tmp_path)
    model = Decoder.load(tmp_path)
    counts = []
    for num_tenants in (1, 16):
        store = AdapterStore(
            model.sites,
            device="cpu",
            dtype=torch.float32,
            state_bytes=8 << 20,
            weights_bytes=4 << 20,
        )
        each = 16 // num_tenants
        rng = np.random.default_rng(0)
        tenants = [
            Tenant(make_run(store, 8, seed=index), random_sequences(rng, *[16] * each))
            for index in range(num_tenants)
        ]
        with CountOps() as ops:
            train_step(model, store, tenants, np.ones(256, np.float32), chunk_rows=256)
        counts.append(ops.counts)
    assert counts[0] == counts[1]
