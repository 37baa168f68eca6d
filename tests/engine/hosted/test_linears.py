"""Finding the linears of a modelling code, and swapping them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hosted_models import own_module, save_family
from torch import nn

from weft.client.errors import BadRequest
from weft.engine.hosted.current import Pass, running
from weft.engine.hosted.linears import (
    HostedLinear,
    Swapped,
    dense,
    find_candidates,
    head_site,
    summary,
)
from weft.engine.model.linear import FrozenLinears


@pytest.fixture
def module(tmp_path: Path) -> Any:
    return own_module(save_family(tmp_path, "phi"))


def test_sites_are_named_as_the_state_dict_names_them(module: Any) -> None:
    candidates, frozen = find_candidates(module)
    assert {f"{each.name}.weight" for each in candidates} <= module.state_dict().keys()
    assert [each.layer for each in candidates] == [0] * 6 + [1] * 6
    assert not frozen
    assert head_site(module).name == "lm_head"


def test_no_two_sites_share_a_group(module: Any) -> None:
    sites = [each.site() for each in find_candidates(module)[0]]
    assert len({(site.layer, site.group) for site in sites}) == len(sites)


def test_families_follow_what_stands_around_a_linear(module: Any) -> None:
    families = {each.path: each.family for each in find_candidates(module)[0]}
    assert families == {
        **dict.fromkeys(("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"), "attn"),
        "self_attn.dense": "attn",
        **dict.fromkeys(("mlp.fc1", "mlp.fc2"), "mlp"),
    }


def test_what_is_put_back_computes_as_before_and_is_told(module: Any) -> None:
    frozen: dict[str, str] = {}
    candidates, _ = find_candidates(module)
    tokens, before = torch.arange(3, 9)[None], [each.name for each in candidates]
    expected = module(tokens).logits
    swapped = Swapped(module, candidates, frozen)
    swapped.keep(before[2:], "it is the first")
    with running(Pass(FrozenLinears(), 6)):
        found = module(tokens, use_cache=False).logits
    torch.testing.assert_close(found, expected)
    assert type(module.get_submodule(before[0])) is nn.Linear
    assert [site.name for site in swapped.sites()] == before[2:]
    assert module.get_submodule(before[2]).site == 0
    assert frozen == dict.fromkeys(before[:2], "it is the first")


def test_rows_other_than_the_passes_own_are_an_error() -> None:
    hosted = HostedLinear(nn.Linear(4, 5).requires_grad_(False), 0)
    with running(Pass(FrozenLinears(), 3)):
        assert hosted(torch.ones(1, 3, 4)).shape == (1, 3, 5)
        with pytest.raises(RuntimeError, match="site 0 was given 3 rows of 3, or called twice"):
            hosted(torch.ones(1, 3, 4))
    with running(Pass(FrozenLinears(), 3)), pytest.raises(RuntimeError, match="2 rows of 3"):
        hosted(torch.ones(1, 2, 4))


def test_a_transposed_linear_is_kept_in_memory_once(tmp_path: Path) -> None:
    module = own_module(save_family(tmp_path, "gpt2"))
    linear = module.transformer.h[0].attn.c_attn
    x, expected = torch.randn(3, 32), None
    expected = linear(x)
    hosted = HostedLinear(linear, 0)
    torch.testing.assert_close(hosted.base.forward(x), expected)
    pointers = {each.weight.data_ptr() for each in (linear, hosted)}
    assert pointers == {hosted.base.weight_OD.data_ptr()}


def test_the_bias_of_a_head_is_scaled_with_its_outputs() -> None:
    linear = nn.Linear(4, 5).requires_grad_(False)
    x = torch.randn(3, 4)
    torch.testing.assert_close(dense(linear, 0.25).forward(0.25 * x), 0.25 * linear(x))


def test_frozen_parts_are_told_once_for_all_layers() -> None:
    names = [f"model.layers.{layer}.mlp.experts" for layer in range(12)]
    assert summary(dict.fromkeys(names, "experts")) == [
        "frozen: model.layers.*.mlp.experts (experts)"
    ]


def test_a_module_without_a_list_of_layers_is_refused(module: Any) -> None:
    module.config.num_hidden_layers = 3
    with pytest.raises(BadRequest, match="PhiForCausalLM has no list of 3 decoder layers"):
        find_candidates(module)
