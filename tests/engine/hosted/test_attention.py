"""What modelling codes ask their attention for: handed on, or refused by name."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from weft.engine.hosted.attention import attend
from weft.engine.hosted.current import Pass, running
from weft.engine.hosted.masks import Masks, Unpackable, Window
from weft.engine.model.attention_form import AttentionForm
from weft.engine.model.linear import FrozenLinears

H, G, K, T, CONTEXT = 4, 2, 8, 5, 64
CAUSAL = Window()


class Recorder:
    """Attention that notes what it is asked for and returns its queries."""

    def attend(
        self, layer: int, q: Tensor, k: Tensor, v: Tensor, form: AttentionForm | None = None
    ) -> Tensor:
        self.layer, self.shapes, self.form = layer, (q.shape, k.shape, v.shape), form
        return q


class Layer(nn.Module):
    """Knows which layer it is."""

    def __init__(self, layer_idx: int | None = 3) -> None:
        super().__init__()
        self.layer_idx = layer_idx


def ask(head_dim: int = K, mask: Any = CAUSAL, **options: Any) -> tuple[Tensor, Recorder]:
    """One layer's attention as transformers calls it, within a pass."""
    recorder, layer = Recorder(), options.pop("layer", Layer())
    query, key, value = (torch.ones(1, heads, T, K) for heads in (H, G, G))
    forward_pass = Pass(FrozenLinears(), T, recorder, Masks(CONTEXT), head_dim)
    with running(forward_pass):
        out, weights = attend(layer, query, key, value, mask, **options)
    assert weights is None
    return out, recorder


def test_what_a_layer_asks_for_reaches_the_pass() -> None:
    sinks = torch.zeros(H, requires_grad=True)
    options: dict[str, Any] = {"scaling": 0.25, "softcap": 30.0, "s_aux": sinks}
    out, recorder = ask(mask=Window(7), sliding_window=7, **options)
    form = recorder.form
    assert form is not None
    assert (form.scale, form.window, form.softcap) == (0.25, 7, 30.0)
    assert form.sinks_H is not None
    assert not form.sinks_H.requires_grad
    assert recorder.layer == 3
    assert out.shape == (1, T, H, K)


def test_a_layer_that_says_nothing_has_the_plain_form() -> None:
    form = ask(scaling=None, is_causal=None, position_ids=torch.arange(T))[1].form
    assert form is not None
    assert form.scale == K**-0.5
    assert form.is_plain(CONTEXT)


def test_narrow_heads_are_padded_and_cut_again() -> None:
    out, recorder = ask(head_dim=2 * K)
    assert recorder.shapes == ((T, H, 2 * K), (T, G, 2 * K), (T, G, 2 * K))
    assert out.shape == (1, T, H, K)


def test_a_window_as_long_as_the_context_is_none() -> None:
    form = ask(sliding_window=CONTEXT)[1].form
    assert form is not None
    assert form.window == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dropout": 0.1}, "layer 3 has a dropout of 0.1"),
        ({"sliding_window": 7}, "layer 3 has a window of 7, its mask 0"),
        ({"is_causal": False}, "layer 3 is not causal"),
        ({"head_mask": torch.ones(H)}, "layer 3 asks its attention for 'head_mask'"),
        ({"position_bias": 0.0}, "layer 3 asks its attention for 'position_bias'"),
        ({"mask": None}, "layer 3 makes a mask of its own"),
        ({"mask": torch.ones(T, T)}, "layer 3 makes a mask of its own"),
        ({"mask": Window(problem="its mask is odd")}, "its mask is odd"),
        ({"layer": Layer(None)}, "does not say which it is"),
    ],
)
def test_what_is_not_built_is_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(Unpackable, match=message):
        ask(**options)


def test_attention_outside_of_a_packed_batch_is_refused() -> None:
    with (
        running(Pass(FrozenLinears(), T)),
        pytest.raises(Unpackable, match="outside of a packed batch"),
    ):
        attend(Layer(), *(torch.ones(1, 1, T, K),) * 3, CAUSAL)
