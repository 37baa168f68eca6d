"""A small set of sites with adapters, and batches of units over them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from weft.engine.adapters.lora import LoraLinears
from weft.engine.adapters.states import MASTER
from weft.engine.adapters.store import AdapterStore, Run
from weft.engine.model.config import decoder_site
from weft.engine.model.linear import DenseLinear
from weft.kernels.reference import Adapter

SITES = [
    decoder_site(0, "q", 32, 48),
    decoder_site(0, "k", 32, 16),
    decoder_site(0, "v", 32, 16),
    decoder_site(0, "o", 48, 32),
    decoder_site(0, "gate", 32, 80),
    decoder_site(0, "up", 32, 80),
    decoder_site(0, "down", 80, 32),
    decoder_site(-1, "unembed", 32, 100),
]
GROUPS = ((0, 1, 2), (3,), (4, 5), (6,), (7,))


def make_store(dtype: torch.dtype = torch.float32) -> AdapterStore:
    return AdapterStore(
        SITES, device="cpu", dtype=dtype, state_bytes=40 << 20, weights_bytes=20 << 20
    )


def make_run(store: AdapterStore, rank: int, seed: int = 0, mask: int = 7) -> Run:
    """A run whose B is not zero."""
    run = store.create(
        rank=rank,
        alpha=32.0,
        train_attn=bool(mask & 1),
        train_mlp=bool(mask & 2),
        train_unembed=bool(mask & 4),
        seed=seed,
    )
    tensors = store.export_weights(run.version)
    generator = torch.Generator().manual_seed(seed + 1000)
    for name, tensor in tensors.items():
        if name.endswith("lora_b"):
            tensor.normal_(0, 0.1, generator=generator)
    store.import_state(run, tensors, 0, with_optimizer=False)
    return run


def make_bases(sites: tuple[int, ...], row_tile: int = 0) -> tuple[DenseLinear, ...]:
    generator = torch.Generator().manual_seed(sum(sites))
    bases = []
    for site in sites:
        shape = (SITES[site].out_features, SITES[site].in_features)
        bases.append(DenseLinear(torch.randn(shape, generator=generator) * 0.2, None, row_tile))
    return tuple(bases)


def adapter_of(store: AdapterStore, run: Run | None, site: int) -> Adapter | None:
    """The oracle's form of a run's weights, float64 leaves that record gradients."""
    name = SITES[site].name
    tensors = {} if run is None else store.export_weights(run.version)
    if run is None or f"{name}.lora_a" not in tensors:
        return None
    lora_a, lora_b = (tensors[f"{name}.lora_{half}"].double().requires_grad_() for half in "ab")
    return Adapter(lora_a, lora_b, run.scale)


@dataclass
class Result:
    """What one group computed."""

    ys: tuple[Tensor, ...]
    dx: Tensor
    gradients: dict[int, Tensor] = field(default_factory=dict)  # by position of the run


def run_group(
    store: AdapterStore,
    sites: tuple[int, ...],
    units: list[tuple[Run | None, int]],
    x_TD: Tensor,
    dys_TO: list[Tensor],
    is_deterministic: bool = False,
) -> Result:
    """Forward and backward of one group over (run, rows) units, staged and committed."""
    runs = list({id(run): run for run, _ in units if run is not None}.values())
    store.begin(*runs)
    owners = [run for run, _ in units]
    linears = LoraLinears(
        store,
        [None if run is None else run.version for run in owners],
        owners,
        [rows for _, rows in units],
        is_deterministic=is_deterministic,
    )
    x = x_TD.clone().requires_grad_()
    ys = linears.group(x, make_bases(sites, 16 if is_deterministic else 0), sites)
    torch.autograd.backward(ys, dys_TO)
    linears.flush()
    assert x.grad is not None
    store.commit(*runs)
    return Result(tuple(y.detach() for y in ys), x.grad)


def gradient_matrices(store: AdapterStore, run: Run) -> dict[str, Tensor]:
    """A run's gradient by name, through the files' route."""
    saved = store.flat(run, MASTER).clone()
    store.flat(run, MASTER).copy_(store.flat(run, run.gradient_plane))
    tensors, _ = store.export_state(run)
    store.flat(run, MASTER).copy_(saved)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith("moment")}


class CountOps(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Counts the operations that run a kernel, by name; views and detached aliases are free."""

    FREE = frozenset(
        [
            "alias",
            "as_strided",
            "detach",
            "expand",
            "select",
            "slice",
            "split",
            "split_with_sizes",
            "t",
            "transpose",
            "unbind",
            "unsqueeze",
            "view",
            "_unsafe_view",
        ]
    )

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.counts: dict[str, int] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        name = func._schema.name
        if name.removeprefix("aten::") not in self.FREE:
            self.counts[name] = self.counts.get(name, 0) + 1
        return func(*args, **(kwargs or {}))
