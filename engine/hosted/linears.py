"""The linears of a modelling code: finding them, naming their sites, swapping them for ours.

T rows, D input features, O output features.
"""

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...client.errors import BadRequest
from ..model.config import UNEMBED, Site
from ..model.linear import DenseLinear
from .current import current

_ROUTERS = ("gate", "router", "wg", "shared_expert_gate")  # what chooses or scales experts
# Which family a linear is of, by the class around it and then by its path; the first that fits.
_FAMILY_OF_CLASS = (
    ("mlp", re.compile("mlp|feedforward|ffn", re.IGNORECASE)),
    ("attn", re.compile("atten|attn|mixer|mamba|delta|conv|recurrent|ssm", re.IGNORECASE)),
    ("mlp", re.compile("moe|expert", re.IGNORECASE)),
)
_FAMILY_OF_NAME = (
    ("mlp", re.compile("mlp|feed_forward|ffn|moe|expert")),
    ("attn", re.compile("atten|attn|mixer|mamba|delta|conv|recurrent|ssm|temporal|time_mix")),
)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A linear layer of the modelling code that may carry an adapter."""

    name: str  # path in the model, as in the keys of a state dict
    layer: int
    path: str  # inside its layer
    family: str
    shape: tuple[int, int]  # (in_features, out_features)

    def site(self) -> Site:
        """Its site; no two share a group, since who reads the same input is not known."""
        return Site(self.layer, self.path, *self.shape, self.name, self.family, self.path)


class HostedLinear(nn.Module):
    """Stands in for a linear layer: its base and its adapters, by the pass under way.

    Weight and bias stay readable for code that asks for their type or place.
    """

    def __init__(self, linear: Any, site: int) -> None:
        super().__init__()
        self.base, self.site = dense(linear), site
        if not isinstance(linear, nn.Linear):  # one copy of a transposed weight is enough
            linear.weight = nn.Parameter(self.base.weight_OD.t(), requires_grad=False)
        self.weight, self.bias = linear.weight, linear.bias
        self.out_features, self.in_features = self.base.shape

    def forward(self, x: Tensor) -> Tensor:
        forward_pass = current()
        rows_TD = x.reshape(-1, x.shape[-1])
        if len(rows_TD) != forward_pass.num_rows or self.site in forward_pass.called:
            raise RuntimeError(
                f"site {self.site} was given {len(rows_TD)} rows of {forward_pass.num_rows}, or "
                "called twice: this model computes otherwise than when it was loaded"
            )
        forward_pass.called.add(self.site)
        (y_TO,) = forward_pass.linears.group(rows_TD, (self.base,), (self.site,))
        return y_TO.view(*x.shape[:-1], y_TO.shape[-1])


class HeadInput(nn.Module):
    """Stands in for the unembedding: notes what it is given and answers one column of it."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.weight, self.bias = head.weight, head.bias

    def forward(self, x: Tensor) -> Tensor:
        current().hidden_TD = x.reshape(-1, x.shape[-1])
        return x[..., :1]


def dense(linear: nn.Module, scale: float = 1.0) -> DenseLinear:
    """The frozen linear of a module; its bias times a scale."""
    weight: Any = linear.weight
    bias: Any = linear.bias
    is_transposed = not isinstance(linear, nn.Linear)
    weight_OD = weight.detach().t().contiguous() if is_transposed else weight.detach()
    return DenseLinear(weight_OD, None if bias is None else bias.detach() * scale)


class Swapped:
    """The linears of a module that are swapped now, in the order of their sites.

    Args:
        module: whose linears they are.
        candidates: all are swapped at first.
        frozen: takes the names of those put back, with the reason.
    """

    def __init__(
        self, module: Any, candidates: Sequence[Candidate], frozen: dict[str, str]
    ) -> None:
        self._module, self._frozen = module, frozen
        self._candidates = list(candidates)
        self._linears = {each.name: module.get_submodule(each.name) for each in candidates}
        self._hosted: dict[str, HostedLinear] = {}
        for index, each in enumerate(candidates):
            hosted = HostedLinear(self._linears[each.name], index)
            self._hosted[each.name] = hosted
            module.set_submodule(each.name, hosted)

    def sites(self) -> list[Site]:
        """The sites of those that are swapped."""
        return [each.site() for each in self._candidates]

    def keep(self, names: Collection[str], reason: str) -> None:
        """Put back all others, for this reason, and number the rest anew."""
        for each in self._candidates:
            if each.name not in names:
                self._module.set_submodule(each.name, self._linears[each.name])
                self._frozen[each.name] = reason
        self._candidates = [each for each in self._candidates if each.name in names]
        for index, each in enumerate(self._candidates):
            self._hosted[each.name].site = index


