"""Reading windows from transformers' mask functions."""

import pytest
import torch
from torch import Tensor
from transformers.masking_utils import (
    and_masks,
    bidirectional_mask_function,
    causal_mask_function,
    chunked_causal_mask_function,
    or_masks,
    sliding_window_causal_mask_function,
)

from weft.engine.hosted.masks import MaskFunction, Masks, Window, read_window

CONTEXT = 131_072


def test_the_causal_mask_has_no_window() -> None:
    assert read_window(causal_mask_function, None, CONTEXT) == Window()


@pytest.mark.parametrize("size", [1, 2, 63, 4096])
def test_a_sliding_window_is_read_with_its_size(size: int) -> None:
    mask = sliding_window_causal_mask_function(size)
    assert read_window(mask, size, CONTEXT) == Window(size)


def test_a_window_as_long_as_the_context_is_none() -> None:
    assert read_window(sliding_window_causal_mask_function(512), 512, 512) == Window()


def _one_early_key_more(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
    return (key <= query) & ((key > query - 100) | (key == 0))


@pytest.mark.parametrize(
    ("mask", "size"),
    [
        pytest.param(bidirectional_mask_function, None, id="both directions"),
        pytest.param(chunked_causal_mask_function(64, torch.zeros(1).long()), 64, id="chunks"),
        pytest.param(sliding_window_causal_mask_function(100), 99, id="size stated wrong"),
        pytest.param(sliding_window_causal_mask_function(100), None, id="size not stated"),
        pytest.param(_one_early_key_more, 100, id="first key always seen"),
        pytest.param(
            and_masks(causal_mask_function, lambda b, h, q, k: k != q), None, id="not itself"
        ),
        pytest.param(
            or_masks(causal_mask_function, lambda b, h, q, k: k == q + 1), None, id="next key"
        ),
    ],
)
def test_anything_else_is_a_problem(mask: MaskFunction, size: int | None) -> None:
    assert "no sliding window" in read_window(mask, size, CONTEXT).problem


def test_a_mask_that_cannot_be_asked_is_a_problem() -> None:
    def broken(batch: Tensor, head: Tensor, query: Tensor, key: Tensor) -> Tensor:
        raise IndexError("only 11 tokens")

    assert "only 11 tokens" in read_window(broken, None, CONTEXT).problem


def test_windows_are_learned_once_and_then_looked_up() -> None:
    masks = Masks(CONTEXT)
    masks.window(7, sliding_window_causal_mask_function(7))
    masks.is_learning = False
    assert masks.window(7, bidirectional_mask_function) == Window(7)
    assert "new since it was loaded" in masks.window(8, causal_mask_function).problem


def test_two_masks_of_one_size_that_differ_are_a_problem() -> None:
    masks = Masks(CONTEXT)
    masks.window(None, causal_mask_function)
    assert "differ" in masks.window(None, bidirectional_mask_function).problem
