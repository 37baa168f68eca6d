"""What is seen of a module before anything is swapped."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hosted_models import own_module, save_family
from torch import Tensor, nn

from weft.client.errors import BadRequest
from weft.engine.hosted.linears import find_candidates
from weft.engine.hosted.probes import probe_tokens
from weft.engine.hosted.reference import Reference, observe


def seen(module: Any) -> Reference:
    probes = probe_tokens(module.config, 97, torch.device("cpu"))
    return observe(module, probes, [each.name for each in find_candidates(module)[0]])


@pytest.mark.parametrize(
    ("kind", "fields", "form"),
    [
        pytest.param("phi", {}, (1.0, 0.0), id="plain"),
        pytest.param("granite", {"logits_scaling": 8.0}, (0.125, 0.0), id="scaled"),
        pytest.param("gemma2", {"final_logit_softcapping": 5.0}, (1.0, 5.0), id="capped"),
        pytest.param("gemma2", {"final_logit_softcapping": None}, (1.0, 0.0), id="not capped"),
    ],
)
def test_what_happens_to_logits_is_measured(
    tmp_path: Path, kind: str, fields: dict[str, Any], form: tuple[float, float]
) -> None:
    module = own_module(save_family(tmp_path, kind))
    for key, value in fields.items():
        setattr(module.config, key, value)
    if kind == "granite":
        module.logits_scaling = fields["logits_scaling"]
    reference = seen(module)
    assert (reference.scale, reference.softcap) == pytest.approx(form)


def _after(change: Any) -> Any:
    def hook(module: Any, inputs: Any, output: Any) -> Any:
        output.logits = change(output.logits)
        return output

    return hook


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda logits: logits + 1, id="shifted"),
        pytest.param(lambda logits: logits.clamp(-10, 10), id="clamped"),
        pytest.param(lambda logits: 7 * torch.tanh(logits / 7), id="capped, config does not say"),
    ],
)
def test_another_change_of_logits_is_refused(tmp_path: Path, change: Any) -> None:
    module = own_module(save_family(tmp_path, "phi"))
    module.register_forward_hook(_after(change))
    with pytest.raises(BadRequest, match="changes its logits in a way that is not built here"):
        seen(module)


class _Twice(nn.Module):
    """Calls a linear twice."""

    def __init__(self, linear: nn.Module) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(x) + 0 * self.linear(x)
        return out


class _Doubling(nn.Linear):
    """A linear that is none."""

    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_a_linear_that_is_called_twice_is_not_clean(tmp_path: Path) -> None:
    module = own_module(save_family(tmp_path, "phi"))
    module.model.layers[0].mlp.fc1 = _Twice(module.model.layers[0].mlp.fc1)
    names = {each.name for each in find_candidates(module)[0]}
    assert names - seen(module).clean == {"model.layers.0.mlp.fc1.linear"}


def test_a_subclass_that_computes_something_else_is_not_clean(tmp_path: Path) -> None:
    module = own_module(save_family(tmp_path, "phi"))
    odd = _Doubling(32, 48)
    module.model.layers[1].mlp.fc1 = odd.requires_grad_(False)
    names = {each.name for each in find_candidates(module)[0]}
    assert names - seen(module).clean == {"model.layers.1.mlp.fc1"}


def test_linears_on_cached_keys_are_clean_without_a_cache_only(tmp_path: Path) -> None:
    reference = seen(own_module(save_family(tmp_path, "deepseek_v3")))
    names = {f"model.layers.{layer}.self_attn.kv_b_proj" for layer in range(2)}
    assert reference.clean - reference.clean_cached == names