def find_candidates(module: Any) -> tuple[list[Candidate], dict[str, str]]:
    """The linears inside the decoder layers, and why others stay frozen, by name.

    Experts stay frozen: their rows are not the batch's. So do routers, and weights that are no
    linear layers.
    """
    candidates: list[Candidate] = []
    frozen: dict[str, str] = {}
    head, layers = module.get_output_embeddings(), _layers_name(module)
    for name, child in module.named_modules():
        if child is head:
            continue
        if name.startswith(f"{layers}."):
            index, _, path = name[len(layers) + 1 :].partition(".")
            reason = _why_frozen(child, path, head.weight.dtype)
            if reason is None:
                family = _family(module.get_submodule(f"{layers}.{index}"), path)
                candidates.append(Candidate(name, int(index), path, family, _shape(child)))
            elif reason:
                frozen[name] = reason
        elif is_linear(child):
            frozen[name] = "outside of the layers"
    return candidates, frozen


def _why_frozen(module: nn.Module, path: str, dtype: torch.dtype) -> str | None:
    """Why a module's own weights stay frozen; "" where it has none, None for a candidate."""
    if not any(each.ndim >= 2 for each in module.parameters(recurse=False)):
        return ""
    parts = path.split(".")
    if any(part.endswith("experts") and "shared" not in part for part in parts):
        return "experts"
    if parts[-1] in _ROUTERS or "router" in path:
        return "router"
    if not is_linear(module):
        return f"{type(module).__name__} is no linear layer"
    weight: Any = module.weight
    return None if weight.dtype == dtype else f"{weight.dtype} in a model of {dtype}"


def is_linear(module: nn.Module) -> bool:
    """Whether it is a plain linear layer, or transformers' transposed form of one."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def head_site(module: Any) -> Site:
    """The site of the unembedding."""
    head = module.get_output_embeddings()
    (name,) = [name for name, child in module.named_modules() if child is head]
    return Site(-1, UNEMBED, *_shape(head), name, "unembed", UNEMBED)


def summary(frozen: dict[str, str]) -> list[str]:
    """A line for each kind of frozen part: `frozen: model.layers.*.mlp.gate (router)`."""
    number = re.compile(r"(?<=[.])[0-9]+(?=[.]|$)")
    lines = (f"frozen: {number.sub('*', name)} ({why})" for name, why in frozen.items())
    return list(dict.fromkeys(lines))


def _layers_name(module: Any) -> str:
    """The path of the list of decoder layers: the first list as long as the config says."""
    count = module.config.get_text_config(decoder=True).num_hidden_layers
    inside = {id(child) for child in module.get_decoder().modules()}
    for name, child in module.named_modules():
        if isinstance(child, nn.ModuleList) and len(child) == count and id(child) in inside:
            return str(name)
    raise BadRequest(f"{type(module).__name__} has no list of {count} decoder layers")


def _shape(linear: nn.Module) -> tuple[int, int]:
    """(in_features, out_features)."""
    weight: Any = linear.weight
    first, second = weight.shape
    return (second, first) if isinstance(linear, nn.Linear) else (first, second)


def _family(layer: nn.Module, path: str) -> str:
    """attn or mlp, by the classes and names around a linear, the nearest first."""
    parts = path.split(".")
    for depth in range(len(parts) - 1, 0, -1):
        owner = type(layer.get_submodule(".".join(parts[:depth]))).__name__
        for patterns, word in ((_FAMILY_OF_CLASS, owner), (_FAMILY_OF_NAME, parts[depth - 1])):
            for family, pattern in patterns:
                if pattern.search(word):
                    return family
    return "mlp"
