"""Sites put together by their layers."""

import pytest
from adapter_files import SPANS, span

from weft.engine.files.sites import limit_spans, module_names, to_modules, to_spans
from weft.engine.model.config import Site


def site(layer: int, name: str, width: int = 6) -> Site:
    return Site(layer, name, width, 8, name, "attn", "qkv")


def test_sites_that_differ_in_their_layer_share_a_span() -> None:
    sites = [site(layer, f"model.layers.{layer}.q_proj") for layer in range(3)]
    assert to_spans([*sites, site(-1, "lm_head")]) == [
        span("model.layers.{}.q_proj", "attn", 6, 8, [0, 1, 2]),
        span("lm_head", "attn", 6, 8, []),
    ]


@pytest.mark.parametrize(
    "sites",
    [
        pytest.param([site(3, "h.3.experts.3.w1"), site(4, "h.4.experts.3.w1")], id="experts"),
        pytest.param([site(0, "l.0.q", 6), site(1, "l.1.q", 7)], id="shapes by layer"),
        pytest.param([site(2, "blocks_2_q")], id="a layer that is not in the name"),
    ],
)
def test_the_modules_of_spans_are_the_sites(sites: list[Site]) -> None:
    modules = to_modules(to_spans(sites))
    assert {name: found.in_features for name, found in modules.items()} == {
        one.name: one.in_features for one in sites
    }


def test_a_module_has_its_span() -> None:
    assert to_modules(SPANS)["model.layers.1.mlp.up_proj"] is SPANS[3]
    assert module_names(SPANS[4]) == ["lm_head"]


def test_spans_that_do_not_fit_into_a_header_are_left_out() -> None:
    many = [span(f"layers.{{}}.experts.{index}.w1", "mlp", 6, 8) for index in range(400)]
    assert limit_spans(SPANS) == SPANS
    assert limit_spans(many) == []
