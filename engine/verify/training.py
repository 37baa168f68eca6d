"""Train steps of several tenants on our side: the gradients of their adapters, and the speed.

The loss is cross-entropy with signed weights, which every tenant's rows have of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ..adapters.binding import Binder
from ..adapters.head_form import open_head
from ..adapters.losses import LossBatch
from ..adapters.states import MASTER, NUM_PLANES
from ..adapters.store import AdapterStore, Run
from ..adapters.targets import layout_of, targets_of
from ..model.attention import PackedAttention
from ..model.base import BaseModel
from ..model.config import Site
from ..model.linear import Linears
from ..worker.devices import choose_triton

FAMILIES = ("attn", "mlp", "unembed")
_B_SCALE = 0.01  # of lora_b, so that an adapter bends the model and does not break it
_MASKS = ((1, ("attn",)), (3, ("mlp", "unembed")), (8, FAMILIES))  # (rank, families) of a tenant


@dataclass(frozen=True, slots=True)
class Tenant:
    """An adapter and what it is trained on."""

    rank: int
    families: tuple[str, ...]
    tensors: dict[str, Tensor]  # `<site>.lora_a` [R, D] and `.lora_b` [O, R]
    sequences: tuple[npt.NDArray[np.int64], ...]
    weights: tuple[npt.NDArray[np.float32], ...]  # one a token; the target is the next token

    @property
    def alpha(self) -> float:
        return 2.0 * self.rank


def make_tenants(sites: Sequence[Site], pool: Sequence[int]) -> list[Tenant]:
    """Adapters of several ranks and families, each with two sequences from `pool`."""
    present = {site.family for site in sites}
    rng = np.random.default_rng(3)
    tokens = np.resize(np.array(pool, np.int64), 16 * len(_MASKS) * 2)
    tenants: list[Tenant] = []
    for place, (rank, wanted) in enumerate(_MASKS):
        families = tuple(family for family in wanted if family in present)
        if not families:
            continue
        start = 32 * place
        sequences = (tokens[start : start + 9 + place], tokens[start + 16 : start + 32])
        weights = tuple(rng.normal(size=len(each)).astype(np.float32) for each in sequences)
        tensors = _random_adapter(sites, rank, families, seed=place)
        tenants.append(Tenant(rank, families, tensors, sequences, weights))
    return tenants


def gradients_of(model: BaseModel, tenants: Sequence[Tenant]) -> list[dict[str, Tensor]]:
    """The gradient of every adapter tensor, all tenants in one batch where the model packs.

    Returns:
        For each tenant its gradients by name, float32 on the host.
    """
    store = make_store(model, tenants)
    runs = [create_run(store, tenant) for tenant in tenants]
    units = [
        (run, sequence, weights)
        for run, tenant in zip(runs, tenants, strict=True)
        for sequence, weights in zip(tenant.sequences, tenant.weights, strict=True)
    ]
    for batch in [[unit] for unit in units] if model.runs_on == "sequential" else [units]:
        train_step(model, store, batch)
    return [_gradient(store, run) for run in runs]


def train_step(
    model: BaseModel,
    store: AdapterStore,
    units: Sequence[tuple[Run, npt.NDArray[np.int64], npt.NDArray[np.float32]]],
) -> None:
    """One forward and backward pass; every run's gradient grows by that of its units."""
    runs = [run for run, _, _ in units]
    lengths = [len(tokens) for _, tokens, _ in units]
    different = list({id(run): run for run in runs}.values())
    store.begin(*different)
    linears = Binder(store).bind([run.version for run in runs], runs, lengths)
    losses = LossBatch.build(
        loss_fns=["cross_entropy"] * len(units),
        configs=[{}] * len(units),
        row_counts=lengths,
        targets=np.concatenate([np.roll(tokens, -1) for _, tokens, _ in units]),
        inputs={"weights": np.concatenate([weights for _, _, weights in units])},
        device=model.device,
    )
    hidden_TD = packed_hidden(model, [tokens for _, tokens, _ in units], linears)
    head = open_head(model, uses_triton=store.uses_triton)
    dhidden_TD = head.forward_backward(hidden_TD.detach(), losses, linears).dhidden_TD
    torch.autograd.backward(hidden_TD, dhidden_TD)
    linears.flush()
    store.commit(*different)


def packed_hidden(
    model: BaseModel, sequences: Sequence[npt.NDArray[np.int64]], linears: Linears
) -> Tensor:
    """Hidden states of whole sequences, one after the other."""
    lengths = [len(tokens) for tokens in sequences]
    positions = np.concatenate([np.arange(length) for length in lengths])
    return model.forward(
        torch.from_numpy(np.concatenate(sequences)).to(model.device),
        torch.from_numpy(positions).to(model.device),
        PackedAttention(np.cumsum([0, *lengths]), model.device),
        linears,
    )


def make_store(model: BaseModel, tenants: Sequence[Tenant]) -> AdapterStore:
    """A store with room for these adapters, and another version of each."""
    layout = layout_of(model.sites)
    size = 0
    for tenant in tenants:
        size += layout.block_size(tenant.rank, targets_of(*_switches(tenant.families)))
    return AdapterStore(
        model.sites,
        device=model.device,
        dtype=model.dtype,
        state_bytes=NUM_PLANES * 4 * layout.granule * (size + 1),
        weights_bytes=model.dtype.itemsize * layout.granule * (2 * size + 1),
        uses_triton=choose_triton("auto", model.device),
    )


def create_run(store: AdapterStore, tenant: Tenant) -> Run:
    """A run with a tenant's weights."""
    attn, mlp, unembed = _switches(tenant.families)
    run = store.create(
        rank=tenant.rank,
        alpha=tenant.alpha,
        train_attn=attn,
        train_mlp=mlp,
        train_unembed=unembed,
        seed=0,
    )
    store.import_state(run, tenant.tensors, 0, with_optimizer=False)
    return run


def _switches(families: Sequence[str]) -> tuple[bool, bool, bool]:
    attn, mlp, unembed = (family in families for family in FAMILIES)
    return attn, mlp, unembed


def _random_adapter(
    sites: Sequence[Site], rank: int, families: Sequence[str], seed: int
) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for site in sites:
        if site.family in families:
            shape_a, shape_b = (rank, site.in_features), (site.out_features, rank)
            bound = site.in_features**-0.5
            lora_a = torch.empty(shape_a).uniform_(-bound, bound, generator=generator)
            tensors[f"{site.name}.lora_a"] = lora_a
            tensors[f"{site.name}.lora_b"] = torch.empty(shape_b).normal_(
                0, _B_SCALE, generator=generator
            )
    return tensors


def _gradient(store: AdapterStore, run: Run) -> dict[str, Tensor]:
    """A run's gradient by the names of its weights, in whose place it is exported."""
    store.writable(run, MASTER).copy_(store.flat(run, run.gradient_plane))
    tensors, _ = store.export_state(run)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("moment")}
