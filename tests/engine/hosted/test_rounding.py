"""How far logits may differ: measured where numbers are short, and never enough to hide a mistake."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hosted_models import own_module, save_family
from torch import Tensor

from weft.engine.hosted import reference
from weft.engine.hosted.linears import find_candidates
from weft.engine.hosted.load import load_hosted
from weft.engine.hosted.model import PackedModel
from weft.engine.hosted.probes import probe_tokens
from weft.engine.hosted.rounding import EXACT, Rounding, disagreement, measure_rounding

SHORT = Rounding(0.03, 0.8)


def rows(num_wrong: int, error: float) -> tuple[Tensor, Tensor]:
    """Ten rows of logits, some of them off by a share of their norm."""
    expected = torch.randn(10, 50, generator=torch.Generator().manual_seed(0))
    found = expected.clone()
    found[:num_wrong] *= 1 + error
    return found, expected


@pytest.mark.parametrize(
    ("num_wrong", "error", "rounding", "agrees"),
    [
        pytest.param(10, 5e-5, EXACT, True, id="rounding"),
        pytest.param(1, 5e-4, EXACT, False, id="one row"),
        pytest.param(10, 0.02, SHORT, True, id="rounding of a short type"),
        pytest.param(2, 1.0, SHORT, True, id="other experts for two rows"),
        pytest.param(3, 0.04, SHORT, False, id="three rows"),
    ],
)
def test_logits_agree_within_rounding(
    num_wrong: int, error: float, rounding: Rounding, agrees: bool
) -> None:
    assert (disagreement(*rows(num_wrong, error), rounding) == "") is agrees


def test_nan_never_agrees() -> None:
    assert disagreement(*rows(1, torch.nan), SHORT) == "logits are not finite"


def measured(path: Path, kind: str, dtype: torch.dtype) -> Rounding:
    module = own_module(save_family(path, kind)).to(dtype)
    names = [each.name for each in find_candidates(module)[0]]
    return measure_rounding(module, probe_tokens(module.config, 97, torch.device("cpu")), names)


def test_float32_is_held_to_a_fixed_tolerance(tmp_path: Path) -> None:
    assert measured(tmp_path, "phi", torch.float32) == EXACT


def test_a_short_type_is_held_to_the_rounding_of_the_model_itself(tmp_path: Path) -> None:
    calm, wild = (measured(tmp_path / kind, kind, torch.bfloat16) for kind in ("phi", "olmo2"))
    # A residual stream with norms after its blocks amplifies rounding; both are far below 5e-2.
    assert torch.finfo(torch.bfloat16).eps <= calm.tolerance < wild.tolerance < 0.045


def gone_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let packed batches skip a position: a mistake of at most 5e-2 in four fifths of the rows."""
    right: Callable[..., Tensor] = PackedModel.forward

    def wrong(
        self: Any, tokens_T: Tensor, positions_T: Tensor, *others: Any, **named: Any
    ) -> Tensor:
        skipped = 0 if self._masks.is_learning else (positions_T >= 1).long()
        return right(self, tokens_T, positions_T + skipped, *others, **named)

    monkeypatch.setattr(PackedModel, "forward", wrong)


@pytest.mark.parametrize("check_bytes", [0, 1 << 30])
def test_a_small_mistake_does_not_pass_in_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, check_bytes: int
) -> None:
    gone_wrong(monkeypatch)
    save_family(tmp_path, "phi")
    model = load_hosted(tmp_path, dtype=torch.bfloat16, check_bytes=check_bytes)
    assert model.runs_on == "sequential"
    assert "logits differ" in model.notes[0]


def test_what_float32_shows_decides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generous = Rounding(1.0, 0.0)
    monkeypatch.setattr(reference, "measure_rounding", lambda module, *_: chosen(module, generous))
    gone_wrong(monkeypatch)
    save_family(tmp_path, "phi")
    assert load_hosted(tmp_path, dtype=torch.bfloat16).runs_on == "packed"
    assert load_hosted(tmp_path, dtype=torch.bfloat16, check_bytes=1 << 30).runs_on == "sequential"
    # 5 bytes a weight do not fit
    assert load_hosted(tmp_path, dtype=torch.bfloat16, check_bytes=1000).runs_on == "packed"


def chosen(module: Any, otherwise: Rounding) -> Rounding:
    """What float32 is held to, or something else for short types."""
    return EXACT if module.dtype == torch.float32 else otherwise
