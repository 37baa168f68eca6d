"""What multi-LoRA linears are compared with: one adapter, tenant by tenant, grouped_mm, PEFT.

Each computes the same products as `layer_case.beta`, the gradients of the adapters included, but
keeps those to itself.
T rows, E adapters, D input features, O output features, R rank.
"""

import warnings
from collections.abc import Callable
from typing import Any

import torch
from layer_case import ALL, FAMILIES, LayerCase
from torch import Tensor, nn

NAMES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")

Baseline = Callable[[LayerCase, int], object]


class Sequential:
    """Torch matmuls tenant by tenant; with one adapter the best that plain matmuls can do."""

    def __init__(self, case: LayerCase) -> None:
        self._parts = torch.split(torch.arange(sum(case.counts)), case.counts)

    def __call__(self, case: LayerCase, layer: int) -> None:
        for owner, rows in enumerate(self._parts):
            if len(rows):
                self._tenant(case, layer, owner, slice(int(rows[0]), int(rows[-1]) + 1))

    def _tenant(self, case: LayerCase, layer: int, owner: int, rows: slice) -> None:
        scale = 32 / case.ranks[owner]
        for group, x_all in enumerate(case.xs):
            x, dx = x_all[rows], None
            for site, dy_all in zip(case.base.sites(layer, group), case.dys[group], strict=True):
                a_RD, bt_RO = case.matrices(case.arena, owner, site)
                dy, weight = dy_all[rows], case.base.weights[site]
                s = torch.mm(x, a_RD.t()).mul_(scale)
                torch.mm(x, weight.t()).addmm_(s, bt_RO)
                ds = torch.mm(dy, bt_RO.t()).mul_(scale)
                torch.mm(ds.t(), x)
                torch.mm(s.t(), dy)
                dx = torch.mm(dy, weight) if dx is None else dx.addmm_(dy, weight)
                dx.addmm_(ds, a_RD)


class Grouped:
    """cuBLAS for the base, `torch.nn.functional.grouped_mm` for adapters of one rank."""

    def __init__(self, case: LayerCase) -> None:
        if len(set(case.ranks)) > 1:
            raise ValueError("adapters of several ranks would have to be padded to one")
        if sum(case.counts) < case.mix.num_tokens:
            raise ValueError("rows without adapter would need a group of zeros")
        ends = torch.tensor(case.counts).cumsum(0)
        self._ends = ends.to(case.base.device, torch.int32)
        self._weights: dict[int, tuple[Tensor, Tensor]] = {}
        for site in range(len(case.base.weights)):
            pairs = [case.matrices(case.arena, owner, site) for owner in range(len(case.ranks))]
            a_ERD, bt_ERO = (torch.stack(halves) for halves in zip(*pairs, strict=True))
            self._weights[site] = a_ERD, bt_ERO
        self._scale = 32 / case.ranks[0]

    def __call__(self, case: LayerCase, layer: int) -> None:
        def product(left: Tensor, right: Tensor) -> Tensor:
            out: Tensor = nn.functional.grouped_mm(left, right, offs=self._ends)
            return out

        for group, x in enumerate(case.xs):
            dx: Tensor | None = None
            for site, dy in zip(case.base.sites(layer, group), case.dys[group], strict=True):
                a_ERD, bt_ERO = self._weights[site]
                weight = case.base.weights[site]
                s = product(x, a_ERD.transpose(1, 2)).mul_(self._scale)
                torch.addmm(product(s, bt_ERO), x, weight.t())
                ds = product(dy, bt_ERO.transpose(1, 2)).mul_(self._scale)
                product(ds.t(), x)
                product(s.t(), dy)
                dx = torch.mm(dy, weight) if dx is None else dx.addmm_(dy, weight)
                dx += product(ds, a_ERD)


class Peft:
    """PEFT's own layers and autograd, tenant by tenant, eager, adapters in the base's dtype."""

    def __init__(self, case: LayerCase) -> None:
        from peft import LoraConfig, inject_adapter_in_model

        self._layers: list[Any] = []
        for layer in range(case.base.num_layers):
            sites = [
                site for group in range(len(FAMILIES)) for site in case.base.sites(layer, group)
            ]
            model = nn.Module()
            for name, site in zip(NAMES, sites, strict=True):
                weight = case.base.weights[site]
                linear = nn.Linear(1, 1, bias=False, device=weight.device, dtype=weight.dtype)
                linear.weight = nn.Parameter(weight, requires_grad=False)
                linear.out_features, linear.in_features = weight.shape
                model.add_module(name, linear)
            for owner, rank in enumerate(case.ranks):
                config = LoraConfig(r=rank, lora_alpha=32, target_modules=list(NAMES))
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", UserWarning)  # of the second adapter on
                    model = inject_adapter_in_model(config, model, adapter_name=f"r{owner}")
            self._layers.append(model)

    def __call__(self, case: LayerCase, layer: int) -> None:
        model, first = self._layers[layer % len(self._layers)], 0
        for owner, count in enumerate(case.counts):
            rows = slice(first, first + count)
            first += count
            if not count:
                continue
            for name in NAMES:
                getattr(model, name).set_adapter(f"r{owner}")
            places = iter(NAMES)
            for x, dys in zip(case.xs, case.dys, strict=True):
                leaf = x[rows].detach().requires_grad_()
                ys = [getattr(model, next(places))(leaf) for _ in dys]
                torch.autograd.backward(ys, [dy[rows] for dy in dys])
        for parameter in model.parameters():
            parameter.grad = None


def floor_seconds(case: LayerCase, flops_per_s: float, bytes_per_s: float) -> tuple[float, float]:
    """What the frozen layer takes at the matmul rate, and what adapters add to it at least.

    The adapters' part is written before the base product adds to it, so that outputs are written
    once more and nothing else is read twice, but for one pass over outputs' gradients that serves
    both their products. Weights are read twice in 16 bits, gradients written once in 32.
    """
    rows, base = case.mix.num_tokens, case.base
    ins = sum(width for width, _ in base.groups)
    outs = sum(sum(widths) for _, widths in base.groups)
    macs = sum(width * sum(widths) for width, widths in base.groups)
    parameters = (
        sum(base.layout.block_size(rank, ALL) * base.layout.granule for rank in case.ranks)
        // base.num_layers
    )
    item = base.dtype.itemsize
    moved = rows * item * (ins + outs + outs + ins + ins) + parameters * (2 * item + 4)
    lora_flops = 6 * sum(
        count * rank * sum(width * len(widths) + sum(widths) for width, widths in base.groups)
        for rank, count in zip(case.ranks, case.counts, strict=True)
    )
    return 4 * rows * macs / flops_per_s, max(moved / bytes_per_s, lora_flops / flops_per_s)
