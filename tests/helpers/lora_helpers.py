"""A small set of sites with adapters, and batches of units over them."""

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from weft.engine.adapters.binding import Binder
from weft.engine.adapters.states import MASTER
from weft.engine.adapters.store import AdapterStore, Run
from weft.engine.adapters.targets import LAYERS, Targets
from weft.engine.model.config import decoder_site
from weft.engine.model.linear import DenseLinear
from weft.kernels.reference import Adapter, lora_linear

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


def make_store(
    dtype: torch.dtype = torch.float32,
    uses_triton: bool = False,
    device: torch.device | str = "cpu",
) -> AdapterStore:
    return AdapterStore(
        SITES,
        device=device,
        dtype=dtype,
        state_bytes=40 << 20,
        weights_bytes=20 << 20,
        uses_triton=uses_triton,
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


def make_bases(
    sites: tuple[int, ...], row_tile: int = 0, like: Tensor | None = None
) -> tuple[DenseLinear, ...]:
    """Frozen linears; float32 on the CPU, or as a tensor is."""
    generator, bases = torch.Generator().manual_seed(sum(sites)), []
    for site in sites:
        shape = (SITES[site].out_features, SITES[site].in_features)
        weight_OD = torch.randn(shape, generator=generator) * 0.2
        weight_OD = weight_OD if like is None else weight_OD.to(like)
        bases.append(DenseLinear(weight_OD, None, row_tile))
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
    linears = Binder(store, is_deterministic=is_deterministic).bind(
        [None if run is None else run.version for run in owners],
        owners,
        [rows for _, rows in units],
        portion=Targets.UNEMBED if SITES[sites[0]].family == "unembed" else LAYERS,
    )
    x = x_TD.clone().requires_grad_()
    ys = linears.group(x, make_bases(sites, 16 if is_deterministic else 0, x_TD), sites)
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


# float32 products are summed in another order than the oracle's; seen up to 6e-7
TOLERANCE = 3e-6


def rms_error(value: Tensor, expected: Tensor) -> float:
    expected = expected.detach().double()
    return float((value.cpu().double() - expected).norm() / expected.norm().clamp(min=1e-30))


def inputs(num_rows: int, sites: tuple[int, ...], seed: int = 0) -> tuple[Tensor, list[Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    x_TD = torch.randn(num_rows, SITES[sites[0]].in_features, generator=generator)
    shapes = [(num_rows, SITES[site].out_features) for site in sites]
    return x_TD, [torch.randn(shape, generator=generator) for shape in shapes]


def check_against_oracle(
    store: AdapterStore,
    sites: tuple[int, ...],
    units: list[tuple[Run | None, int]],
    spare_rows: int = 0,
    is_deterministic: bool = False,
) -> None:
    num_rows = sum(rows for _, rows in units) + spare_rows
    x_TD, dys_TO = inputs(num_rows, sites)
    x_TD, dys_TO = x_TD.to(store.device), [dy.to(store.device) for dy in dys_TO]
    for run, _ in units:
        if run is not None:
            run.has_gradient = False
    result = run_group(store, sites, units, x_TD, dys_TO, is_deterministic)
    x64 = x_TD.cpu().double().requires_grad_()
    oracles: dict[int, dict[int, object]] = {}
    total = torch.zeros((), dtype=torch.float64)
    for index, (site, base) in enumerate(zip(sites, make_bases(sites), strict=True)):
        by_run = {id(run): adapter_of(store, run, site) for run, _ in units}
        y = lora_linear(
            x64,
            base.weight_OD,
            None,
            [rows for _, rows in units],
            [by_run[id(run)] for run, _ in units],
        )
        assert rms_error(result.ys[index], y) < TOLERANCE
        total = total + (y * dys_TO[index].cpu().double()).sum()
        for run, _ in units:
            if run is not None and by_run[id(run)] is not None:
                oracles.setdefault(id(run), {})[site] = by_run[id(run)]
    torch.autograd.backward(total)
    assert x64.grad is not None
    assert rms_error(result.dx, x64.grad) < TOLERANCE
    for run in {id(run): run for run, _ in units if run is not None}.values():
        gradients = gradient_matrices(store, run)
        for site in range(len(SITES)):
            adapter = oracles.get(id(run), {}).get(site)
            for half in "ab":
                name = f"{SITES[site].name}.lora_{half}"
                if name not in gradients:
                    continue
                expected = None if adapter is None else getattr(adapter, f"lora_{half}").grad
                if expected is None:
                    assert not gradients[name].any()
                else:
                    assert rms_error(gradients[name], expected) < TOLERANCE


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
