"""Measured memory of hosted models."""

from pathlib import Path

import pytest
import torch
from hosted_models import save_family

from weft.engine.hosted.costs import (
    ActivationCost,
    measure_activations,
    packed_bytes_per_token,
)
from weft.engine.hosted.load import load_hosted
from weft.engine.hosted.model import PackedModel, SequentialHosted
from weft.engine.hosted.probes import WatchingLinears
from weft.engine.model.attention import PackedAttention


@pytest.mark.parametrize("cost", [ActivationCost(100.0, 0.0), ActivationCost(100.0, 3.0)])
def test_the_longest_sequence_that_fits_is_as_long_as_can_be(cost: ActivationCost) -> None:
    def total(num_tokens: int) -> float:
        return cost.linear * num_tokens + cost.square * num_tokens**2

    longest = cost.max_tokens(50_000)
    assert total(longest) <= 50_000 < total(longest + 1)


def test_a_packed_token_is_charged_for_the_keys_that_are_kept() -> None:
    assert packed_bytes_per_token(ActivationCost(100.0, 2.0)) == 100 + 2 * 256 + 1


def kept_bytes(model: PackedModel | SequentialHosted, num_tokens: int) -> int:
    """Bytes that autograd holds after a forward pass, counted tensor by tensor."""
    held = {each.untyped_storage().data_ptr() for each in model.parameters()}
    kept: dict[int, int] = {}
    alive = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        alive.append(tensor)
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    positions = torch.arange(num_tokens)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        attention = PackedAttention([0, num_tokens])
        model.forward(positions % 90, positions, attention, WatchingLinears())
    return sum(kept.values())


@pytest.mark.parametrize("kind", ["olmo2", "gemma2", "gptj"])
def test_longer_sequences_keep_no_more_than_was_extrapolated(tmp_path: Path, kind: str) -> None:
    model = load_hosted(save_family(tmp_path, kind))
    cost = measure_activations(model)
    for num_tokens in (64, 200):
        bound = cost.linear * num_tokens + cost.square * num_tokens**2
        if model.runs_on == "packed":
            bound = packed_bytes_per_token(cost) * num_tokens
        assert 0.2 * bound < kept_bytes(model, num_tokens) <= bound


def test_a_recurrence_in_chunks_is_measured_beyond_its_first_chunk(tmp_path: Path) -> None:
    model = load_hosted(save_family(tmp_path, "mamba2", chunk_size=64))
    cost = measure_activations(model)
    for num_tokens in (128, 512):
        bound = cost.linear * num_tokens + cost.square * num_tokens**2
        assert kept_bytes(model, num_tokens) <= bound < 1.4 * kept_bytes(model, num_tokens)


def test_a_state_takes_what_was_measured(tmp_path: Path) -> None:
    model = load_hosted(save_family(tmp_path, "bloom"))
    assert isinstance(model, SequentialHosted)
    keys_and_values, width, layers, float32 = 2, 32, 2, 4
    assert model.state_bytes(100) == 100 * keys_and_values * width * layers * float32
