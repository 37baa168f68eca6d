"""Train steps of a hosted model through our linears and head, and the same by autograd alone."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from hosted_models import VOCABULARY, adapters_hooked
from lora_helpers import gradient_matrices
from torch import Tensor

from weft.engine.adapters.head import Head
from weft.engine.adapters.lora import LoraLinears
from weft.engine.adapters.losses import LossBatch
from weft.engine.adapters.store import AdapterStore, Run
from weft.engine.model.attention import PackedAttention
from weft.engine.model.base import BaseModel


@dataclass
class Unit:
    """One sequence of one tenant, or of the bare base model; its tokens' targets and weights."""

    run: Run | None
    tokens: np.ndarray
    weights: np.ndarray

    @classmethod
    def random(cls, run: Run | None, length: int, seed: int) -> "Unit":
        random = np.random.default_rng([seed, length])
        weights = random.normal(size=length).astype(np.float32)
        return cls(run, random.integers(3, VOCABULARY, length), weights)


def make_store(model: BaseModel) -> AdapterStore:
    return AdapterStore(
        model.sites,
        device="cpu",
        dtype=model.dtype,
        state_bytes=16 << 20,
        weights_bytes=8 << 20,
    )


def make_run(
    store: AdapterStore, rank: int, seed: int, families: tuple[str, ...], spread: float = 0.05
) -> Run:
    """A run on some families whose B is not zero."""
    targets = {f"train_{name}": name in families for name in ("attn", "mlp", "unembed")}
    run = store.create(rank=rank, alpha=16.0, seed=seed, **targets)
    tensors = store.export_weights(run.version)
    random = torch.Generator().manual_seed(seed)
    for name, tensor in tensors.items():
        if name.endswith("lora_b"):
            tensor.normal_(0, spread, generator=random)
    store.import_state(run, tensors, 0, with_optimizer=False)
    return run


def train_step(model: BaseModel, store: AdapterStore, units: list[Unit]) -> list[Tensor]:
    """Forward and backward of cross-entropy; logprobs of each unit. Gradients are committed.

    All units in one batch, or one after the other where the model takes no more.
    """
    if model.runs_on == "sequential" and len(units) > 1:
        return [logprobs for unit in units for logprobs in train_step(model, store, [unit])]
    runs, lengths = [unit.run for unit in units], [len(unit.tokens) for unit in units]
    different = {id(run): run for run in runs if run is not None}.values()
    store.begin(*different)
    versions = [None if run is None else run.version for run in runs]
    linears = LoraLinears(store, versions, runs, lengths)
    losses = LossBatch.build(
        loss_fns=["cross_entropy"] * len(units),
        configs=[{}] * len(units),
        row_counts=lengths,
        targets=np.concatenate([np.roll(unit.tokens, -1) for unit in units]),
        inputs={"weights": np.concatenate([unit.weights for unit in units])},
        device="cpu",
    )
    hidden_TD = model.forward(
        torch.from_numpy(np.concatenate([unit.tokens for unit in units])),
        torch.from_numpy(np.concatenate([np.arange(length) for length in lengths])),
        PackedAttention(np.cumsum([0, *lengths])),
        linears,
    )
    result = Head.of(model).forward_backward(hidden_TD.detach(), losses, linears)
    if hidden_TD.requires_grad:
        torch.autograd.backward(hidden_TD, result.dhidden_TD)
    linears.flush()
    store.commit(*different)
    return list(torch.split(result.logprobs_T, lengths))


def plain_step(
    module: Any, store: AdapterStore, units: list[Unit]
) -> tuple[list[Tensor], dict[str, Tensor]]:
    """Logprobs of each unit and the summed gradients of their one run, by transformers' code."""
    run = units[0].run
    tensors = {} if run is None else store.export_weights(run.version)
    found, losses = [], []
    with adapters_hooked(module, tensors, 1.0 if run is None else run.scale) as leaves:
        for unit in units:
            tokens = torch.from_numpy(unit.tokens)
            logits_TV = module(input_ids=tokens[None], use_cache=False).logits[0]
            logprobs_T = logits_TV.log_softmax(-1).gather(1, tokens.roll(-1)[:, None])[:, 0]
            losses.append(-(torch.from_numpy(unit.weights) * logprobs_T).sum())
            found.append(logprobs_T.detach())
    if leaves:
        torch.autograd.backward(torch.stack(losses).sum())
    return found, {name: _gradient(leaf) for name, leaf in leaves.items()}


def gradients(store: AdapterStore, run: Run) -> dict[str, Tensor]:
    return gradient_matrices(store, run)


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
